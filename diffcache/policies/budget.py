"""The default policy: the measured error of a forecast, spent from a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .base import ForecastError, Policy, State, Step, check_number, per_sample
from .targets import planned

# Of each sample, where a share of the run is asked for: the first step seen, how many were seen and
# how many computed, and which of those seen were the last two of these.
_BOOKS = ("first", "seen", "computed", "newest", "older")

QUALITIES = {"high": 0.03, "balanced": 0.08, "fast": 0.3}


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
        quality: a tolerance by name in place of a number: "high", "balanced" or "fast".
        compute: the share of a run's steps to compute, in place of a tolerance: each sample spends
            what makes its steps last exactly to the end.
        compute_rows: the sizes of a part of the batch that may be computed, one or several. Where
            a step has to compute fewer samples, those whose error would be largest fill it up to
            the next size, and where more, all are computed: the denoiser sees no other batch size.

    Raises:
        ValueError: a number out of range, or both `quality` and `compute`.
    """

    tolerance: float | tuple[float | None, ...] = 0.08
    quality: Literal["high", "balanced", "fast"] | None = None
    compute: float | None = None
    compute_rows: int | tuple[int, ...] | None = None
    evidence: ClassVar[type[ForecastError]] = ForecastError
    reads_error: ClassVar[bool] = False

    def __post_init__(self) -> None:
        several = isinstance(self.tolerance, (tuple, list))
        for tolerance in self.tolerance if several else (self.tolerance,):
            if tolerance is not None:
                check_number("tolerance", tolerance, 0.08)
        if self.quality is not None and self.compute is not None:
            raise ValueError(
                f"quality={self.quality!r} and compute={self.compute!r} are two targets; keep one"
            )
        if self.quality not in (None, *QUALITIES):
            raise ValueError(f"quality={self.quality!r} is none of {', '.join(QUALITIES)}")
        if self.compute is not None and not 0 < self.compute <= 1:
            raise ValueError(f"compute={self.compute!r} is not a share of a run; try compute=0.5")
        if any(not isinstance(size, int) or size < 1 for size in self._sizes) or (
            self.compute_rows is not None and not self._sizes
        ):
            raise ValueError(
                f"compute_rows={self.compute_rows!r} is not a count or counts; "
                "try compute_rows=4 or compute_rows=(2, 4)"
            )

    @property
    def _sizes(self) -> tuple[int, ...]:
        rows = self.compute_rows
        return tuple(rows) if isinstance(rows, (tuple, list)) else () if rows is None else (rows,)

    def init(self, samples: int) -> State:
        tolerance = self.tolerance if self.quality is None else QUALITIES[self.quality]
        zeros = torch.zeros(samples, dtype=torch.float64)
        state = {"tolerance": per_sample("tolerance", tolerance, samples), "spent": zeros}
        if self.compute is not None:
            state |= dict.fromkeys(_BOOKS, zeros)
        return state

    def decide(self, step: Step, evidence: ForecastError, state: State) -> tuple[Tensor, State]:
        spent = state["spent"].add(evidence.predicted, alpha=step.weight)
        state = {**state, "spent": spent}
        if self.compute is not None:
            return self._planned(step, state), state
        # Asked this way round, an error that cannot be predicted (NaN) computes.
        return spent.lt(state["tolerance"]).logical_not_(), state

    def observe(self, step: Step, error: Tensor, computed: Tensor, state: State) -> State:
        state = {**state, "spent": state["spent"].masked_fill(computed, 0.0)}
        if self.compute is not None:
            seen, newest = state["seen"], state["newest"]
            state["first"] = state["first"].masked_fill(seen == 0, step.index)
            state["seen"] = seen + 1
            state["computed"] = state["computed"] + computed
            state["older"] = newest.where(computed, state["older"])
            state["newest"] = seen.where(computed, newest)
        return state

    def fill(self, mask: Tensor, state: State) -> Tensor:
        wanted = int(mask.sum())
        if self.compute_rows is None or not wanted:
            return mask
        size = min(size for size in self.row_counts(len(mask)) if size >= wanted)
        order = state["spent"].masked_fill(mask, torch.inf).argsort(descending=True, stable=True)
        return torch.zeros_like(mask).index_fill(0, order[:size], True)

    def row_counts(self, samples: int) -> tuple[int, ...]:
        if self.compute_rows is None:
            return super().row_counts(samples)
        return tuple(sorted({0, samples, *(size for size in self._sizes if size < samples)}))

    def _planned(self, step: Step, state: State) -> Tensor:
        books = list(zip(*(state[name].int().tolist() for name in _BOOKS), strict=True))
        # Samples follow a plan alike, unless a guard or a full part of the batch set them apart.
        wanted = {sample: self._computes(step, *sample) for sample in set(books)}
        return torch.tensor([wanted[sample] for sample in books])

    def _computes(
        self, step: Step, first: int, seen: int, computed: int, newest: int, older: int
    ) -> bool:
        if not seen:
            return True
        # A sampler that evaluates twice a step has a state for each evaluation.
        stride = (step.index - first) // seen
        count = round(self.compute * len(step.grid.times[first::stride]))
        return planned(step.grid, first, stride, count).computes(
            seen, count - computed, newest, older
        )
