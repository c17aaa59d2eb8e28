"""Skip while calibrated magnitudes say that a residual may be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffcache.options import are_numbers, check_number

from .base import NoEvidence, Policy, State, Step, compute_all
from .statistics import Statistics


@dataclass(frozen=True)
class MagnitudeRatios(Policy):
    """MagCache: repeats a residual while Σ |1 − ∏ γ| since it was computed is small.

    γ_i = mean ‖r_i‖ / ‖r_{i−1}‖ is measured once (arXiv 2506.09045), so that a run's decisions are
    known without looking at it.

    Args:
        threshold: the sum that is not exceeded.
        max_skips: steps skipped in a row at most.
        retention: share of a run at its start that is computed.
        ratios: γ a step, taken at the nearest step where a run has another count; None computes.
    """

    threshold: float = 0.06
    max_skips: int = 3
    retention: float = 0.2
    ratios: tuple[float, ...] | None = None
    measured: ClassVar[str] = "ratios"
    measured_is_needed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0.06)
        check_number("max_skips", self.max_skips, 3)
        check_number("retention", self.retention, 0.2)
        if self.ratios is not None and not are_numbers(self.ratios):
            raise ValueError(
                f"ratios={self.ratios!r} is no list of ratios; try ratios=(1.0, 0.98, 0.97)"
            )

    def init(self, samples: int) -> State:
        zeros = torch.zeros(samples, dtype=torch.float64)
        return {"ratio": zeros + 1, "error": zeros, "skips": zeros}

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        if self.ratios is None or step.index < int(self.retention * step.total + 0.5):
            return compute_all(evidence.samples), state
        ratio = state["ratio"] * self._ratio(step)
        error = state["error"] + (1 - ratio).abs()
        skips = state["skips"] + 1
        skip = (error <= self.threshold) & (skips <= self.max_skips)
        return ~skip, {"ratio": ratio, "error": error, "skips": skips}

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        renewed = torch.as_tensor(computed)
        return {
            "ratio": state["ratio"].masked_fill(renewed, 1.0),
            "error": state["error"].masked_fill(renewed, 0.0),
            "skips": state["skips"].masked_fill(renewed, 0.0),
        }

    def _ratio(self, step: Step) -> float:
        last = len(self.ratios) - 1
        return self.ratios[min(round(step.index * last / max(step.total - 1, 1)), last)]

    def fit(self, statistics: Statistics) -> MagnitudeRatios:
        """The policy with the ratios that were measured, averaged over the lists of blocks."""
        curves = list(statistics.ratios.values())
        if not curves:
            raise ValueError(
                "the calibration has no residuals; run diffcache.calibrate with method='magcache'"
            )
        steps = [[r for r in step if r is not None] for step in zip(*curves, strict=True)]
        return replace(self, ratios=tuple(sum(s) / len(s) if s else 1.0 for s in steps))
