"""Forecasts that make up for what those of the gap before them were off by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Course, Predictor

# A value is computed from the sample that a gap has left, so what it says of the gap is off by
# about the skipped moves over the noise that is left. A third of that would do for flow matching;
# long gaps on UNets get worse by a correction before they reach a quarter.
_DAMPING = 6.0


@dataclass(frozen=True)
class Corrected(Predictor):
    """`base` over a run with this `course`; its first forecast after a gap corrects the sample.

    With the value that ends a gap of skipped steps, what was forecast in it can be interpolated.
    The difference, times how far each step moves the sample, is what the sample is off by: the
    corrector of a multistep solver, without another evaluation. It is added to the next forecast
    over how far that one's step moves, so that computed values stay as they are, and all of it is
    one weighted sum of the anchors. Where a step that ends a gap is followed by another computed
    one, nothing is corrected. Ours.
    """

    base: Predictor
    course: Course

    @property
    def anchors(self) -> int:
        # What was forecast in the gap, from as many, is one value older.
        return self.base.anchors + 1

    def coefficients(self, times: Tensor, t: Tensor) -> Tensor:
        found = torch.zeros_like(times)
        plain = self.base.coefficients(times, t)
        found[:, : plain.shape[1]] = plain
        for weights, anchors, now in zip(found, times, t.tolist(), strict=True):
            self._correct(weights, anchors, now)
        return found

    def _correct(self, weights: Tensor, anchors: Tensor, now: float) -> None:
        """Adds to `weights` `[K]` what corrects the gap that the newest of `anchors` `[K]` ends."""
        times, moves, noise = self.course
        places = [times.index(t) if t in times else None for t in [now, *anchors[:2].tolist()]]
        if len(places) < 3 or None in places:
            return
        place, newest, older = places
        gap = range(older + 1, newest)
        if not gap or place != newest + 1 or not moves[place]:
            return
        learnt, forecast = torch.zeros_like(weights), torch.zeros_like(weights)
        for step in gap:
            t = torch.tensor([times[step]], dtype=torch.float64)
            after = self.base.coefficients(anchors[None], t)[0]
            before = self.base.coefficients(anchors[None, 1:], t)[0]
            learnt[: len(after)] += moves[step] * after
            forecast[1 : 1 + len(before)] += moves[step] * before
        trust = 1 - _DAMPING * abs(float(learnt[0])) / max(noise[newest], 1e-6)
        if trust > 0:
            weights += (learnt - forecast) * (trust / moves[place])
