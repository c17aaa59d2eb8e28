"""Takes back, at a computed step, what the skipped ones before it left the sample off by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffcache.kernels import combine
from diffcache.kernels.transfer import sent
from diffcache.predictors import Correction, Course, Predictor, correction, followed, taken_back

from .composition import Stage
from .history import Anchor, History
from .lanes import Lanes
from .schedulers import restate


@dataclass(frozen=True)
class Corrections:
    """Corrects the samples of a run along its `course`, each where it has ended a gap.

    The sample, and what the sampler keeps of the step before, are put where the interpolated gap
    would have left them. The computed prediction was made for the sample that was off; it, and what
    forecasts read of it, are moved by how predictions change with the sample. Where that is by
    more than the course says, as under strong guidance, one correction takes back the one before;
    by how much it does is added to the slope.
    """

    predictor: Predictor
    course: Course

    def step(
        self,
        scheduler: Any,
        arguments: dict[str, Any],
        computed: Sequence[bool],
        stage: Stage,
        lanes: Lanes,
        now: Anchor,
    ) -> dict[str, Tensor]:
        """What to give `scheduler.step` in place of some of its `arguments`.

        Args:
            computed: which samples were.
            stage: has the predictions of earlier steps, and is told of the correction.
            lanes: those that the step has used are its guidance branches, whose values are moved.
            now: when the step is made.
        """
        past, prediction = stage.past, arguments.get("model_output")
        sample = arguments.get("sample")
        known = isinstance(sample, Tensor) and isinstance(prediction, Tensor)
        # Flow matching then steps the other way, each token by a time of its own.
        known = known and arguments.get("per_token_timesteps") is None
        if not known or sample.shape != prediction.shape or not past.fits([prediction]):
            return {}
        branches = [lane.histories.get("output") for lane in lanes.used]
        kept = [branch is not None and not branch.rows % past.rows for branch in branches]
        # Another batch may have come in the middle of a run.
        if len(computed) != past.rows or not kept or not all(kept):
            return {}
        found = [
            self._of(row, past, branches, now) if computed[row] else None
            for row in range(past.rows)
        ]
        place = next((each.place for each in found if each is not None), None)
        if place is None:
            return {}
        values = [prediction, *(slot[0] for slot in past.slots)]
        corrections = [each or Correction(place, (), (), (), ()) for each in found]
        moves, clean, *more = (
            torch.tensor([_padded(weights, len(values)) for weights in column], dtype=torch.float32)
            for column in zip(*(each[1:] for each in corrections), strict=True)
        )
        if (factors := stage.damping(self.predictor)) is not None:
            moves, clean = (
                sent(part, factors.device) + (1 - factors[:, None]) * sent(extra, factors.device)
                for part, extra in zip((moves, clean), more, strict=True)
            )
        if (alike := self._followed(values, branches)) is not None:
            moves, clean = (alike[:, None] * sent(part, alike.device) for part in (moves, clean))
        off = combine(values, moves)
        steeper = taken_back(off.flatten(1), self._last(stage, off, found))
        slopes = self.course.slopes[place] + steeper / self.course.noise[place]
        moves = sent(moves, off.device) * slopes[:, None]
        moves[:, 0] += 1
        for branch in branches:
            repeated = moves.repeat(branch.rows // past.rows, 1)
            branch.blend(repeated.to(branch.slots[0][0].device), _predicting(branch, prediction))
        restate(scheduler, combine(values, clean))
        moved = off * slopes.reshape(-1, *[1] * (off.ndim - 1))
        return {
            "model_output": prediction + moved.to(prediction.dtype),
            "sample": sample.add(off.to(sample.dtype), alpha=self.course.units[place]),
        }

    def _followed(self, values: Sequence[Tensor], branches: Sequence[History]) -> Tensor | None:
        """How far guided `values`, newest first, are made of `branches` in one way, `[samples]`.

        None where a pipeline makes something of another form of them.
        """
        samples = len(values[0])
        found = []
        for value, *slots in zip(values, *(branch.slots for branch in branches), strict=False):
            leaves = [
                slot[_predicting(branch, value)].to(value.device)
                for slot, branch in zip(slots, branches, strict=True)
            ]
            if not all(_has_room(leaf, value) for leaf in leaves):
                return None
            places = zip(*(_places(leaf, value) for leaf in leaves), strict=False)
            shape = (-1, samples, value[0].numel())
            found.append(
                [torch.cat([part.reshape(shape) for part in at]).transpose(0, 1) for at in places]
            )
        flat = [value.flatten(1) for value in values[: len(found)]]
        tried = [followed(flat, parts) for parts in zip(*found, strict=False)]
        return torch.stack(tried).amax(0)

    def _last(self, stage: Stage, off: Tensor, found: Sequence[Correction | None]) -> Tensor:
        """What samples were corrected by before, `off` taking its place for those it corrects."""
        last = stage.correction
        if last is None or last.shape != off.flatten(1).shape:
            last = torch.zeros_like(off).flatten(1)
        rows = sent(torch.tensor([each is not None for each in found]), off.device)
        stage.correction = torch.where(rows[:, None], off.flatten(1), last)
        return last

    def _of(
        self, row: int, past: History, branches: Sequence[History], now: Anchor
    ) -> Correction | None:
        """The correction of a computed sample, whose branches must have been along with it."""
        own = [now, *past.anchors[row][: self.predictor.anchors]]
        if any(
            own != anchors for branch in branches for anchors in branch.anchors[row :: past.rows]
        ):
            return None
        return correction(self.predictor, self.course, tuple(anchor.time for anchor in own))


def _predicting(branch: History, prediction: Tensor) -> int:
    """Which leaf of a denoiser's output the prediction is made of.

    Others, as a second stream's (LTX2 denoises sound along), belong to samples that nobody moves.
    """
    shapes = [leaf.shape[1:] for leaf in branch.slots[0]]
    # Some predictions are a part of the leaf, without a learned variance.
    return shapes.index(prediction.shape[1:]) if prediction.shape[1:] in shapes else 0


def _has_room(leaf: Tensor, value: Tensor) -> bool:
    """Whether `value` may be a part of the leaf, row by row."""
    sizes = zip(leaf.shape[1:], value.shape[1:], strict=False)
    return leaf.ndim == value.ndim and all(whole >= part for whole, part in sizes)


def _places(leaf: Tensor, value: Tensor) -> list[Tensor]:
    """Parts of the leaf that are of the size of `value`, which may be any of them."""
    if leaf.shape[1:] == value.shape[1:]:
        return [leaf]
    # A learned variance and most conditions come last, an image that a video begins with first.
    leading = [slice(size) for size in value.shape[1:]]
    trailing = [
        slice(whole - size, None)
        for whole, size in zip(leaf.shape[1:], value.shape[1:], strict=True)
    ]
    return [leaf[(slice(None), *cut)] for cut in (leading, trailing)]


def _padded(weights: Sequence[float], count: int) -> list[float]:
    return [*weights, *[0.0] * (count - len(weights))]
