"""Which steps of a run to compute, by what it costs to skip those between: dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import torch
from torch import Tensor

from diffcache.predictors import Predictor

# Longest gap that a plan may have, in skipped steps.
LONGEST = 8


class Gaps:
    """What it costs to skip the steps between two computed ones.

    A gap costs the square of its summed weighted errors: within a gap errors point the same way,
    from gap to gap they do not. What a step would err follows from the inner products of the
    predictions and from the predictor's weights.

    Args:
        gram: what is expected of the inner products of the predictions `[steps, steps]`, float64.
        times: coordinate of each step.
        weights: weight of each step, as in `Step`.
        predictor: what stands in for skipped steps.
        protected: of each step, whether it is always computed; the first is in any case.
        longest: how many steps in a row may be skipped.
        first: by how much errors are multiplied where the first value alone stands in.

    Attributes:
        steps: of the run.
        longest: as given.
        costs: `[newest, back, gap]`, of skipping `gap` steps after `newest`, the one computed
            before which is `back` steps older, 0 where none is; inf where they cannot be skipped.
    """

    def __init__(
        self,
        gram: Tensor,
        times: Sequence[float],
        weights: Sequence[float],
        predictor: Predictor,
        protected: Sequence[bool] = (),
        longest: int = LONGEST,
        first: float = 1.0,
    ) -> None:
        self.steps, self.longest = len(times), longest
        errors, possible = _errors(gram, times, predictor, longest)
        errors[:, 0] *= first
        self._expected = errors.numpy()
        ends = torch.arange(self.steps)[:, None] + torch.arange(longest + 1)
        moved = torch.tensor(weights, dtype=torch.float64)[ends.clamp(max=self.steps - 1)]
        totals = (errors * moved[:, None]).cumsum(-1)
        self.costs = torch.where(possible, totals.square(), inf).numpy()
        for step in np.flatnonzero(protected):
            for newest in range(max(0, step - longest), step):
                self.costs[newest, :, step - newest :] = inf

    def error(self, step: int, newest: int, older: int) -> float:
        """The relative error expected of skipping `step` too, up to `longest` after `newest`."""
        return float(self._expected[newest, self.back(newest, older), step - newest])

    def back(self, newest: int, older: int) -> int:
        """How far the step computed before `newest` is, as far as costs tell that apart."""
        return min(newest - older, self.longest + 1)

    def open(self, step: int, newest: int) -> np.ndarray:
        """The gaps after `newest` that a computed step may yet end, from `step` on."""
        return np.arange(step - newest - 1, min(self.longest, self.steps - 2 - newest) + 1)


class Plan:
    """The best steps to compute, for each number of them.

    The least total for every number of computed steps comes from one dynamic programme over the
    last two of them, as schedules of caches are found in DPCache (arXiv 2602.22654), LeMiCa (arXiv
    2511.00090) and BudCache; the costs here are of forecasts.

    Args:
        gaps: the costs.
        most: the largest number of computed steps that is asked for.
    """

    def __init__(self, gaps: Gaps, most: int) -> None:
        self.gaps = gaps
        steps, longest, costs = gaps.steps, gaps.longest, gaps.costs
        # By left, newest and back: the least cost from newest on with `left` more to compute.
        self._ahead = np.full((min(most, steps) + 1, steps, longest + 2), inf)
        for newest in range(steps - 1, -1, -1):
            rest = steps - 1 - newest
            if rest <= longest:
                self._ahead[0, newest] = costs[newest, :, rest]
            for gap in range(min(longest, rest - 1) + 1):
                after = self._ahead[:-1, newest + 1 + gap, gap + 1, None]
                found = costs[newest, :, gap] + after
                np.minimum(self._ahead[1:, newest], found, out=self._ahead[1:, newest])

    def computes(self, step: int, left: int, newest: int, older: int) -> bool:
        """Whether it is best to compute `step`, where `left` may be, this one included.

        Args:
            step: any but the first.
            left: may be more than there are, or fewer than suffice.
            newest: the last computed step.
            older: the one computed before it; `newest` where there is none.
        """
        steps = self.gaps.steps
        left = min(left, steps - step)
        if left <= 0:
            return False
        gaps = self.gaps.open(step, newest)
        ahead = self._ahead[left - 1, newest + 1 + gaps, gaps + 1]
        found = self.gaps.costs[newest, self.gaps.back(newest, older), gaps] + ahead
        if not np.isfinite(found).any():
            # So few do not suffice for the gaps that plans have; they are spread evenly.
            return (step - newest) * (left + 1) >= steps - newest
        return int(found.argmin()) == 0


class Priced:
    """The best steps to compute, however many, where each of them has a price.

    Args:
        gaps: the costs.
        price: of a computed step, in units of what gaps cost; above 0.
    """

    def __init__(self, gaps: Gaps, price: float) -> None:
        self.gaps, self.price = gaps, price
        steps, longest, costs = gaps.steps, gaps.longest, gaps.costs
        # By newest and back: the least cost and price from newest on.
        self._ahead = np.full((steps, longest + 2), inf)
        for newest in range(steps - 1, -1, -1):
            rest = steps - 1 - newest
            if rest <= longest:
                self._ahead[newest] = costs[newest, :, rest]
            between = gaps.open(newest + 1, newest)
            if len(between):
                after = price + self._ahead[newest + 1 + between, between + 1]
                found = (costs[newest][:, between] + after).min(1)
                np.minimum(self._ahead[newest], found, out=self._ahead[newest])

    def gain(self, step: int, newest: int, older: int) -> float:
        """By how much it is cheaper to compute `step` than not to, in prices.

        inf where it cannot be skipped.

        Args:
            step: any but the first.
            newest: the last computed step.
            older: the one computed before it; `newest` where there is none.
        """
        longest, rest = self.gaps.longest, self.gaps.steps - 1 - newest
        if step - newest > longest:
            return inf
        gaps = self.gaps.open(step, newest)
        costs = self.gaps.costs[newest, self.gaps.back(newest, older)]
        found = costs[gaps] + self.price + self._ahead[newest + 1 + gaps, gaps + 1]
        skipped = found[1:].min(initial=costs[rest] if rest <= longest else inf)
        return float(skipped - found[0]) / self.price if skipped < inf else inf


def _errors(
    gram: Tensor, times: Sequence[float], predictor: Predictor, longest: int
) -> tuple[Tensor, Tensor]:
    """Expected relative errors of the step `gap` after the newest, and which there are.

    Both are `[newest, back, gap]`.
    """
    steps = len(times)
    newest, back, gap = torch.meshgrid(
        torch.arange(steps), torch.arange(longest + 2), torch.arange(longest + 1), indexing="ij"
    )
    possible = (back <= newest) & (newest + gap < steps)
    errors = torch.zeros(newest.shape, dtype=torch.float64)
    clock = torch.tensor(times, dtype=torch.float64)
    size = gram.diagonal().sqrt()
    # A first value has none before it.
    for chosen, count in ((possible & (back == 0), 1), (possible & (back > 0), predictor.anchors)):
        chosen &= gap > 0
        skipped = newest[chosen] + gap[chosen]
        nodes = _anchors(newest[chosen], back[chosen], count)
        own = predictor.coefficients(clock[nodes], clock[skipped])
        own = torch.cat([torch.ones(len(own), 1, dtype=torch.float64), -own], 1)
        nodes = torch.cat([skipped[:, None], nodes], 1)[:, : own.shape[1]]
        between = gram[nodes[:, :, None], nodes[:, None, :]]
        squares = torch.einsum("ni,nij,nj->n", own, between, own).clamp(min=0)
        errors[chosen] = squares.sqrt() / size[skipped]
    return errors, possible


def _anchors(newest: Tensor, back: Tensor, count: int) -> Tensor:
    """The newest `count` anchors `[n, count]`, of which two are known: gaps widen along a run."""
    found = [newest, newest - back]
    while len(found) < count:
        found.append((found[-1] - (back // 2).clamp(min=1)).clamp(min=0))
    return torch.stack(found[:count], 1)
