"""Polynomial extrapolation through the newest anchors, on any grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffcache.options import is_count

from .base import Predictor


@dataclass(frozen=True)
class Newton(Predictor):
    """The polynomial of degree `order` through the newest `order + 1` values (Newton/Lagrange).

    Exact on polynomials up to `order` on uneven grids.
    """

    order: int = 1

    def __post_init__(self) -> None:
        if not is_count(self.order) or self.order > 3:
            raise ValueError(f"order={self.order!r} is not one of 0, 1, 2, 3; try order=1")

    @property
    def anchors(self) -> int:
        return self.order + 1

    def coefficients(self, times: Tensor, t: Tensor) -> Tensor:
        times = times[:, : self.anchors]
        count = times.shape[1]
        if count == 1:
            return torch.ones_like(times)
        if count == 2:
            newest, older = times.unbind(1)
            slope = (t - newest) / (newest - older)
            return torch.stack([1 + slope, -slope], 1)
        reach = (t[:, None] - times)[:, None, :]
        between = times[:, :, None] - times[:, None, :]
        itself = torch.eye(count, dtype=torch.bool)
        return (reach / between.masked_fill(itself, 1)).masked_fill(itself, 1).prod(2)


@dataclass(frozen=True)
class Reuse(Newton):
    """Repeats the newest value."""

    order: int = 0


def adams_bashforth(steps: int) -> Newton:
    """AB-Cache's linear relation between `steps` consecutive outputs, for any grid.

    One step ahead on a uniform grid its weights are (−1)^(j+1) C(steps, j), which are those of the
    polynomial through the values; on uneven grids the polynomial is the only reading that keeps
    the relation's order, so this is `Newton(steps - 1)`.
    """
    return Newton(steps - 1)
