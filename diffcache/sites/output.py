"""The denoiser's whole output: any denoiser, one tensor to keep, the largest saving a skip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffcache.policies import ForecastError, LatentChange, NoEvidence
from diffcache.runtime.rows import by_rows, merge, take
from diffcache.runtime.turn import Turn

from .base import Attachment, Site
from .structure import Structure


@dataclass(frozen=True)
class Output(Site):
    """Skips the denoiser call itself; mixed steps compute the gathered rows only."""

    provides = frozenset({NoEvidence, ForecastError, LatentChange})

    def attach(self, denoiser: nn.Module, handlers: dict[int, Callable]) -> Attachment:
        return OutputAttachment(denoiser)


class OutputAttachment(Attachment):
    """The output site on one denoiser."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.key = id(denoiser)

    def run(self, turn: Turn) -> Any:
        if not turn.can_forecast("output"):
            turn.compute_all()
        if turn.full:
            output = turn.invoke(turn.args, turn.kwargs)
            self._remember(turn, output)
            return output
        forecast = turn.forecast("output")
        if turn.none:
            return self._fill(turn, forecast)
        index = turn.index()
        computed = turn.invoke(*take((turn.args, turn.kwargs), turn.rows, index))
        merged = [
            merge(part, whole, index)
            for part, whole in zip(by_rows(computed, turn.listed), forecast, strict=True)
        ]
        turn.remember("output", merged)
        return self._fill(turn, merged)

    def _fill(self, turn: Turn, values: list[Tensor]) -> Any:
        leaves = [row for value in values for row in value] if turn.listed else values
        return turn.lane.memory["structure"].fill(leaves)

    def _remember(self, turn: Turn, output: Any) -> None:
        leaves = by_rows(output, turn.listed)
        # An output with a tensor that has no batch axis cannot be told row from row.
        if leaves and all(leaf.ndim and leaf.shape[0] == turn.rows for leaf in leaves):
            turn.remember("output", leaves)
            # Calls of one lane agree in `return_dict` and all else that shapes the output.
            if "structure" not in turn.lane.memory:
                turn.lane.memory["structure"] = Structure(output)
