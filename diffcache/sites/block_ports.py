"""The blocks of a compiled denoiser: a skip bridges each list of them inside of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from diffcache.runtime.names import Names
from diffcache.runtime.rows import rows_first, tensor_leaves
from diffcache.runtime.turn import Turn

from .ports import Port, Ports
from .recording import Recording
from .structure import Structure


class Entry:
    """What entered a list of blocks in the call that is running, for each tensor of its output."""

    def __init__(self) -> None:
        self.tensors: list[Tensor | None] | None = None

    def hand_over(self, like: Sequence[Tensor]) -> list[Tensor | None]:
        """The tensors, None where there is none of the shape that is needed; then forgets them."""
        found, self.tensors = self.tensors or [None] * len(like), None
        return [
            start if start is not None and start.shape == tensor.shape else None
            for start, tensor in zip(found, like, strict=True)
        ]


class BlockPort(Port):
    """A block's port.

    Attributes:
        source: what names the arguments, and those that enter the list; None but on its first
            bypassed block.
        entry: the list's.
        structure: of the output, on the list's sink; its stand-in is then a list of residuals.
    """

    def __init__(self, module: nn.Module, handler: Callable) -> None:
        super().__init__(module, handler)
        self.source: tuple[Names, tuple[str | None, ...]] | None = None
        self.entry = Entry()
        self.structure: Structure | None = None

    def enter(self, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.source is not None:
            names, wanted = self.source
            bound = names(args, kwargs)
            self.entry.tensors = [bound.get(name) for name in wanted]

    def bridge(self) -> Any:
        if self.structure is None:
            return self.stand_in
        starts = self.entry.hand_over(self.stand_in)
        bridges = [
            part if start is None else start + part
            for part, start in zip(self.stand_in, starts, strict=True)
        ]
        return self.structure.fill(bridges)

    def take(self, output: Any) -> list[Tensor]:
        given = tensor_leaves(output)
        return [
            tensor.clone() if start is None else tensor - start
            for tensor, start in zip(given, self.entry.hand_over(given), strict=True)
        ]

    def clear(self) -> None:
        super().clear()
        self.source = self.structure = self.entry.tensors = None


def run_compiled(ports: Ports, recording: Recording, turn: Turn) -> Any:
    """Serves a call of a compiled denoiser, which bypasses all that the plan bypasses or nothing.

    Returns:
        The output; where a list's sink was not called, the lane is marked as unbridged.
    """
    memory, entries = turn.lane.memory, {}
    with ports.set_for(turn):
        sinks: dict[int, BlockPort] = {}
        for port in ports.all:
            role = recording.plan.roles.get(id(port.module))
            if role is None or role.kind != "bypassed":
                continue
            index = role.list_index
            described = memory[("output", id(port.module))]
            port.entry = entries.setdefault(index, Entry())
            if role.source and not role.open:
                names = recording.entry_names(index, described)
                port.source = recording.names(index), names
            if role.sink:
                sinks[index] = port
                port.keep = turn.full
            if turn.none and role.sink:
                parts = zip(turn.forecast(index), described.metas, strict=True)
                port.stand_in = [part.reshape(meta[0]) for part, meta in parts]
                port.structure = described.structure
            elif turn.none:
                port.stand_in = described.fill(described.blank())
        output = turn.invoke(turn.args, turn.kwargs)
        for index, port in sinks.items() if turn.full else ():
            if port.output is None:
                # Skip-layer guidance leaves blocks out of the calls of one branch.
                memory["unbridged"] = True
            else:
                turn.remember(index, [rows_first(part, turn.rows) for part in port.output])
    return output
