"""The best linear forecast of a value that varies as smoothly as predictions do."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from diffcache.options import check_switch, is_count, is_number

from .base import Predictor

# Below the rounding of bf16, whose relative variance is 1e-6, weights must not amplify.
_NUGGET = 1e-6


@dataclass(frozen=True)
class Kriging(Predictor):
    """Ordinary kriging: of all weights that sum to one, those with the least expected error.

    Values are taken for a random function of constant, unknown mean, and of Matérn-3/2
    covariance, (1 + √3 d/l) exp(−√3 d/l) over the distance d (Rasmussen and Williams, Gaussian
    Processes for Machine Learning, 2006, eq. 4.17). A short way ahead this is a line or a parabola
    through the anchors; further ahead the slope is trusted less, and far ahead the mean is left.

    Args:
        points: how many computed values it reads.
        length: the distance l over which values stay alike, as a part of the run's coordinate.
        corrects: whether a computed step takes back what the skipped ones before it left the sample
            off by, where whole predictions are forecast and what the sampler does with them is
            known (`correction`). Keeps one value more.
        damps: whether forecasts of whole predictions go less far from the newest value where the
            last one went the wrong way (`damping`).
    """

    points: int = 3
    length: float = 0.6
    corrects: bool = True
    damps: bool = True

    def __post_init__(self) -> None:
        if not is_count(self.points, 1) or self.points > 3:
            raise ValueError(f"points={self.points!r} is not one of 1, 2, 3; try points=3")
        if not is_number(self.length) or not self.length > 0:
            raise ValueError(f"length={self.length!r} is not above 0; try length=0.6")
        check_switch("corrects", self.corrects)
        check_switch("damps", self.damps)

    @property
    def anchors(self) -> int:
        return self.points

    @property
    def needed(self) -> int:
        return min(2, self.points)

    def covariance(self, distance: Tensor) -> Tensor:
        scaled = distance.abs() * (sqrt(3) / self.length)
        return (1 + scaled) * (-scaled).exp()

    def _solve(self, times: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weights with the multiplier of their sum `[rows, K + 1]`, and the right-hand side."""
        times = times[:, : self.anchors]
        rows, count = times.shape
        among = self.covariance(times[:, :, None] - times[:, None, :])
        system = torch.ones(rows, count + 1, count + 1, dtype=torch.float64)
        system[:, :count, :count] = among + _NUGGET * torch.eye(count, dtype=torch.float64)
        system[:, count, count] = 0.0
        wanted = torch.ones(rows, count + 1, dtype=torch.float64)
        wanted[:, :count] = self.covariance(t[:, None] - times)
        return torch.linalg.solve(system, wanted), wanted

    def coefficients(self, times: Tensor, t: Tensor) -> Tensor:
        return self._solve(times, t)[0][:, :-1]

    def growth(self, times: Tensor, t: Tensor) -> Tensor:
        """The expected error `[rows]` of the forecast, in units of the values' own variation."""
        weights, wanted = self._solve(times, t)
        return (1 - (weights * wanted).sum(1)).clamp(min=0).sqrt()
