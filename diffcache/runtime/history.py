"""Values really computed, the newest first, with a clock reading for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor

from diffcache.kernels import combine
from diffcache.kernels.transfer import sent
from diffcache.predictors import Predictor

Clock = tuple[tuple[float, ...], ...]
Weights = tuple[tuple[float, ...], ...]


class Anchor(NamedTuple):
    """When a value was computed: in the scheduler's coordinate, and as a step number."""

    time: float
    step: int

    def on(self, coordinate: str) -> float:
        """The reading of a predictor's coordinate, "noise" or "step"."""
        return self.time if coordinate == "noise" else float(self.step)


# Runs over one timetable ask for the same few hundred combinations again and again.
@lru_cache(maxsize=4096)
def _weights(predictor: Predictor, clock: Clock, t: float) -> Weights:
    times = torch.tensor(clock, dtype=torch.float64)
    found = predictor.coefficients(times, torch.full((len(times),), t, dtype=torch.float64))
    return tuple(map(tuple, found.tolist()))


@lru_cache(maxsize=4096)
def _outlook(predictor: Predictor, clock: Clock, t: float) -> tuple[Weights, tuple[float, ...]]:
    weights, times = _weights(predictor, clock, t), torch.tensor(clock, dtype=torch.float64)
    if times.shape[1] < predictor.needed:
        return weights, (nan,) * len(times)
    now = torch.full((len(times),), t, dtype=torch.float64)
    return weights, tuple(predictor.growth(times, now).tolist())


