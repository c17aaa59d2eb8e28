"""The default policy: the measured error of a forecast, spent from a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import ForecastError, Policy, State, Step, check_number, per_sample


@dataclass(frozen=True)
class ErrorBudget(Policy):
    """Skips while the error predicted for the skipped steps sums to less than `tolerance`.

    Whenever a step is computed, the forecast that would have replaced it is compared with the
    truth. For a forecast that is linear in the scheduler's coordinate this is the third-order
    difference of the latents of AdaptiveDiffusion (arXiv 2410.09873) with the scheduler's own
    steps divided out; for a quadratic one, the third-order difference of the predictions. From
    these errors that of the steps that follow is predicted, and a step's weight is how much of it
    reaches the sample.

    Args:
        tolerance: weighted relative error a sample may accumulate between two computed steps, or
            one such number a sample; None or 0 computes every step.
    """

    tolerance: float | tuple[float | None, ...] = 0.08
    evidence: ClassVar[type[ForecastError]] = ForecastError

    def __post_init__(self) -> None:
        several = isinstance(self.tolerance, (tuple, list))
        for tolerance in self.tolerance if several else (self.tolerance,):
            if tolerance is not None:
                check_number("tolerance", tolerance, 0.08)

    def init(self, samples: int) -> State:
        return {
            "tolerance": per_sample("tolerance", self.tolerance, samples),
            "spent": torch.zeros(samples, dtype=torch.float64),
        }

    def decide(self, step: Step, evidence: ForecastError, state: State) -> tuple[Tensor, State]:
        spent = state["spent"].add(evidence.predicted, alpha=step.weight)
        # Asked this way round, an error that cannot be predicted (NaN) computes.
        return spent.lt(state["tolerance"]).logical_not_(), {**state, "spent": spent}

    def observe(self, step: Step, error: Tensor, computed: Tensor, state: State) -> State:
        return {**state, "spent": state["spent"].masked_fill(computed, 0.0)}
