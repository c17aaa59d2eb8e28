"""The denoiser's whole output: any denoiser, one tensor to keep, the largest saving a skip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffcache.policies import ForecastError, LatentChange, NoEvidence, PredictedChange
from diffcache.runtime.names import Names
from diffcache.runtime.rows import merge, take, tensor_leaves
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

    def attach(self, denoiser: nn.Module, handlers: dict[int, Callable]) -> Attachment:
        return OutputAttachment(denoiser, self.residual)


class OutputAttachment(Attachment):
    """The output site on one denoiser."""

    def __init__(self, denoiser: nn.Module, residual: bool = False) -> None:
        self.key = id(denoiser)
        self.residual = residual
        self._names = Names(plain_module(denoiser).forward)

    def run(self, turn: Turn) -> Any:
        if not turn.can_forecast("output"):
            turn.compute_all()
        if turn.full:
            output = turn.invoke(turn.args, turn.kwargs)
            self._remember(turn, output)
            return output
        structure: Structure = turn.lane.memory["structure"]
        forecast = self._shifted(turn, turn.forecast("output"), 1)
        if turn.none:
            return structure.fill(forecast)
        index = turn.index()
        computed = turn.invoke(
            take(turn.args, turn.rows, index), take(turn.kwargs, turn.rows, index)
        )
        merged = [
            merge(part, whole, index)
            for part, whole in zip(tensor_leaves(computed), forecast, strict=True)
        ]
        turn.remember("output", self._shifted(turn, merged, -1))
        return structure.fill(merged)

    def _shifted(self, turn: Turn, leaves: list[Tensor], sign: int) -> list[Tensor]:
        """`leaves` plus or minus the sample, where the site keeps residuals."""
        if not self.residual:
            return leaves
        sample = self._names(turn.args, turn.kwargs)[self._names.first]
        return [
            torch.add(leaf, sample, alpha=sign) if leaf.shape == sample.shape else leaf
            for leaf in leaves
        ]

    def _remember(self, turn: Turn, output: Any) -> None:
        leaves: list[Tensor] = tensor_leaves(output)
        # An output with a tensor that has no batch axis cannot be told row from row.
        if leaves and all(leaf.ndim and leaf.shape[0] == turn.rows for leaf in leaves):
            turn.remember("output", self._shifted(turn, leaves, -1))
            # Calls of one lane agree in `return_dict` and all else that shapes the output.
            if "structure" not in turn.lane.memory:
                turn.lane.memory["structure"] = Structure(output)