class History:
    """The last `capacity` computed values of some tensors, kept row by row.

    Rows are computed at different steps, so each row has anchors of its own; all are stored newest
    first. Values are copies, in the dtype they were computed in: nothing that a pipeline later
    writes in place reaches them, and what `forecast` returns is new memory.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots: list[list[Tensor]] = []
        self.anchors: list[list[Anchor]] = []
        self.rows = 0
        # Level: all rows were always computed together, so that their anchors agree.
        self.level = True

    @property
    def bytes(self) -> int:
        return sum(leaf.nbytes for slot in self.slots for leaf in slot)

    @property
    def depth(self) -> int:
        """How many anchors every row has."""
        if self.level:
            return len(self.anchors[0]) if self.anchors else 0
        return min(map(len, self.anchors))

    def fits(self, leaves: Sequence[Tensor]) -> bool:
        """Whether `leaves` continue what is stored: same number, shapes, dtypes, devices."""
        if not self.slots or len(leaves) != len(self.slots[0]):
            return False
        for old, new in zip(self.slots[0], leaves, strict=True):
            if old.shape != new.shape or old.dtype != new.dtype or old.device != new.device:
                return False
        return True

    def append(
        self,
        leaves: Sequence[Tensor],
        now: Anchor,
        rows: Sequence[bool] | None = None,
        own: bool = False,
    ) -> None:
        """Stores `leaves`, each `[rows, ...]`, as computed `now` for the rows where `rows`.

        None stands for all rows. Leaves that the history may `own` need not be copied. A value at
        the time of the newest one replaces it (PNDM repeats a timestep). Leaves of another shape,
        dtype or device start afresh, with all rows.
        """
        if not self.fits(leaves):
            self.slots = []
            self.rows = leaves[0].shape[0]
            self.anchors = [[] for _ in range(self.rows)]
            self.level, rows = True, None
        if rows is None and self.level:
            self._append_all(leaves, now, own)
        else:
            self._append_some(leaves, now, [True] * self.rows if rows is None else rows)

    def restamp(self, time: float) -> None:
        """Sets the time of the newest value of every row."""
        self.anchors = [[a[0]._replace(time=time), *a[1:]] for a in self.anchors]

    def _append_all(self, leaves: Sequence[Tensor], anchor: Anchor, own: bool) -> None:
        slots, shared = self.slots, self.anchors[0]
        if not shared or shared[0].time != anchor.time:
            if len(slots) < self.capacity:
                slots.append([] if own else [torch.empty_like(leaf) for leaf in leaves])
            slots.insert(0, slots.pop())
            shared = [anchor, *shared[: self.capacity - 1]]
        else:
            shared = [anchor, *shared[1:]]
        self.anchors = [shared] * self.rows
        if own:
            slots[0] = list(leaves)
            return
        for old, new in zip(slots[0], leaves, strict=True):
            old.copy_(new)

    def _append_some(self, leaves: Sequence[Tensor], anchor: Anchor, rows: Sequence[bool]) -> None:
        self.level = False
        while len(self.slots) < self.capacity:
            self.slots.append([torch.zeros_like(leaf) for leaf in leaves])
        written = [row for row, computed in enumerate(rows) if computed]
        fresh = [
            row
            for row in written
            if not self.anchors[row] or self.anchors[row][0].time != anchor.time
        ]
        for index, leaf in enumerate(leaves):
            push, write = (
                sent(torch.tensor(rows, dtype=torch.long), leaf.device) for rows in (fresh, written)
            )
            for newer, older in zip(self.slots[-2::-1], self.slots[:0:-1], strict=True):
                older[index][push] = newer[index][push]
            self.slots[0][index][write] = leaf[write]
        moved = set(fresh)
        for row in written:
            kept = self.anchors[row] if row in moved else self.anchors[row][1:]
            self.anchors[row] = [anchor, *kept[: self.capacity - 1]]

    def _clock(self, predictor: Predictor) -> Clock:
        """The predictor's anchors of a level history, the first row's for all."""
        times, steps = zip(*self.anchors[0][: predictor.anchors], strict=True)
        return (times if predictor.coordinate == "noise" else steps,)

    def _clocks(self, predictor: Predictor) -> Iterator[tuple[list[int], Clock]]:
        """Rows that have as many of the predictor's anchors as each other, and those anchors."""
        which = 0 if predictor.coordinate == "noise" else 1
        depth = predictor.anchors
        groups: dict[int, list[int]] = {}
        for row, anchors in enumerate(self.anchors):
            groups.setdefault(min(len(anchors), depth), []).append(row)
        for count, members in groups.items():
            yield members, tuple(tuple(a[which] for a in self.anchors[r][:count]) for r in members)

    def weights(self, predictor: Predictor, t: float) -> Weights:
        """The predictor's weights at `t` `[rows, anchors]`, or one row of them for all rows.

        Rows with fewer anchors than others are padded with zeros.
        """
        if self.level:
            return _weights(predictor, self._clock(predictor), t)
        found = [(rows, _weights(predictor, clock, t)) for rows, clock in self._clocks(predictor)]
        if len(found) == 1:
            return found[0][1]
        deepest = max(len(weights[0]) for _, weights in found)
        padded = [(0.0,) * deepest] * self.rows
        for rows, weights in found:
            for row, own in zip(rows, weights, strict=True):
                padded[row] = own + (0.0,) * (deepest - len(own))
        return tuple(padded)

    def outlook(self, predictor: Predictor, t: float) -> tuple[Weights, list[float]]:
        """The predictor's weights at `t`, and each row's growth, NaN for rows short of anchors."""
        if self.level:
            weights, growth = _outlook(predictor, self._clock(predictor), t)
            return weights, [*growth] * self.rows
        grown = [nan] * self.rows
        for rows, clock in self._clocks(predictor):
            for row, value in zip(rows, _outlook(predictor, clock, t)[1], strict=True):
                grown[row] = value
        return self.weights(predictor, t), grown

    def forecast(self, predictor: Predictor, t: float) -> list[Tensor]:
        """Forecasts of every leaf `[rows, ...]` at `t` in the predictor's coordinate."""
        weights = self.weights(predictor, t)
        depth = len(weights[0])
        return [
            predictor.predict([slot[index] for slot in self.slots[:depth]], weights)
            for index in range(len(self.slots[0]))
        ]

    def blend(self, weights: Tensor) -> None:
        """Puts sums of each row's values, by `weights` `[rows, K]`, in place of its newest one."""
        depth = min(len(self.slots), weights.shape[1])
        for leaves in zip(*self.slots[:depth], strict=True):
            combine(leaves, weights[:, :depth], out=leaves[0])

    def snapshot(self) -> History:
        """An independent copy."""
        return self._mapped(torch.clone, self.anchors)

    def gather(self, index: Sequence[int]) -> History:
        """A history of the rows in `index`, in that order."""
        rows = list(index)
        return self._mapped(lambda tensor: tensor[rows], [self.anchors[row] for row in rows])

    def _mapped(self, change: Callable[[Tensor], Tensor], anchors: list[list[Anchor]]) -> History:
        twin = History(self.capacity)
        twin.slots = [[change(leaf) for leaf in slot] for slot in self.slots]
        twin.anchors, twin.rows, twin.level = list(anchors), len(anchors), self.level
        return twin
