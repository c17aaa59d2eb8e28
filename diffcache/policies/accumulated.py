"""Skip until the changes that a policy has let pass would add up to too much."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffcache.options import are_numbers, check_number

from .base import Evidence, Policy, PredictedChange, ProbeChange, State, Step
from .statistics import Statistics


@dataclass(frozen=True)
class Accumulated(Policy):
    """Adds up a change a step and computes where the sum would reach `threshold`."""

    threshold: float = 0.05

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0.05)

    def init(self, samples: int) -> State:
        return {"spent": torch.zeros(samples, dtype=torch.float64)}

    @abstractmethod
    def change(self, evidence: Evidence) -> Tensor:
        """What skipping this step adds, `[samples]`; NaN computes."""

    def decide(self, step: Step, evidence: Evidence, state: State) -> tuple[Tensor, State]:
        spent = state["spent"] + self.change(evidence)
        return ~(spent < self.threshold), {"spent": spent}

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        return {"spent": state["spent"].masked_fill(torch.as_tensor(computed), 0.0)}


@dataclass(frozen=True)
class AccumulatedPrediction(Accumulated):
    """EasyCache: adds up the predicted relative change of the output (arXiv 2507.02860)."""

    evidence: ClassVar[type[PredictedChange]] = PredictedChange

    def change(self, evidence: PredictedChange) -> Tensor:
        return evidence.change


@dataclass(frozen=True)
class AccumulatedProbe(Accumulated):
    """TeaCache: adds up a polynomial of the probe's change from step to step (arXiv 2411.19108).

    Args:
        threshold: δ.
        polynomial: coefficients, the highest power first; None adds up the change as it is.
    """

    threshold: float = 0.25
    polynomial: tuple[float, ...] | None = None
    evidence: ClassVar[type[ProbeChange]] = ProbeChange
    measured: ClassVar[str] = "polynomial"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.polynomial is not None and not are_numbers(self.polynomial):
            raise ValueError(
                f"polynomial={self.polynomial!r} is no list of coefficients; "
                "try polynomial=(1.0, 0.0)"
            )

    def change(self, evidence: ProbeChange) -> Tensor:
        if self.polynomial is None:
            return evidence.change
        total = torch.zeros_like(evidence.change)
        for coefficient in self.polynomial:
            total = total * evidence.change + coefficient
        return total

    def fit(self, statistics: Statistics) -> AccumulatedProbe:
        """The policy with the polynomial of degree 4 that was measured, by least squares.

        The residuals' change stands for the output's: that is ours.
        """
        probe = statistics.change("probe", lag=1)
        values = [statistics.change(key, lag=1) for key in statistics.changes if key != "probe"]
        known = [i for i, x in enumerate(probe) if x is not None and all(v[i] for v in values)]
        x = torch.tensor([probe[i] for i in known], dtype=torch.float64)
        y = torch.tensor([sum(v[i] for v in values) / len(values) for i in known])
        degree = min(4, len(known) - 1)
        if degree < 1:
            raise ValueError(
                f"{len(known)} steps are too few to fit; calibrate with num_inference_steps=28"
            )
        # Scaled to 1, because small changes to the fourth power would vanish beside the constant.
        scale = x.max()
        powers = torch.stack([(x / scale) ** n for n in range(degree, -1, -1)], 1)
        found = torch.linalg.lstsq(powers, y.double()[:, None], driver="gelsd").solution[:, 0]
        found = found / scale ** torch.arange(degree, -1, -1)
        return replace(self, polynomial=tuple(found.tolist()))
