"""The last difference of guidance branches, its low and high frequencies weighted apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffcache.kernels.transfer import sent
from diffcache.options import are_numbers, check_number

from .base import Predictor

Range = tuple[float, float]


@dataclass(frozen=True)
class FrequencySplit(Predictor):
    """FasterCache's weighted bias (ICLR 2025), for differences uncond − cond.

    At every step after the one computed last, low frequencies grow by `alpha_low` while the
    timestep is inside `low`, and high ones by `alpha_high` inside `high`: compounding, as the
    released code does. Low is what lies within a fifth of the shorter side of the spectrum's
    centre. Values without image axes (fewer than `[rows, channels, height, width]`) are repeated
    as they are, which is ours.

    Args:
        alpha_low, alpha_high: factors a step; published 1.1.
        low, high: timesteps between which they apply, both exclusive.
        timesteps: the run's, by step; `over` sets them.
    """

    alpha_low: float = 1.1
    alpha_high: float = 1.1
    low: Range = (99, 901)
    high: Range = (-1, 301)
    timesteps: tuple[float, ...] = field(default=(), metadata={"option": False})
    coordinate: ClassVar[Literal["noise", "step"]] = "step"
    differences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if not are_numbers(value) or len(value) != 2:
                raise ValueError(f"{name}={value!r} is no pair of timesteps; try {name}=(99, 901)")
        check_number("alpha_low", self.alpha_low, 1.1)
        check_number("alpha_high", self.alpha_high, 1.1)

    @property
    def anchors(self) -> int:
        return 1

    def over(self, timesteps: tuple[float, ...]) -> FrequencySplit:
        return replace(self, timesteps=timesteps)

    def coefficients(self, times: Tensor, t: Tensor) -> Tensor:
        """Weights `[rows, 2]` of the newest value's low and of its high frequencies."""
        steps = torch.arange(len(self.timesteps))
        since = (times[:, :1] < steps) & (steps <= t[:, None])
        clock = torch.tensor(self.timesteps, dtype=torch.float64)
        weights = [
            alpha ** (since & (lower < clock) & (clock < upper)).sum(1, dtype=torch.float64)
            for alpha, (lower, upper) in ((self.alpha_low, self.low), (self.alpha_high, self.high))
        ]
        return torch.stack(weights, 1)

    def predict(
        self, values: Sequence[Tensor], weights: Sequence[Sequence[float]] | Tensor
    ) -> Tensor:
        newest = values[0]
        if newest.ndim < 4:
            return newest.clone()
        weights = torch.as_tensor(weights, dtype=torch.float32)
        low, high = sent(weights, newest.device).unbind(1)
        shape = (-1, *[1] * (newest.ndim - 1))
        inside = sent(_low(*newest.shape[-2:]), newest.device)
        gain = torch.where(inside, low.reshape(shape), high.reshape(shape))
        real = newest.to(torch.promote_types(newest.dtype, torch.float32))
        return torch.fft.ifft2(torch.fft.fft2(real) * gain).real.to(newest.dtype)


@lru_cache(maxsize=16)
def _low(height: int, width: int) -> Tensor:
    """Which entries `[height, width]` of an unshifted spectrum are low frequencies."""
    rows = torch.fft.fftfreq(height, 1 / height)
    columns = torch.fft.fftfreq(width, 1 / width)
    return rows[:, None] ** 2 + columns**2 <= (min(height, width) // 5) ** 2
