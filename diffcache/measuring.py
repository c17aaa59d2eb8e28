"""The rows of a comparison, measured one after another within a budget of wall time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from . import metrics
from .api import wrapped
from .comparison import Row
from .methods import Method
from .runtime.report import Report
from .trial import Run, Trial

PLAIN = "plain"
# The few_steps guard computes runs of up to 8 steps in full, which would leave kernels uncompiled.
WARM_UP_STEPS = 12
RUNGS = 6
"""Tolerances of a ladder, at most."""
TOO_FAST = (
    "faster than the share that was computed allows, so the machine was busier when the plain "
    "pipeline ran"
)

# Nothing is faster than its share of the work by more than noise, so far as clocks are steady.
_STEADY = 1.3


class Contender(NamedTuple):
    """A method and options of it, as a row is labelled."""

    label: str
    method: str | Method
    options: dict[str, Any]


class Measuring:
    """Generates and measures; what is asked for and does not fit the budget is left out.

    Attributes:
        rows: the plain one first.
        finite: whether all of the plain pictures are.
        notes: what the reports have to say, and what was left out.
    """

    def __init__(self, trial: Trial, beside: Collection[str], minutes: float | None) -> None:
        self.trial, self.beside = trial, beside
        self._end = math.inf if minutes is None else time.perf_counter() + 60 * minutes
        self.rows: list[Row] = []
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self._asked = len(trial.entries)

    def plain(self, contenders: int) -> None:
        """Measures the plain pipeline, on as many pictures as leave time for `contenders`."""
        began = time.perf_counter()
        self.trial.warm_up(3)
        baselines = len({"steps", "time"} & set(self.beside))
        # A method and its baselines compute about half of a plain run, a ladder four times that.
        runs = 1 + ("noise" in self.beside) + contenders * (1 + baselines) / 2 + 2

        def plan(seconds: float) -> None:
            if self._end < math.inf:
                left = (self._end - time.perf_counter()) / seconds
                batches = max(1, int((left - contenders + 1) / runs))
                self.trial.keep(batches * self.trial.batch_size)

        self._run = self.trial.run(PLAIN, after_first=plan)
        self._seconds = time.perf_counter() - began
        self._scale = Scale(self._run.pictures)
        broken = self.trial.not_finite(self._run.pictures)
        self.finite = broken is None
        self.notes = self._scale.notes() + ([] if broken is None else [broken])
        if len(self.trial.entries) < self._asked:
            self.notes.append(f"{len(self.trial.entries)} of {self._asked} prompts fitted the time")

    def _fits(self, label: str, share: float = 1.0) -> bool:
        """Whether there is time for a `share` of a plain run; remembers the label if not."""
        if time.perf_counter() + share * self._seconds <= self._end:
            return True
        self.left_out.append(label)
        return False

    def method(self, contender: Contender) -> Row | None:
        """Measures a method; None where there was no time. The first is always measured."""
        label, method, options = contender
        if self.rows and not self._fits(label):
            return None
        with wrapped(self.trial.pipe, method, **options):
            self.trial.warm_up(WARM_UP_STEPS)
            run = self.trial.run(label, reporting=True)
        cost, compute = accounts(run.reports, self.trial)
        if not self.rows:
            self._cost = cost
            pictures = self._scale.of(self._run)
            self.rows.append(
                Row(PLAIN, seconds=self._run.seconds, pictures=pictures, **cost.share(1))
            )
        mask = _joined([report.mask for report in run.reports], len(self.trial.entries))
        row = self._row(label, run, cost.share(compute), mask=mask, reports=run.reports)
        self.notes += _notes(label, run.reports)
        return row

    def _row(self, label: str, run: Run, costs: dict[str, Any], **more: Any) -> Row:
        pictures = self._scale.of(run)
        reference = self.rows[0].pictures[: len(pictures)]
        row = Row(
            label,
            seconds=run.seconds,
            pictures=pictures,
            psnr=metrics.psnr(reference, pictures),
            mean_error_psnr=metrics.mean_error_psnr(reference, pictures),
            ssim=metrics.ssim(reference, pictures),
            **costs,
            **more,
        )
        self.rows.append(row)
        return row

    def baselines(self, row: Row) -> None:
        """Measures as few plain steps as `row` computed, and as take its time."""
        total = self.trial.steps
        if total is None:
            return
        at = self.rows.index(row)
        steps = max(1, round(row.compute * total))
        if "steps" in self.beside:
            row = replace(row, fewer=self._fewer(steps))
        if "time" in self.beside:
            row = replace(row, as_fast=self._fewer(self._steps_in(row, steps)))
        self.rows[at] = row

    def _steps_in(self, row: Row, fewer: int) -> int:
        """The plain steps that take as long as `row`, by what plain steps were seen to take.

        Steps, and those of its row of `fewer`, are as they are asked for: of an image's half
        strength, or with two evaluations a step, the scheduler makes another number.
        """
        total, plain = self.trial.steps, self.rows[0].seconds
        step = plain / total
        if row.fewer is not None:
            other = next(each for each in self.rows if each.label == row.fewer)
            # Two points tell the steps' time from that of text encoders and decoders.
            measured = (plain - other.seconds) / (total - fewer)
            step = measured if measured > 0 else step
        return min(total, max(1, total - round((plain - row.seconds) / step)))

    def _fewer(self, steps: int) -> str | None:
        """Measures a plain run of `steps`: its label, None where it is no fewer or did not fit."""
        total, label = self.trial.steps, f"{steps} steps"
        if steps == total:
            return None
        if all(row.label != label for row in self.rows):
            if not self._fits(label, steps / total):
                return None
            run = self.trial.run(label, num_inference_steps=steps)
            self._row(label, run, self._cost.share(steps / total))
        return label

    def floor(self) -> str | None:
        """Measures a run as legitimate as the plain one: its label, None where there is none."""
        trial, label, rounding = self.trial, "plain, one by one", nullcontext()
        if min(trial.batch_size, len(trial.entries)) == 1:
            label = "plain, bf16 autocast"
            if trial.pipe.dtype != torch.float32:
                self.notes.append("no noise floor in batches of one; try batch_size=2")
                return None
            rounding = torch.autocast(torch.device(trial.pipe.device).type, torch.bfloat16)
        if not self._fits(label):
            return None
        # Small batches may be slow, and a part of the pictures tells nearly as much.
        until = min(self._end, time.perf_counter() + 2 * self._seconds)
        with rounding:
            run = trial.run(label, batch_size=1, until=until if self._end < math.inf else None)
        row = self._row(label, run, self._cost.share(1))
        self.rows.insert(1, self.rows.pop())
        if len(run.pictures) < len(trial.entries):
            self.notes.append(f"{label}: the first {len(run.pictures)} pictures")
        return row.label

    def ladder(self, row: Row, method: str, tolerance: float, psnr: float) -> dict[str, Any] | None:
        """Tries other tolerances: the largest that keeps the 5th percentile at `psnr` dB or more.

        `row` is that of `tolerance`. Returns its figures; None where none of those tried does.
        """
        tried = {tolerance: row}

        def holds(each: float) -> bool:
            return bool(_p5(tried[each]) >= psnr)

        def climb(to: float) -> bool:
            label = f"{method} tolerance={to:g}"
            found = next((own for own in self.rows if own.label == label), None)
            found = found or self.method(Contender(label, method, {"tolerance": to}))
            if found is not None:
                tried[to] = found
            return found is not None

        upward = holds(tolerance)
        # The last is kept for what lies between one that holds and one that does not.
        while len(tried) < RUNGS - 1 and holds(tolerance) == upward:
            before, tolerance = tolerance, _rounded(tolerance * (2 if upward else 0.5))
            # Where guards bind a larger tolerance changes nothing any more.
            if not climb(tolerance) or (upward and tried[tolerance].compute >= row.compute):
                break
            row = tried[tolerance]
            if holds(tolerance) != upward:
                climb(_rounded(math.sqrt(before * tolerance)))
        passing = [each for each in tried if holds(each)]
        if not passing:
            return None
        found = tried[best := max(passing)]
        if found.fewer is None and found in self.rows:
            self.baselines(found)
        return {
            "tolerance": best,
            "label": found.label,
            "psnr": float(found.psnr.mean()),
            "psnr_p5": float(_p5(found)),
            "compute": found.compute,
            "speed_up": self.rows[0].seconds / found.seconds,
        }


def too_fast(speedup: float, compute: float) -> bool:
    """Whether nothing can have been faster by `speedup`, at this share of the plain work."""
    return speedup * compute > _STEADY


def _rounded(tolerance: float) -> float:
    return float(f"{tolerance:.2g}")


def _p5(row: Row) -> float:
    return np.percentile(row.psnr, 5)


def _notes(label: str, reports: list[Report]) -> list[str]:
    counts = Counter(note for report in reports for note in report.notes)
    return [
        f"{label}: {note}"
        + (f" ({count} of {len(reports)} batches)" if count < len(reports) else "")
        for note, count in counts.items()
    ]


class Cost(NamedTuple):
    """Of a picture, all steps computed: scheduler steps, and denoiser rows over those."""

    steps: float
    row_steps: float | None

    def share(self, compute: float) -> dict[str, float | None]:
        """The costs of a share of it."""
        rows = None if self.row_steps is None else compute * self.row_steps
        return {"steps": compute * self.steps, "row_steps": rows, "compute": compute}


class Scale:
    """Brings values to [0, 1] by the plain results' range, if they do not lie there already."""

    def __init__(self, plain: np.ndarray) -> None:
        finite = plain[np.isfinite(plain)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        fits = low >= -0.01 and high <= 1.01
        self.low, self.high = (0.0, 1.0) if fits else (low, max(high, low + 1e-12))

    def of(self, run: Run) -> np.ndarray:
        # Latents and waveforms know no bounds; farther off than this, all are as bad.
        return np.clip((run.pictures - self.low) / (self.high - self.low), -1, 2)

    def notes(self) -> list[str]:
        if (self.low, self.high) == (0.0, 1.0):
            return []
        return [f"values of {self.low:.3g} to {self.high:.3g} are scaled to 0 to 1 for PSNR"]


def accounts(reports: list[Report], trial: Trial) -> tuple[Cost, float]:
    """What a plain picture costs, and the share of it that was computed."""
    total = sum(report.total for report in reports)
    # A generation that gave up on its caches may report no steps.
    steps = max(report.steps for report in reports) or trial.steps or 1
    if not total:
        return Cost(steps, None), 1.0
    return Cost(steps, total / len(trial.entries)), sum(r.computed for r in reports) / total


def _joined(masks: list[torch.Tensor], count: int) -> np.ndarray | None:
    """Masks of batches as one `[steps, count]`; None where steps or samples do not fit."""
    if len({len(mask) for mask in masks}) != 1 or sum(m.shape[1] for m in masks) != count:
        return None
    return torch.cat(masks, dim=1).numpy()
