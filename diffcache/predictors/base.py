"""The contract of a predictor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffcache.kernels import combine


class Predictor(ABC):
    """Forecasts a value at `t` from the values computed at `times`.

    Attributes:
        anchors: how many computed values it reads at most.
        coordinate: what `times` and `t` are: "noise", 1 − ∛(σ/α) scaled to rise from 0 to 1 over a
            run, or "step", the index of the step.
        differences: whether it only fits differences of guidance branches.
        corrects: whether samples are corrected for what its forecasts turn out to be off by.
        damps: whether its forecasts go less far where the last one went the wrong way.
    """

    coordinate: ClassVar[Literal["noise", "step"]] = "noise"
    differences: ClassVar[bool] = False
    corrects: ClassVar[bool] = False
    damps: ClassVar[bool] = False

    @property
    @abstractmethod
    def anchors(self) -> int: ...

    @property
    def needed(self) -> int:
        """How many computed values `growth` can be told from."""
        return self.anchors

    @abstractmethod
    def coefficients(self, times: Tensor, t: Tensor) -> Tensor:
        """Weights `[rows, K]`, float64, of values computed at `times` `[rows, K]`, newest first.

        `t` is `[rows]`. K may be less than `anchors` early in a run; times of a row differ.
        """

    def over(self, timesteps: tuple[float, ...]) -> Predictor:
        """The predictor for a run with these timesteps, one a step; most do not look at them."""
        return self

    def growth(self, times: Tensor, t: Tensor) -> Tensor:
        """Modelled growth `[rows]` of the forecast's error: ∏ |t − t_k| over its anchors.

        This is the node polynomial of the interpolation error, so error / growth estimates a
        derivative, which changes slowly.
        """
        return (t[:, None] - times[:, : self.anchors]).abs().prod(1)

    def predict(
        self, values: Sequence[Tensor], weights: Sequence[Sequence[float]] | Tensor
    ) -> Tensor:
        """Forecast `[rows, ...]` from `values` `[rows, ...]`, newest first.

        `weights` is `[rows, K]`, or, as numbers, `[1, K]` where all rows share them.
        """
        if not isinstance(weights, Tensor):
            weights = weights[0] if len(weights) == 1 else torch.tensor(weights)
        return combine(values, weights)
