"""Which steps to compute such that a share of a run is, or each is worth a price."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, log2

import torch

from diffcache.predictors import Kriging

from .base import Grid
from .planning import LONGEST, Gaps, Plan, Priced

# Where a run begins in pure noise, which has negative coordinates, predictions hardly change, and
# the first one stands in better than kriging has it.
_FIRST = 0.42

# Next to the clean sample predictions turn faster than kriging has it, which the weight of the last
# step reckons with already; of the one before, forecasts err twice as much.
_LATE = 2.0

# Longest gap that is ever planned for, in skipped steps: what it costs to plan grows with it.
_FURTHEST = 20

# Prices that differ by less than a twofold's eighth are one, so that few are planned for.
_LEVELS = 8

# Beyond these all that may be is skipped, or nothing.
_LEAST, _MOST = 1e-15, 1e15


def planned(grid: Grid, first: int, stride: int, count: int) -> Plan:
    """The plan for every `stride`-th step from `first` on, of which `count` are to be computed.

    Predictions are taken for what kriging takes them for, so that the plan asks for no calibration.
    """
    steps = len(grid.times[first::stride])
    # Room for gaps twice as long as even ones, as far as a plan is made in a moment.
    enough = min(max(LONGEST, ceil(2 * steps / max(count, 1))), _FURTHEST)
    return _planned(grid, first, stride, int(min(enough, grid.cap, steps)), count)


def expected(grid: Grid, first: int, stride: int) -> Gaps:
    """What gaps between every `stride`-th step from `first` on cost, by kriging's covariance."""
    longest = min(_FURTHEST, grid.cap, len(grid.times[first::stride]))
    return _expected(grid, first, stride, int(longest))


def priced(gaps: Gaps, price: float) -> Priced:
    """The plan of these gaps where a computed step costs about `price`."""
    return _priced(gaps, round(_LEVELS * log2(min(max(price, _LEAST), _MOST))))


@lru_cache(maxsize=64)
def _planned(grid: Grid, first: int, stride: int, longest: int, most: int) -> Plan:
    return Plan(_expected(grid, first, stride, longest), most)


@lru_cache(maxsize=512)
def _priced(gaps: Gaps, level: int) -> Priced:
    return Priced(gaps, 2.0 ** (level / _LEVELS))


@lru_cache(maxsize=64)
def _expected(grid: Grid, first: int, stride: int, longest: int) -> Gaps:
    model, own = Kriging(), slice(first, None, stride)
    weights, protected = [*grid.weights[own]], grid.protected[own]
    weights[-2:-1] = [_LATE * weight for weight in weights[-2:-1]]
    # Where a program has made another device the default, plans stay on the host.
    with torch.device("cpu"):
        clock = torch.tensor(grid.times[own], dtype=torch.float64)
        gram = model.covariance(clock[:, None] - clock[None, :])
        alone = _FIRST if grid.times[first] < 0 else 1.0
        return Gaps(gram, grid.times[own], weights, model, protected, longest, alone)
