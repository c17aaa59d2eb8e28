"""The blocks of a transformer: a skip runs the first and last few and bridges the rest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from diffcache.options import check_count
from diffcache.policies import DraftError, ForecastError, LatentChange, NoEvidence, ProbeChange
from diffcache.runtime.rows import rows_first
from diffcache.runtime.turn import Turn

from . import ports
from .base import ELSEWHERE, Attachment, Site
from .block_gates import BlockGates
from .block_ports import BlockPort, run_compiled
from .discovery import block_lists, is_unet
from .gathering import bridged, scattered
from .modulated import ModulatedInput
from .offloading import Offloading
from .output import Output, OutputAttachment
from .probing import ask, ask_ahead, keep, moved
from .recording import Recording, describe


@dataclass(frozen=True)
class BlockStack(Site):
    """Bypasses the blocks of a transformer between the first `head` and the last `tail`.

    Each list of blocks has one sink: its last bypassed block returns the list's input plus the
    residual that the bypassed blocks are forecast to add. What the parent adds between lists
    (control residuals) is thus in the input and is never counted twice. What the head adds, in the
    list where it ends, is the probe of First Block Cache. Where that never changes, as in a list
    that refines the text alone, the head grows into the next list.

    Args:
        head: blocks at the start that are always computed.
        tail: blocks at the end that are always computed.
        probe: "head", the head's residual at the last computed step; or "modulated", what the first
            block hands its attention, at the step before.
    """

    head: int = 1
    tail: int = 0
    probe: Literal["head", "modulated"] = "head"
    provides = frozenset({NoEvidence, ForecastError, LatentChange, ProbeChange, DraftError})

    def __post_init__(self) -> None:
        check_count("head", self.head, 1)
        check_count("tail", self.tail, 0)
        if self.probe not in ("head", "modulated"):
            raise ValueError(
                f"probe={self.probe!r} is not known; use probe='head' or probe='modulated'"
            )
        if self.head == 0 and self.probe == "head":
            object.__setattr__(self, "provides", self.provides - {ProbeChange})
        if self.tail == 0:
            # A draft is verified by the tail's last block.
            object.__setattr__(self, "provides", self.provides - {DraftError})

    def check(self, denoiser: nn.Module) -> None:
        name = type(denoiser).__name__
        lists = block_lists(denoiser)
        if is_unet(denoiser) or not lists:
            raise ValueError(
                f"{name} has no stack of transformer blocks for the block-stack site; {ELSEWHERE}"
            )
        total = sum(len(blocks) for _, blocks in lists)
        if self.head + self.tail >= total:
            several = f"{total} blocks; use head + tail <= {total - 1}"
            has = several if total > 1 else f"a single block; {ELSEWHERE}"
            raise ValueError(
                f"BlockStack(head={self.head}, tail={self.tail}) leaves nothing to bypass: {name} "
                f"has {has}"
            )

    def attach(self, denoiser: nn.Module, handlers: dict[int, Callable]) -> Attachment:
        return _BlockStackAttachment(self, denoiser, handlers)


class _BlockStackAttachment(Attachment):
    def __init__(self, site: BlockStack, denoiser: nn.Module, handlers: dict) -> None:
        self.key = id(denoiser)
        self.site = site
        self.lists = [list(blocks) for _, blocks in block_lists(denoiser)]
        self.blocks = [block for blocks in self.lists for block in blocks]
        self.recording = Recording(self.lists, site.head, site.tail)
        self.fallback = OutputAttachment(denoiser)
        self.turn: Turn | None = None
        self.entries: dict[int, dict[str, Any]] = {}
        self.head_entry: Tensor | None = None
        self.draft_error: Tensor | None = None
        modulated = site.probe == "modulated"
        self.modulated = ModulatedInput(self.lists[0][0], handlers) if modulated else None
        served = [(block, partial(self._serve, block)) for block in self.blocks]
        self.ports = ports.attach(denoiser, served, handlers, BlockPort)
        self.gates = BlockGates(self.blocks) if self.ports is None else None
        self.offloading = Offloading(self.blocks)

    def detach(self) -> None:
        if self.gates is not None:
            self.gates.lower()
        ports.detach(self.ports, self.blocks)
        if self.modulated is not None:
            self.modulated.close()

    def run(self, turn: Turn) -> Any:
        if self._cut_off(turn) or self.recording.blind or "unbridged" in turn.lane.memory:
            return self._without_blocks(turn)
        recorded = self.recording.plan is not None
        known = recorded and self._known(turn)
        if not known:
            turn.compute_all()
        elif self.ports is not None:
            return run_compiled(self.ports, self.recording, turn)
        self.turn, self.draft_error = turn, None
        self._settle(turn)
        try:
            with self.ports.opened() if self.ports is not None else nullcontext():
                output = turn.invoke(turn.args, turn.kwargs)
            # Every block that would have asked was left out of the call.
            if turn.mask is None:
                turn.compute_all()
            if self.draft_error is not None and turn.reject(self.draft_error):
                self.offloading.restore()
                self._settle(turn)
                output = turn.invoke(turn.args, turn.kwargs)
            if not recorded:
                self.recording.settle()
                self._take_in(turn)
            elif turn.keeps and turn.full and not (known or self._known(turn)):
                # Skip-layer guidance leaves blocks out of the calls of one branch.
                turn.lane.memory["unbridged"] = True
            if self.modulated is not None:
                keep(turn, self.modulated)
        finally:
            self.turn = self.head_entry = None
            self.offloading.restore()
            if self.modulated is not None:
                self.modulated.value = None
            self.entries.clear()
            self.recording.calls.clear()
        return output

    def _settle(self, turn: Turn) -> None:
        if self.gates is not None:
            self.gates.settle(turn, self.recording.plan)

    def _cut_off(self, turn: Turn) -> bool:
        """Whether the policy is to be asked from inside of a compiled region."""
        return self.ports is not None and (turn.run.in_forward or turn.verifies)

    def _known(self, turn: Turn) -> bool:
        keys = [*self.recording.plan.sinks, *(["last"] if turn.verifies else [])]
        return all(map(turn.can_forecast, keys))

    def _take_in(self, turn: Turn) -> None:
        """Stores what the recorded pass computed, as if its plan had been known from the start."""
        for call in self.recording.calls if self.recording.plan is not None else ():
            if call.kept:
                self._play(
                    call.block, lambda *_, call=call, **__: call.output, call.args, call.kwargs
                )
            else:
                turn.lane.memory[("output", id(call.block))] = call.described

    def _without_blocks(self, turn: Turn) -> Any:
        """Serves a denoiser whose blocks cannot be bypassed."""
        why = "the blocks are not each called once, through their own call and with the batch first"
        if self.recording.crossed:
            why = "blocks at the end read what bypassed ones at the start give"
        elif self._cut_off(turn):
            why = "a compiled graph does not stop to ask (compile_repeated_blocks() would let it)"
        turn.run.note(f"{why}, so whole outputs are forecast")
        if turn.run.method.policy.evidence not in Output.provides:
            turn.compute_all()
        return self.fallback.run(turn)

    def _serve(self, block: nn.Module, plain: Callable, args: tuple, kwargs: dict) -> Any:
        turn = self.turn
        if turn is None:
            return plain(*args, **kwargs)
        turn.in_model = False
        if self.modulated is not None and self.modulated.hidden and block is self.modulated.block:
            self.modulated.look(plain, args, kwargs)
        output = self._play(block, plain, args, kwargs)
        turn.in_model = turn.mask is None or turn.full
        return output

    def _play(self, block: nn.Module, plain: Callable, args: tuple, kwargs: dict) -> Any:
        """What stands for a call of `block` in the plan."""
        turn, plan = self.turn, self.recording.plan
        compute = partial(turn.compute, plain)
        if plan is None:
            return self.recording.record(block, compute, args, kwargs)
        role = plan.roles.get(id(block))
        if role is None:
            return compute(*args, **kwargs)
        if role.kind == "head":
            return self._probe(role, compute, args, kwargs)
        if role.kind == "last":
            return self._verify(role, compute, args, kwargs)
        if turn.mask is None:
            ask_ahead(turn, self.modulated, block, plain, args, kwargs)
            self._settle(turn)
        if role.source and not role.open:
            self.entries[role.list_index] = self.recording.inputs(role.list_index, args, kwargs)
        if turn.full:
            output = compute(*args, **kwargs)
            # Calls of one lane agree in all that shapes an output.
            if ("output", id(block)) not in turn.lane.memory:
                turn.lane.memory[("output", id(block))] = describe(output)
        elif turn.none:
            self.offloading.pass_over(block)
            described = turn.lane.memory[("output", id(block))]
            output = None if role.sink else described.fill(described.blank())
        else:
            described = turn.lane.memory[("output", id(block))]
            parts = scattered(described, plain, args, kwargs, turn.rows, turn.index())
            output = described.structure.fill(parts)
        return self._sink(block, role, output) if role.sink else output

    def _sink(self, block: nn.Module, role: Any, output: Any) -> Any:
        turn = self.turn
        described = turn.lane.memory[("output", id(block))]
        key = role.list_index
        entry = self.recording.matching(key, described, self.entries.get(key, {}))
        values: list[Tensor] = []
        if output is not None:
            values = [
                rows_first(out.clone() if start is None else out - start, turn.rows)
                for out, start in zip(described.tensors_of(output), entry, strict=True)
            ]
        if turn.full:
            turn.remember(key, values, own=True)
            return output
        forecast = turn.forecast(key)
        if not turn.none:
            turn.remember(key, values)
        bridges = [
            part if start is None else start + part.reshape(start.shape)
            for part, start in zip(forecast, entry, strict=True)
        ]
        if not turn.none:
            bridges = bridged(turn.mask, described.tensors_of(output), bridges)
        return described.fill(bridges)

    def _verify(self, role: Any, compute: Callable, args: tuple, kwargs: dict) -> Any:
        """Computes the last block, and measures how a draft of what it adds errs."""
        turn = self.turn
        output = compute(*args, **kwargs)
        if not turn.verifies:
            return output
        entry = self.recording.hidden_input(role.list_index, args, kwargs)
        added = self.recording.hidden_output(role.list_index, output, entry) - entry
        added = rows_first(added, turn.rows)
        # What was rejected is computed by a second run, which verifies nothing.
        if not turn.full and self.draft_error is None:
            truth = added.float()
            error = (turn.forecast("last")[0].float() - truth).abs() / (truth.abs() + 1e-10)
            self.draft_error = error.flatten(1).mean(1)
        if not turn.none:
            turn.remember("last", [added])
        return output

    def _probe(self, role: Any, plain: Callable, args: tuple, kwargs: dict) -> Any:
        turn = self.turn
        if not turn.run.in_forward or self.modulated is not None:
            return plain(*args, **kwargs)
        if role.first_head:
            self.head_entry = self.recording.hidden_input(role.list_index, args, kwargs)
        output = plain(*args, **kwargs)
        if not role.last_head:
            return output
        after = self.recording.hidden_output(role.list_index, output, self.head_entry)
        residual = rows_first(after - self.head_entry, turn.rows)
        known = ask(turn, residual)
        if moved(turn, self.recording):
            self._settle(turn)
            return output
        self._settle(turn)
        if known is not None and not turn.full:
            (residual,) = bridged(turn.mask, [residual], [known])
        turn.lane.memory["probe"] = residual
        return output
