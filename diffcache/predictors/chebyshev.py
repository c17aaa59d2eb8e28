"""A regularised global fit: Chebyshev polynomials by ridge regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffcache.options import check_count, is_count, is_number

from .base import Predictor
from .newton import Newton

# `combine` reads at most this many tensors in one pass.
_ANCHORS = 8


@dataclass(frozen=True)
class ChebyshevRidge(Predictor):
    """Spectrum's φ(τ)ᵀ (ΦᵀΦ + λI)⁻¹ Φᵀ F with τ = 2t/T − 1 and t the step (CVPR 2026).

    All coefficients are shrunk, the constant one too, so the weights sum to a little under one: as
    published. Keeping no more than the newest eight values is ours.

    Args:
        degree: of the polynomial; published 4.
        ridge: λ; published 0.1.
        horizon: T, the step count that τ is scaled by; published 50, whatever the run's own.
        blend: share of the fit; the rest is Newton's line through the two newest values. Published
            between 0.5 and 1.
    """

    degree: int = 4
    ridge: float = 0.1
    horizon: int = 50
    blend: float = 0.5
    coordinate: ClassVar[Literal["noise", "step"]] = "step"

    def __post_init__(self) -> None:
        if not is_count(self.degree, 1) or self.degree >= _ANCHORS:
            raise ValueError(f"degree={self.degree!r} is not one of 1 to 7; try degree=4")
        if not is_number(self.ridge) or not self.ridge > 0:
            raise ValueError(f"ridge={self.ridge!r} is not a positive number; try ridge=0.1")
        check_count("horizon", self.horizon, 50, least=1)
        if not is_number(self.blend) or not 0 <= self.blend <= 1:
            raise ValueError(f"blend={self.blend!r} is not between 0 and 1; try blend=0.5")

    @property
    def anchors(self) -> int:
        return _ANCHORS

    def _basis(self, t: Tensor) -> Tensor:
        """T₀ to T_degree at `t`, `[..., degree + 1]`."""
        tau = 2 * t / self.horizon - 1
        terms = [torch.ones_like(tau), tau]
        while len(terms) <= self.degree:
            terms.append(2 * tau * terms[-1] - terms[-2])
        return torch.stack(terms, -1)

    def coefficients(self, times: Tensor, t: Tensor) -> Tensor:
        times = times[:, : self.anchors]
        design = self._basis(times)
        penalty = self.ridge * torch.eye(self.degree + 1, dtype=times.dtype)
        gram = design.mT @ design + penalty
        fit = design @ torch.linalg.solve(gram, self._basis(t)[:, :, None])
        weights = self.blend * fit[:, :, 0]
        line = Newton(1).coefficients(times, t)
        weights[:, : line.shape[1]] += (1 - self.blend) * line
        return weights
