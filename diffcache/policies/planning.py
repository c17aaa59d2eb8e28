"""Which steps of a run to compute, for every number of them at once, by dynamic programming."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffcache.predictors import Predictor

# Longest gap that a plan may have, in skipped steps.
LONGEST = 8

# A run's first steps, which are always computed: a line needs two.
_FIRST = 2


def schedules(
    gram: Tensor, times: tuple[float, ...], weights: tuple[float, ...], predictor: Predictor
) -> tuple[tuple[int, ...], ...]:
    """The best steps to compute, for each number of them.

    A gap between two computed steps costs the square of its summed weighted errors: within a gap
    errors point the same way, from gap to gap they do not. What a step would err follows from the
    inner products of the predictions of full runs and from the predictor's weights. The least
    total for every number of computed steps comes from one dynamic programme over the last two
    computed steps, as schedules of caches are found in DPCache (arXiv 2602.22654), LeMiCa
    (arXiv 2511.00090) and BudCache; the costs here are of forecasts.

    Args:
        gram: inner products of the predictions `[steps, steps]`, float64, averaged over samples.
        times: coordinate of each step.
        weights: weight of each step, as in `Step`.
        predictor: what stands in for skipped steps.

    Returns:
        Schedules of ascending steps, one for each count that suffices, the shortest first.
    """
    costs = _costs(gram, times, weights, predictor)
    steps = len(times)
    # total[k, a, b]: the least cost up to step b, with k steps computed, of which a and b last.
    total = np.full((steps + 1, steps, steps), np.inf)
    before = np.zeros((steps + 1, steps, steps), dtype=np.int64)
    total[_FIRST, _FIRST - 2, _FIRST - 1] = 0.0
    for b in range(_FIRST - 1, steps):
        for a in range(max(0, b - LONGEST - 1), b):
            for gap in range(min(LONGEST, steps - 2 - b) + 1):
                reached = total[:-1, a, b] + costs[a, b, gap]
                after = total[1:, b, b + 1 + gap]
                better = reached < after
                after[better] = reached[better]
                before[1:, b, b + 1 + gap][better] = a
    found = [_cheapest(total[k], costs, before, k) for k in range(_FIRST, steps + 1)]
    return tuple(schedule for schedule in found if schedule is not None)


def _cheapest(
    total: np.ndarray, costs: np.ndarray, before: np.ndarray, count: int
) -> tuple[int, ...] | None:
    steps = len(total)
    ends = total.copy()
    for b in range(steps):
        left = steps - 1 - b
        ends[:, b] += costs[:, b, left] if left <= LONGEST else np.inf
    a, b = np.unravel_index(np.argmin(ends), ends.shape)
    if not np.isfinite(ends[a, b]):
        return None
    chosen = [int(b), int(a)]
    for k in range(count, _FIRST, -1):
        a, b = before[k, a, b], a
        chosen.append(int(a))
    return tuple(sorted(chosen))


def _costs(
    gram: Tensor, times: tuple[float, ...], weights: tuple[float, ...], predictor: Predictor
) -> np.ndarray:
    """Costs `[a, b, gap]` of skipping `gap` steps after b where a was computed before it."""
    steps = len(times)
    segments = [
        (a, b, gap)
        for b in range(1, steps)
        for a in range(max(0, b - LONGEST - 1), b)
        for gap in range(1, min(LONGEST, steps - 1 - b) + 1)
    ]
    costs = np.full((steps, steps, LONGEST + 1), np.inf)
    costs[:, :, 0] = 0.0
    if not segments:
        return costs
    nodes = torch.tensor([[b + gap, *_anchors(a, b, predictor.anchors)] for a, b, gap in segments])
    clock = torch.tensor(times, dtype=torch.float64)[nodes]
    own = predictor.coefficients(clock[:, 1:], clock[:, 0])
    own = torch.cat([torch.ones(len(own), 1, dtype=torch.float64), -own], 1)
    nodes = nodes[:, : own.shape[1]]
    between = gram[nodes[:, :, None], nodes[:, None, :]]
    squares = torch.einsum("ni,nij,nj->n", own, between, own).clamp(min=0)
    errors = (squares / gram.diagonal()[nodes[:, 0]]).sqrt().tolist()
    summed = 0.0
    for (a, b, gap), error in zip(segments, errors, strict=True):
        summed = (0.0 if gap == 1 else summed) + weights[b + gap] * error
        costs[a, b, gap] = summed**2
    return costs


def _anchors(a: int, b: int, count: int) -> list[int]:
    """The newest `count` anchors, of which the programme knows two: gaps widen along a run."""
    found = [b, a]
    for _ in range(count - 2):
        found.append(max(found[-1] - max(1, (b - a) // 2), 0))
    return found[:count]
