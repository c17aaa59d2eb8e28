"""The denoiser's whole output: any denoiser, one tensor to keep, the largest saving a skip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffcache.options import check_switch
from diffcache.policies import ForecastError, LatentChange, NoEvidence, PredictedChange
from diffcache.runtime.names import Names
from diffcache.runtime.rows import by_rows, merge, take, tensor_leaves
from diffcache.runtime.turn import Turn

from .base import Attachment, Site
from .discovery import plain_module
from .structure import Structure


@dataclass(frozen=True)
class Output(Site):
    """Skips the denoiser call itself; mixed steps compute the gathered rows only.

    Args:
        residual: forecast the output minus the sample, where their shapes match, and add the
            sample that a skipped call is given.
    """

    residual: bool = False
    provides = frozenset({NoEvidence, ForecastError, LatentChange, PredictedChange})

    def __post_init__(self) -> None:
        check_switch("residual", self.residual)

    @property
    def keeps_predictions(self) -> bool:
        return not self.residual

    def attach(self, denoiser: nn.Module, handlers: dict[int, Callable]) -> Attachment:
        return OutputAttachment(denoiser, self.residual)


class OutputAttachment(Attachment):
    """The output site on one denoiser."""

    def __init__(self, denoiser: nn.Module, residual: bool = False) -> None:
        self.key = id(denoiser)
        self.residual = residual
        self._signal = "residual" if residual else "output"
        self._names = Names(plain_module(denoiser).forward)

    def run(self, turn: Turn) -> Any:
        rows = 1 if "lone" in turn.lane.memory else turn.rows
        full = turn.full
        if not (full or turn.can_forecast(self._signal, rows)):
            turn.compute_all()
            full = True
        if full:
            output = turn.invoke(turn.args, turn.kwargs)
            if leaves := self._leaves(turn, output) or self._lone(turn, output):
                self._remember(turn, leaves)
            return output
        forecast = turn.forecast(self._signal)
        if self.residual:
            forecast = self._shifted(turn, forecast, 1)
        if "lone" in turn.lane.memory:
            forecast = [value[0] for value in forecast]
        if turn.none:
            return self._fill(turn, forecast)
        index = turn.index()
        computed = turn.invoke(*take((turn.args, turn.kwargs), turn.rows, index, turn.listed))
        merged = [
            merge(part, whole, index)
            for part, whole in zip(by_rows(computed, turn.listed), forecast, strict=True)
        ]
        whole = self._fill(turn, merged)
        self._remember(turn, merged)
        return whole

    def _remember(self, turn: Turn, leaves: list[Tensor]) -> None:
        if self.residual:
            leaves = self._shifted(turn, leaves, -1)
        turn.remember(self._signal, leaves, corrected=not self.residual)

    def _fill(self, turn: Turn, values: list[Tensor]) -> Any:
        leaves = [row for value in values for row in value] if turn.listed else values
        return turn.lane.memory["structure"].fill(leaves)

    def _shifted(self, turn: Turn, leaves: list[Tensor], sign: int) -> list[Tensor]:
        """`leaves` plus or minus the sample, where their shapes match."""
        given = self._names(turn.args, turn.kwargs)[self._names.first]
        sample = by_rows(given, turn.listed)[0]
        return [
            torch.add(leaf, sample, alpha=sign) if leaf.shape == sample.shape else leaf
            for leaf in leaves
        ]

    def _lone(self, turn: Turn, output: Any) -> list[Tensor]:
        """The tensors `[1, ...]` of an output without a batch axis, if it is of one sample."""
        leaves = tensor_leaves(output) if turn.run.samples == 1 else []
        if leaves:
            turn.lane.memory["lone"] = True
            turn.lane.memory.setdefault("structure", Structure(output))
        return [leaf[None] for leaf in leaves]

    def _leaves(self, turn: Turn, output: Any) -> list[Tensor]:
        """The tensors `[rows, ...]` of a full output, whose structure is kept for `_fill`.

        None of them where one has no batch axis: rows could not be told apart.
        """
        leaves = by_rows(output, turn.listed)
        for leaf in leaves:
            if not leaf.ndim or leaf.shape[0] != turn.rows:
                return []
        # Calls of one lane agree in `return_dict` and all else that shapes the output.
        if leaves and "structure" not in turn.lane.memory:
            turn.lane.memory["structure"] = Structure(output)
        return leaves
