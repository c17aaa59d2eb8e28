"""Forecasts that read backward differences as derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial, inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffcache.options import is_count, is_number

from .base import Predictor


@dataclass(frozen=True)
class Taylor(Predictor):
    """TaylorSeer's Σ Dⁱ kⁱ/i! with k steps since the last computed one (arXiv 2503.06923).

    D⁰ is the newest value, Dⁱ the change of Dⁱ⁻¹ between the two newest computed steps over the
    gap between them. Backward differences are not derivatives at the newest point, so the rule is
    not exact on quadratics; it is damped, which serves it well in low precision.
    """

    order: int = 1
    coordinate: ClassVar[Literal["noise", "step"]] = "step"

    def __post_init__(self) -> None:
        if not is_count(self.order, 1) or self.order > 3:
            raise ValueError(f"order={self.order!r} is not one of 1, 2, 3; try order=1")

    @property
    def anchors(self) -> int:
        return self.order + 1

    def basis(self, k: Tensor, order: int) -> Tensor:
        """What multiplies D^order / order! at distance `k`."""
        return k**order

    def coefficients(self, times: Tensor, t: Tensor) -> Tensor:
        times = times[:, : self.anchors]
        rows, count = times.shape
        k = t - times[:, 0]
        gaps = times[:, :-1] - times[:, 1:]
        # differences[:, j] holds Dⁱ as it stood at the j-th newest anchor, in terms of the values.
        differences = torch.eye(count, dtype=times.dtype).expand(rows, count, count)
        weights = differences[:, 0].clone()
        for order in range(1, count):
            differences = (differences[:, :-1] - differences[:, 1:]) / gaps[
                :, : count - order, None
            ]
            weights += differences[:, 0] * (self.basis(k, order) / factorial(order))[:, None]
        return weights


@dataclass(frozen=True)
class Hermite(Taylor):
    """HiCache: kⁱ becomes scaleⁱ Hᵢ(scale · k), Hᵢ the physicists' Hermite polynomial.

    Published scale 0.5 (FLUX.1-dev; arXiv 2508.16984). H₂ has a constant term, so at order 2 the
    forecast at k = 0 is not the newest value: as published.
    """

    scale: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.scale) or not 0 < self.scale < inf:
            raise ValueError(f"scale={self.scale!r} is not a positive number; try scale=0.5")

    def basis(self, k: Tensor, order: int) -> Tensor:
        x = self.scale * k
        older, value = torch.ones_like(x), 2 * x
        for n in range(1, order):
            older, value = value, 2 * x * value - 2 * n * older
        return self.scale**order * value
