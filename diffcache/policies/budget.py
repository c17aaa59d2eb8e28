"""The default policy: the measured error of a forecast, spent from a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import ForecastError, Policy, State, Step, per_sample


@dataclass(frozen=True)
class ErrorBudget(Policy):
    """Skips while the error predicted for the skipped steps sums to less than `tolerance`.

    Whenever a step is computed, the forecast that would have replaced it is compared with the
    truth. For a forecast that is linear in the scheduler's coordinate this is the third-order
    difference of the latents of AdaptiveDiffusion (arXiv 2410.09873) with the scheduler's own
    steps divided out; for a quadratic one, the third-order difference of the predictions. Error
    over growth is a rate; on the steps that follow, rate times growth is the error that skipping
    would make, and the step's weight is how much of it reaches the sample.

    Args:
        tolerance: weighted relative error a sample may accumulate between two computed steps, or
            one such number a sample; None or 0 computes every step.
        smoothing: weight of the newest measurement in the running rate, in (0, 1].
    """

    tolerance: float | tuple[float | None, ...] = 0.08
    smoothing: float = 0.7
    evidence: ClassVar[type[ForecastError]] = ForecastError

    def __post_init__(self) -> None:
        if not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing={self.smoothing!r} is not in (0, 1]; try smoothing=0.7")

    def init(self, samples: int) -> State:
        return {
            "tolerance": per_sample("tolerance", self.tolerance, samples),
            "rate": torch.full((samples,), float("nan"), dtype=torch.float64),
            "spent": torch.zeros(samples, dtype=torch.float64),
            "growth": torch.full((samples,), float("nan"), dtype=torch.float64),
        }

    def decide(self, step: Step, evidence: ForecastError, state: State) -> tuple[Tensor, State]:
        spent = state["spent"] + step.weight * state["rate"] * evidence.growth
        # Asked this way round, a rate that was never measured (NaN) computes.
        compute = ~(spent < state["tolerance"])
        return compute, {**state, "spent": spent, "growth": evidence.growth}

    def observe(self, step: Step, error: Tensor, computed: Tensor, state: State) -> State:
        measured = error / state["growth"]
        old = torch.where(state["rate"].isnan(), measured, state["rate"])
        rate = torch.where(computed & ~measured.isnan(), old.lerp(measured, self.smoothing), old)
        return {**state, "rate": rate, "spent": state["spent"].masked_fill(computed, 0.0)}
