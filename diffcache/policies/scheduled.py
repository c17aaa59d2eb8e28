"""The computed steps that a calibration found best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .base import ForecastError, Policy, State, Step, compute_all
from .statistics import Statistics


@dataclass(frozen=True)
class Scheduled(Policy):
    """Computes the steps that a calibration planned for a share of the run.

    Args:
        compute: the share of a run's steps to compute; the plan for the nearest number is taken.
        veto: weighted relative error a sample may accumulate between two computed steps before it
            is computed against the plan, as `ErrorBudget` has it; None leaves the plan alone.
        schedules: steps to compute, for each number of them; None computes all.
    """

    compute: float = 0.5
    veto: float | None = None
    schedules: tuple[tuple[int, ...], ...] | None = None
    evidence: ClassVar[type[ForecastError]] = ForecastError
    measured: ClassVar[str] = "schedules"
    measured_is_needed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.compute <= 1:
            raise ValueError(f"compute={self.compute!r} is not a share of a run; try compute=0.5")
        if self.veto is not None and not self.veto > 0:
            raise ValueError(f"veto={self.veto!r} is not above 0; try veto=0.5, or None")

    def init(self, samples: int) -> State:
        return {"spent": torch.zeros(samples, dtype=torch.float64)}

    def decide(self, step: Step, evidence: ForecastError, state: State) -> tuple[Tensor, State]:
        spent = state["spent"].add(evidence.predicted.nan_to_num(nan=0.0), alpha=step.weight)
        if self.schedules is None or step.index in self._plan(step.total):
            return compute_all(len(spent)), state
        vetoed = (
            torch.zeros(len(spent), dtype=torch.bool) if self.veto is None else spent > self.veto
        )
        return vetoed, {"spent": spent}

    def observe(self, step: Step, error: Tensor, computed: Tensor, state: State) -> State:
        return {"spent": state["spent"].masked_fill(computed, 0.0)}

    def _plan(self, total: int) -> frozenset[int]:
        """The steps to compute; a run of another length is planned in proportion."""
        longest = self.schedules[-1]
        wanted = self.compute * len(longest)
        plan = min(self.schedules, key=lambda schedule: abs(len(schedule) - wanted))
        return frozenset(round(i * (total - 1) / max(longest[-1], 1)) for i in plan)

    def fit(self, statistics: Statistics) -> Scheduled:
        """The policy with the schedules that were planned."""
        if not statistics.schedules:
            raise ValueError(
                "the calibration has no schedules; call diffcache.calibrate(pipe, prompts)"
            )
        return replace(self, schedules=statistics.schedules)
