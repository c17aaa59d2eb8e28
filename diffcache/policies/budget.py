"""The default policy: what a forecast errs, as measured, against the price of a computed step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from diffcache.options import check_number, is_count, is_number

from .base import ForecastError, Policy, State, Step, per_sample
from .planning import Gaps
from .targets import expected, planned, priced

# What each of the samples that fill a part of the batch has to gain in the mean, in prices of a
# step, for who waits may yet meet others. docs/design.md has what more and less give.
_WAITS = 0.1

# How far the rate of a sample is drawn to the batch's where a part of the batch is computed, on a
# log scale, so that samples meet.
_TOGETHER = 0.5

# What a sample errs over what is expected of it, as it mostly is in the middle of a run. Who errs
# less is believed half-way, on a log scale. docs/design.md has what more and less give.
_USUAL = 0.5

# Where the error of a gap grows as the square of its length, one more computed step saves so many
# times the squared error that each gap has, and is worth as much.
_WORTH = 3.0

QUALITIES = {"high": 0.03, "balanced": 0.08, "fast": 0.3}


class _Book(NamedTuple):
    """Which steps of a sample were computed.

    Attributes:
        first: the first step seen.
        seen: how many were.
        computed: how many of them were computed.
        passed: denoiser rows of those seen, over those of a step that is first in its run.
        spent: of those computed, likewise.
        newest: which of those seen was computed last.
        older: which of them before.
        rows: what the newest took.
    """

    first: int
    seen: int
    computed: int
    passed: float
    spent: float
    newest: int
    older: int
    rows: float


class _Rated(NamedTuple):
    """What is expected of a sample.

    Attributes:
        gaps: what they cost, as expected of any.
        rate: how many times as much as expected it is believed to err.
    """

    gaps: Gaps
    rate: float


@dataclass(frozen=True)
class ErrorBudget(Policy):
    """Plans the run anew at each step, for gaps of skipped steps that err about `tolerance`.

    Whenever a step is computed, the forecast that would have replaced it, undamped, is compared
    with the truth. For a forecast that is linear in the scheduler's coordinate this is the
    third-order difference of the latents of AdaptiveDiffusion (arXiv 2410.09873) with the
    scheduler's own steps divided out; for a quadratic one, the third-order difference of the
    predictions. How much more or less a sample errs than is expected of any says what its gaps
    cost, and so how many steps are worth computing for it; the plan says which, and never skips
    more than twenty in a row. A step's weight is how much of an error reaches the sample. What is
    expected is what kriging expects, whatever forecasts the run.

    Args:
        tolerance: about the weighted relative error that a sample may accumulate between two
            computed steps, less where it errs less than usual; or one such number a sample. None
            or 0 computes every step. A tolerance, a quality and a share are targets, of which
            `Method.configured` puts one in place of another.
        quality: a tolerance by name in place of a number: "high", "balanced" or "fast".
        compute: the share of a run's row-steps to compute, in place of a tolerance; a sample's
            plan makes them last exactly to the end, unless guidance ends or begins on the way.
        compute_rows: the sizes of a part of the batch that may be computed, one or several; the
            denoiser sees no other batch size. With a tolerance, a step computes as many samples as
            gain most by it together, and others wait; with a share, those that gain most fill the
            part up to the next size. To meet, samples follow half of what the others err.

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
        if any(not is_count(size, 1) for size in self._sizes) or (
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
        # By sample, what it gains where the step is computed, in prices of a step, or with a share
        # in errors; inf where nothing says what it would lose, or where nothing may be lost.
        gains = [inf] * samples
        return {"tolerance": given, "gains": gains, "books": [None] * samples}

    def decide(self, step: Step, evidence: ForecastError, state: State) -> tuple[list[bool], State]:
        books = state["books"]
        if self.compute is not None:
            gains = [error if error < inf else inf for error in evidence.predicted]
            return self._planned(step, books), {**state, "gains": gains}
        asked = zip(books, evidence.predicted, state["tolerance"], strict=True)
        rated = [_rated(step, *each) for each in asked]
        if self.compute_rows is not None:
            rated = _drawn_together(rated)
        asked = zip(rated, books, state["tolerance"], strict=True)
        gains = [_gain(*each) for each in asked]
        return [gain >= 0 for gain in gains], {**state, "gains": gains}

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        books = zip(state["books"], computed, strict=True)
        return {**state, "books": [_entered(book, step, renewed) for book, renewed in books]}

    def fill(self, mask: list[bool], must: Sequence[bool], state: State) -> list[bool]:
        if self.compute_rows is None or not any(mask):
            return mask
        gains, shares = state["gains"], self.compute is not None
        urgent = [
            want and (need or shares or gain == inf)
            for want, need, gain in zip(mask, must, gains, strict=True)
        ]
        ranked = sorted(range(len(mask)), key=lambda i: (urgent[i], gains[i]), reverse=True)
        least = sum(urgent)
        sizes = [size for size in self.row_counts(len(mask)) if size >= least]
        if shares:
            size = sizes[0]
        else:
            size = max(sizes, key=lambda n: sum(gains[i] - _WAITS for i in ranked[least:n]))
        chosen = ranked[:size]
        return [sample in chosen for sample in range(len(mask))]

    def row_counts(self, samples: int) -> tuple[int, ...]:
        if self.compute_rows is None:
            return super().row_counts(samples)
        return tuple(sorted({0, samples, *(size for size in self._sizes if size < samples)}))

    def remark(self, steps: int, samples: int) -> str | None:
        if samples == 1 or not self._sizes or min(self._sizes) < samples:
            return None
        return (
            f"compute_rows={self.compute_rows!r} has no size below the batch of {samples}, so that "
            "a step computes all of it or nothing"
        )

    def _planned(self, step: Step, books: list[_Book | None]) -> list[bool]:
        if step.grid is None:
            return [True] * len(books)
        # Samples follow a plan alike, unless a guard or a full part of the batch set them apart.
        wanted = {book: book is None or self._computes(step, book) for book in set(books)}
        return [wanted[book] for book in books]

    def _computes(self, step: Step, book: _Book) -> bool:
        stride = _stride(step, book)
        steps = len(step.grid.times[book.first :: stride])
        # What is yet to come has as many rows as the step before. Where those before had others,
        # to make up for all of that would starve the rest of the run, or make it dear.
        rows = steps - book.seen + book.passed / step.rows
        left = round(self.compute * rows) - book.spent / step.rows
        left = round((left + round(self.compute * steps) - book.computed) / 2)
        # What the cap is going to have computed is better planned.
        left = max(left, int((steps - 1 - book.newest) // (step.grid.cap + 1)))
        plan = planned(step.grid, book.first, stride, book.computed + left)
        return plan.computes(book.seen, left, book.newest, book.older)


def _stride(step: Step, book: _Book) -> int:
    # A sampler that evaluates twice a step has a state for each evaluation.
    return (step.index - book.first) // book.seen


def _rated(step: Step, book: _Book | None, error: float, tolerance: float) -> _Rated | None:
    """What is expected of a sample, of which a forecast of `step` would err by `error`.

    None where nothing says what it would lose if the step were skipped, or nothing may be lost.
    """
    # Asked this way round, an error that cannot be predicted (NaN) computes.
    if not tolerance or not error < inf or book is None or step.grid is None:
        return None
    gaps = expected(step.grid, book.first, _stride(step, book))
    # A loop may go on after the steps that its scheduler has.
    if book.seen >= gaps.steps or book.seen - book.newest > gaps.longest:
        return None
    usual = gaps.error(book.seen, book.newest, book.older)
    if error and not usual:
        return None
    over = error / usual if error else 0.0
    return _Rated(gaps, max(over, sqrt(_USUAL * over)))


def _drawn_together(rated: list[_Rated | None]) -> list[_Rated | None]:
    """What is `rated`, each that errs drawn to the geometric mean of those that do."""
    logs = [log(each.rate) for each in rated if each and each.rate]
    if not logs:
        return rated
    middle = exp(sum(logs) / len(logs))
    return [
        each and each._replace(rate=each.rate ** (1 - _TOGETHER) * middle**_TOGETHER)
        for each in rated
    ]


def _gain(rated: _Rated | None, book: _Book, tolerance: float) -> float:
    """What a sample gains where a step is computed, in prices of it."""
    if rated is None:
        return inf
    gaps, rate = rated
    price = _WORTH * (tolerance / rate) * (tolerance / rate) if rate else inf
    return priced(gaps, price).gain(book.seen, book.newest, book.older)


def _entered(book: _Book | None, step: Step, computed: bool) -> _Book:
    """A sample's book after `step`, from `book`, None where it is the first seen."""
    if book is None:
        book = _Book(step.index, 0, 0, 0.0, 0.0, 0, 0, step.rows)
    book = book._replace(seen=book.seen + 1, passed=book.passed + step.rows)
    if not computed:
        return book
    done, spent, newest = book.computed + 1, book.spent + step.rows, book.seen - 1
    # Calls of other rows than before have nothing but themselves to be forecast from.
    older = book.newest if step.rows == book.rows else newest
    return book._replace(computed=done, spent=spent, newest=newest, older=older, rows=step.rows)
