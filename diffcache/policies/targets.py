"""How much error may be spent in a row such that the steps to compute last to the end of a run."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .base import Grid, Step

# For planning only: the error of a forecast grows as this power of the distance from its newest
# anchor, which is how a Matérn-3/2 forecast errs near by.
_POWER = 1.5
_HALVINGS = 24
_SPAN = 40.0


def rate_of(step: Step, error: Tensor, skipped: Tensor) -> Tensor:
    """The rate κ `[samples]` of an `error` = κ w dᵖ predicted after `skipped` skipped steps."""
    times = torch.tensor(step.grid.times, dtype=torch.float64)
    newest = (step.index - 1 - skipped.long()).clamp(min=0)
    distance = times[step.index] - times[newest]
    return error / (step.grid.weights[step.index] * distance**_POWER)


def affordable(step: Step, rate: Tensor, left: Tensor) -> Tensor:
    """The error `[samples]` to spend in a row at which `left` computed steps last to the end.

    With κ the `rate`, n skipped steps of length d cost κ w dᵖ (n + ½)^(p+1) / (p + 1). Where each
    gap costs τ, a step ahead is therefore computed by the part 1 / (1 + n(τ)), and these parts,
    summed, fall as τ rises. Asked anew at every step, the answer makes up for what this model
    gets wrong.

    Args:
        step: this step, with the grid of the run.
        rate: κ `[samples]`; a sample's NaN stays.
        left: steps `[samples]` that may still be computed, protected ones ahead included.

    Returns:
        Zero where all that is ahead has to be computed, infinity where nothing more may be.
    """
    sizes = _sizes(step.grid, step.index)
    spare = left - (step.total - step.index - len(sizes))
    rate = rate.clamp(min=1e-12)
    low = torch.full_like(rate, -_SPAN)
    high = -low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        gap = (middle.exp()[:, None] * (_POWER + 1) / sizes) ** (1 / (_POWER + 1))
        few = (1 / (1 + (gap - 0.5).clamp(min=0))).sum(1) < spare
        low, high = torch.where(few, low, middle), torch.where(few, middle, high)
    spend = rate * ((low + high) / 2).exp()
    return spend.masked_fill(spare < 0.5, torch.inf).masked_fill(spare >= len(sizes), 0.0)


@lru_cache(maxsize=4096)
def _sizes(grid: Grid, index: int) -> Tensor:
    """w dᵖ of each step from `index` on that is not protected, d being its length."""
    found = [
        grid.weights[i] * max(grid.times[i] - grid.times[i - 1], 1e-9) ** _POWER
        for i in range(max(index, 1), len(grid.times))
        if not grid.protected[i]
    ]
    return torch.tensor(found, dtype=torch.float64)
