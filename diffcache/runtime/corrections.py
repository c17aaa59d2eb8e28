"""Takes back, at a computed step, what the skipped ones before it left the sample off by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffcache.kernels import combine
from diffcache.predictors import Correction, Course, Predictor, correction

from .history import Anchor, History
from .lanes import Lanes
from .schedulers import restate


class Corrections:
    """Corrects the samples of a run along its `course`, each where it has ended a gap.

    The sample, and what the sampler keeps of the step before, are put where the interpolated gap
    would have left them. The computed prediction was made for the sample that was off; it, and what
    forecasts read of it, are moved by how predictions change with the sample.
    """

    def __init__(self, predictor: Predictor, course: Course) -> None:
        self.predictor = predictor
        self.course = course
        self.history = History(predictor.anchors + 1)

    @property
    def bytes(self) -> int:
        return self.history.bytes

    def step(
        self,
        scheduler: Any,
        arguments: dict[str, Any],
        computed: Sequence[bool] | None,
        lanes: Lanes,
        now: Anchor,
    ) -> dict[str, Tensor]:
        """What to give `scheduler.step` in place of some of its `arguments`.

        Args:
            computed: which samples were, None standing for all of them.
            lanes: those that the step has used are its guidance branches, whose values are moved.
            now: when the step is made.
        """
        prediction, sample = arguments.get("model_output"), arguments.get("sample")
        known = isinstance(sample, Tensor) and isinstance(prediction, Tensor)
        if not known or sample.shape != prediction.shape:
            return {}
        if computed is not None and not any(computed):
            return {}
        # Later on, a step that is left out would look like a gap.
        if not self.history.slots and _outputs(lanes) is None:
            return {}
        everyone = computed is None or all(computed)
        self.history.append([prediction], now, None if everyone else computed)
        anchors = self.history.anchors
        if not any(map(_ends_gap, anchors[:1] if self.history.level else anchors)):
            return {}
        rows, histories = self.history.rows, _outputs(lanes)
        if histories is None or any(history.rows % rows for history in histories):
            return {}
        found = [self._of(row, now.step, histories) for row in range(rows)]
        place = next((each.place for each in found if each is not None), None)
        if place is None:
            return {}
        slope, unit = self.course.slopes[place], self.course.units[place]
        depth = len(self.history.slots)
        corrections = [each or Correction(place, (), ()) for each in found]
        moves = torch.tensor([_padded(each.sample, depth) for each in corrections])
        values = [slot[0] for slot in self.history.slots]
        off = combine(values, moves)
        clean = combine(values, torch.tensor([_padded(each.clean, depth) for each in corrections]))
        moves *= slope
        moves[:, 0] += 1
        for history in (self.history, *histories):
            history.blend(moves.repeat(history.rows // rows, 1))
        restate(scheduler, clean)
        return {
            "model_output": prediction.add(off, alpha=slope),
            "sample": sample.add(off.to(sample.dtype), alpha=unit),
        }

    def _of(self, row: int, index: int, histories: Sequence[History]) -> Correction | None:
        """The correction of a sample, whose branches must have been computed along with it."""
        own = self.history.anchors[row]
        if not own or own[0].step != index:
            return None
        rows = self.history.rows
        if any(own != anchors for history in histories for anchors in history.anchors[row::rows]):
            return None
        return correction(self.predictor, self.course, tuple(anchor.time for anchor in own))


def _outputs(lanes: Lanes) -> list[History] | None:
    """The whole outputs of the step's branches; None where not all of them have kept theirs."""
    found = [lane.histories.get("output") for lane in lanes.used]
    return found if found and None not in found else None


def _ends_gap(anchors: Sequence[Anchor]) -> bool:
    """Whether the newest value is not of the step after the one before."""
    return len(anchors) > 1 and anchors[0].step > anchors[1].step + 1


def _padded(weights: Sequence[float], count: int) -> list[float]:
    return [*weights, *[0.0] * (count - len(weights))]
