"""Which steps of a run to compute, for every number of them at once, by dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffcache.predictors import Predictor

# Longest gap that a plan may have, in skipped steps.
LONGEST = 8


class Plan:
    """The best steps to compute, for each number of them.

    A gap between two computed steps costs the square of its summed weighted errors: within a gap
    errors point the same way, from gap to gap they do not. What a step would err follows from the
    inner products of the predictions and from the predictor's weights. The least total for every
    number of computed steps comes from one dynamic programme over the last two computed steps, as
    schedules of caches are found in DPCache (arXiv 2602.22654), LeMiCa (arXiv 2511.00090) and
    BudCache; the costs here are of forecasts.

    Args:
        gram: what is expected of the inner products of the predictions `[steps, steps]`, float64.
        times: coordinate of each step.
        weights: weight of each step, as in `Step`.
        predictor: what stands in for skipped steps.
        most: the largest number of computed steps that is asked for.
        protected: of each step, whether it is always computed; the first is in any case.
        longest: how many steps in a row may be skipped.
        first: by how much errors are multiplied where the first value alone stands in.
    """

    def __init__(
        self,
        gram: Tensor,
        times: Sequence[float],
        weights: Sequence[float],
        predictor: Predictor,
        most: int,
        protected: Sequence[bool] = (),
        longest: int = LONGEST,
        first: float = 1.0,
    ) -> None:
        self.steps = steps = len(times)
        self.longest = longest
        # By b, back and gap: of skipping `gap` steps after b, the one computed before which is
        # `back` steps older; 0 where none is.
        self._costs = _costs(gram, times, weights, predictor, longest)
        self._costs[:, 0] *= first**2
        for step in np.flatnonzero(protected):
            for b in range(max(0, step - longest), step):
                self._costs[b, :, step - b :] = np.inf
        # By left, b and back: the least cost from b on with `left` more to compute.
        most = min(most, steps)
        self._ahead = np.full((most + 1, steps, longest + 2), np.inf)
        for b in range(steps - 1, -1, -1):
            rest = steps - 1 - b
            if rest <= longest:
                self._ahead[0, b] = self._costs[b, :, rest]
            for gap in range(min(longest, rest - 1) + 1):
                found = self._costs[b, :, gap] + self._ahead[:-1, b + 1 + gap, gap + 1, None]
                np.minimum(self._ahead[1:, b], found, out=self._ahead[1:, b])

    def computes(self, step: int, left: int, newest: int, older: int) -> bool:
        """Whether it is best to compute `step`, where `left` may be, this one included.

        Args:
            step: any but the first.
            left: may be more than there are, or fewer than suffice.
            newest: the last computed step.
            older: the one computed before it; `newest` where there is none.
        """
        left = min(left, self.steps - step)
        if left <= 0:
            return False
        gaps = np.arange(step - newest - 1, min(self.longest, self.steps - 2 - newest) + 1)
        back = min(newest - older, self.longest + 1)
        ahead = self._ahead[left - 1, newest + 1 + gaps, gaps + 1]
        found = self._costs[newest, back, gaps] + ahead
        if not np.isfinite(found).any():
            # So few do not suffice for the gaps that plans have; they are spread evenly.
            return (step - newest) * (left + 1) >= self.steps - newest
        return int(found.argmin()) == 0


def _costs(
    gram: Tensor,
    times: Sequence[float],
    weights: Sequence[float],
    predictor: Predictor,
    longest: int,
) -> np.ndarray:
    steps = len(times)
    newest, back, gap = torch.meshgrid(
        torch.arange(steps), torch.arange(longest + 2), torch.arange(longest + 1), indexing="ij"
    )
    possible = (back <= newest) & (newest + gap < steps)
    errors = torch.zeros(newest.shape, dtype=torch.float64)
    clock = torch.tensor(times, dtype=torch.float64)
    scale = torch.tensor(weights, dtype=torch.float64) / gram.diagonal().sqrt()
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
        errors[chosen] = squares.sqrt() * scale[skipped]
    return torch.where(possible, errors.cumsum(-1).square(), torch.inf).numpy()


def _anchors(newest: Tensor, back: Tensor, count: int) -> Tensor:
    """The newest `count` anchors `[n, count]`, of which two are known: gaps widen along a run."""
    found = [newest, newest - back]
    while len(found) < count:
        found.append((found[-1] - (back // 2).clamp(min=1)).clamp(min=0))
    return torch.stack(found[:count], 1)
