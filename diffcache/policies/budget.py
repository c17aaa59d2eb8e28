"""The default policy: the measured error of a forecast, spent from a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from .base import ForecastError, Policy, State, Step, check_number, is_number, per_sample
from .targets import planned

# How many samples may wait for a step for each that else were computed for nothing. Waiting too
# costs; docs/design.md has what more and less give.
_PATIENCE = 0.3

QUALITIES = {"high": 0.03, "balanced": 0.08, "fast": 0.3}


class _Book(NamedTuple):
    """What is known of a sample where a share of the run is asked for.

    Attributes:
        first: the first step seen.
        seen: how many were.
        computed: how many of them were computed.
        newest: which of those seen was computed last.
        older: which of them before.
    """

    first: int
    seen: int
    computed: int
    newest: int
    older: int


@dataclass(frozen=True)
class ErrorBudget(Policy):
    """Skips while the error predicted for the skipped steps sums to less than `tolerance`.

    Whenever a step is computed, the forecast that would have replaced it, undamped, is compared
    with the truth. For a forecast that is linear in the scheduler's coordinate this is the
    third-order difference of the latents of AdaptiveDiffusion (arXiv 2410.09873) with the
    scheduler's own steps divided out; for a quadratic one, the third-order difference of the
    predictions. From these errors that of the steps that follow is predicted, and a step's weight
    is how much of it reaches the sample.

    Args:
        tolerance: weighted relative error a sample may accumulate between two computed steps, or
            one such number a sample; None or 0 computes every step. A tolerance, a quality and a
            share are targets, of which `Method.configured` puts one in place of another.
        quality: a tolerance by name in place of a number: "high", "balanced" or "fast".
        compute: the share of a run's steps to compute, in place of a tolerance: each sample spends
            what makes its steps last exactly to the end.
        compute_rows: the sizes of a part of the batch that may be computed, one or several. Where
            a step has to compute another number of samples, those that are furthest through their
            tolerance fill it up to the next size; or some wait for a step, where few have to for
            the size below. The denoiser sees no other batch size.

    Raises:
        ValueError: a number out of range, or two targets.
    """

    tolerance: float | tuple[float | None, ...] = 0.08
    quality: Literal["high", "balanced", "fast"] | None = None
    compute: float | None = None
    compute_rows: int | tuple[int, ...] | None = None
    evidence: ClassVar[type[ForecastError]] = ForecastError
    reads_error: ClassVar[bool] = False
    alternatives: ClassVar[tuple[str, ...]] = ("tolerance", "quality", "compute")

    def __post_init__(self) -> None:
        several = isinstance(self.tolerance, (tuple, list))
        if several and not self.tolerance:
            raise ValueError(f"tolerance={self.tolerance!r} is of no sample; try tolerance=0.08")
        for tolerance in self.tolerance if several else (self.tolerance,):
            if tolerance is not None:
                check_number("tolerance", tolerance, 0.08)
        given = [
            f"{target}={value!r}"
            for target in self.alternatives
            if (value := getattr(self, target)) != getattr(type(self), target)
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different targets; keep one of them")
        if self.quality not in (None, *QUALITIES):
            raise ValueError(f"quality={self.quality!r} is none of {', '.join(QUALITIES)}")
        if self.compute is not None and not (is_number(self.compute) and 0 < self.compute <= 1):
            raise ValueError(f"compute={self.compute!r} is not a share of a run; try compute=0.5")
        if any(type(size) is not int or size < 1 for size in self._sizes) or (
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
        given = per_sample("tolerance", tolerance, samples)
        return {"tolerance": given, "spent": [0.0] * samples, "books": [None] * samples}

    def decide(self, step: Step, evidence: ForecastError, state: State) -> tuple[list[bool], State]:
        weight, spent, wanted = step.weight, [], []
        samples = zip(state["spent"], evidence.predicted, state["tolerance"], strict=True)
        for before, error, tolerance in samples:
            total = before + weight * error
            spent.append(total)
            # Asked this way round, an error that cannot be predicted (NaN) computes.
            wanted.append(not total < tolerance)
        state = {**state, "spent": spent}
        if self.compute is not None:
            wanted = self._planned(step, state["books"])
        return wanted, state

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        spent = [0.0] * len(computed)
        if not all(computed):
            pairs = zip(state["spent"], computed, strict=True)
            spent = [0.0 if renewed else total for total, renewed in pairs]
        state = {**state, "spent": spent}
        if self.compute is not None:
            books = zip(state["books"], computed, strict=True)
            state["books"] = [_entered(book, step.index, renewed) for book, renewed in books]
        return state

    def fill(self, mask: list[bool], must: Sequence[bool], state: State) -> list[bool]:
        if self.compute_rows is None or not any(mask):
            return mask
        ranks = []
        spent, tolerance = state["spent"], state["tolerance"]
        for want, need, off, limit in zip(mask, must, spent, tolerance, strict=True):
            # What cannot be predicted (NaN) and what tolerates nothing are in no place to wait.
            through = off / limit if off < inf and limit else inf
            urgent = need or through == inf or self.compute is not None
            ranks.append((want and urgent, want, through))
        size = self._size(sum(mask), sum(urgent for urgent, *_ in ranks), len(mask))
        chosen = sorted(range(len(mask)), key=ranks.__getitem__, reverse=True)[:size]
        return [sample in chosen for sample in range(len(mask))]

    def _size(self, wanted: int, urgent: int, samples: int) -> int:
        """How many of `samples` to compute where `wanted` are to be, and `urgent` of them now."""
        sizes = self.row_counts(samples)
        more = min(size for size in sizes if size >= wanted)
        fewer = max(size for size in sizes if size <= wanted)
        waits = wanted - fewer <= _PATIENCE * (more - wanted)
        return fewer if fewer and fewer >= urgent and waits else more

    def row_counts(self, samples: int) -> tuple[int, ...]:
        if self.compute_rows is None:
            return super().row_counts(samples)
        return tuple(sorted({0, samples, *(size for size in self._sizes if size < samples)}))

    def _planned(self, step: Step, books: list[_Book | None]) -> list[bool]:
        # Samples follow a plan alike, unless a guard or a full part of the batch set them apart.
        wanted = {book: book is None or self._computes(step, book) for book in set(books)}
        return [wanted[book] for book in books]

    def _computes(self, step: Step, book: _Book) -> bool:
        # A sampler that evaluates twice a step has a state for each evaluation.
        stride = (step.index - book.first) // book.seen
        count = round(self.compute * len(step.grid.times[book.first :: stride]))
        plan = planned(step.grid, book.first, stride, count)
        return plan.computes(book.seen, count - book.computed, book.newest, book.older)


def _entered(book: _Book | None, index: int, computed: bool) -> _Book:
    """A sample's book after step number `index`, from `book`, None where it is the first seen."""
    if book is None:
        book = _Book(index, 0, 0, 0, 0)
    seen = book.seen + 1
    if not computed:
        return book._replace(seen=seen)
    return _Book(book.first, seen, book.computed + 1, book.seen, book.newest)
