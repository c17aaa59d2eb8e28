"""The computed steps that a calibration found best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import ClassVar

from torch import Tensor

from .base import ForecastError, Policy, State, Step
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
        return {"spent": [0.0] * samples}

    def decide(self, step: Step, evidence: ForecastError, state: State) -> tuple[list[bool], State]:
        pairs = zip(state["spent"], evidence.predicted, strict=True)
        # An error that cannot be predicted (NaN) is none that could be held against the plan.
        spent = [old + (0.0 if isnan(error) else step.weight * error) for old, error in pairs]
        if self.schedules is None or step.index in self._plan(step.total):
            return [True] * len(spent), state
        return [self.veto is not None and total > self.veto for total in spent], {"spent": spent}

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        pairs = zip(state["spent"], computed, strict=True)
        return {"spent": [0.0 if renewed else total for total, renewed in pairs]}

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
