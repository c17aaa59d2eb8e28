"""Which steps to compute such that a given share of a run is."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import torch

from diffcache.predictors import Kriging

from .base import Grid
from .planning import LONGEST, Plan

# In pure noise predictions hardly change, so that the first one stands in better than kriging has
# it. With 0.36 to 0.48 of the error, plans of a quarter of the run skip the second step, and those
# of a third compute it, as both should.
_FIRST = 0.42

# Next to the clean sample predictions turn faster than kriging has it, which the weight of the last
# step reckons with already; of the one before, forecasts err twice as much.
_LATE = 2.0

_FURTHEST = 20


def planned(grid: Grid, first: int, stride: int, count: int) -> Plan:
    """The plan for every `stride`-th step from `first` on, of which `count` are to be computed.

    Predictions are taken for what kriging takes them for, so that the plan asks for no calibration.
    """
    steps = len(grid.times[first::stride])
    # Room for gaps twice as long as even ones, as far as a plan is made in a moment.
    enough = min(max(LONGEST, ceil(2 * steps / max(count, 1))), _FURTHEST)
    return _planned(grid, first, stride, int(min(enough, grid.cap, steps)), count)


@lru_cache(maxsize=64)
def _planned(grid: Grid, first: int, stride: int, longest: int, most: int) -> Plan:
    model, own = Kriging(), slice(first, None, stride)
    clock = torch.tensor(grid.times[own], dtype=torch.float64)
    gram = model.covariance(clock[:, None] - clock[None, :])
    weights, protected = [*grid.weights[own]], grid.protected[own]
    weights[-2:-1] = [_LATE * weight for weight in weights[-2:-1]]
    return Plan(gram, grid.times[own], weights, model, most, protected, longest, _FIRST)
