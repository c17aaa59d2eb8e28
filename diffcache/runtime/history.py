"""Values really computed, the newest first, with a clock reading for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from diffcache.predictors import Predictor

Clock = tuple[tuple[float, ...], ...]
Rule = Callable[[Predictor, Clock, float], Tensor]


class Anchor(NamedTuple):
    """When a value was computed: in the scheduler's coordinate, and as a step number."""

    time: float
    step: int


# Runs over one timetable ask for the same few hundred combinations again and again.
@lru_cache(maxsize=4096)
def _weights(predictor: Predictor, clock: Clock, t: float) -> Tensor:
    times = torch.tensor(clock, dtype=torch.float64)
    return predictor.coefficients(times, torch.full((len(times),), t, dtype=torch.float64))


@lru_cache(maxsize=4096)
def _growth(predictor: Predictor, clock: Clock, t: float) -> Tensor:
    times = torch.tensor(clock, dtype=torch.float64)
    if times.shape[1] < predictor.anchors:
        return torch.full((len(times), 1), float("nan"), dtype=torch.float64)
    return predictor.growth(times, torch.full((len(times),), t, dtype=torch.float64))[:, None]


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
        # Level: all rows were always computed together, so that their anchors agree.
        self.level = True

    @property
    def rows(self) -> int:
        return len(self.anchors)

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
        return all(
            new.shape == old.shape and new.dtype == old.dtype and new.device == old.device
            for new, old in zip(leaves, self.slots[0], strict=True)
        )

    def append(
        self, leaves: Sequence[Tensor], time: float, step: int, rows: Sequence[bool] | None = None
    ) -> None:
        """Stores `leaves`, each `[rows, ...]`, as computed at `time` for the rows where `rows`.

        None stands for all rows. A value at the time of the newest one replaces it (PNDM repeats a
        timestep). Leaves of another shape, dtype or device start afresh, with all rows.
        """
        if not self.fits(leaves):
            self.slots = []
            self.anchors = [[] for _ in range(leaves[0].shape[0])]
            self.level, rows = True, None
        anchor = Anchor(time, step)
        if rows is None and self.level:
            self._append_all(leaves, anchor)
        else:
            self._append_some(leaves, anchor, [True] * self.rows if rows is None else rows)

    def _append_all(self, leaves: Sequence[Tensor], anchor: Anchor) -> None:
        shared = self.anchors[0]
        if not shared or shared[0].time != anchor.time:
            if len(self.slots) < self.capacity:
                self.slots.append([torch.empty_like(leaf) for leaf in leaves])
            self.slots.insert(0, self.slots.pop())
            shared = [anchor, *shared[: self.capacity - 1]]
        else:
            shared = [anchor, *shared[1:]]
        self.anchors = [shared] * self.rows
        for old, new in zip(self.slots[0], leaves, strict=True):
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
            for newer, older in zip(self.slots[-2::-1], self.slots[:0:-1], strict=True):
                older[index][fresh] = newer[index][fresh]
            self.slots[0][index][written] = leaf[written]
        moved = set(fresh)
        for row in written:
            kept = self.anchors[row] if row in moved else self.anchors[row][1:]
            self.anchors[row] = [anchor, *kept[: self.capacity - 1]]

    def _by_rows(self, rule: Rule, predictor: Predictor, t: float) -> Tensor:
        """`rule(predictor, clock, t)` for every row, `[rows, n]`; `[1, n]` where all rows agree.

        Rows that have fewer anchors than others are served apart, and padded with zeros.
        """
        which = 0 if predictor.coordinate == "noise" else 1
        groups: dict[int, list[int]] = {}
        for row, anchors in enumerate(self.anchors[:1] if self.level else self.anchors):
            groups.setdefault(min(len(anchors), predictor.anchors), []).append(row)
        results = []
        for count, members in groups.items():
            clock = tuple(tuple(a[which] for a in self.anchors[r][:count]) for r in members)
            results.append(rule(predictor, clock, t))
        if len(results) == 1:
            return results[0]
        padded = torch.zeros(self.rows, max(r.shape[1] for r in results), dtype=torch.float64)
        for members, result in zip(groups.values(), results, strict=True):
            padded[members, : result.shape[1]] = result
        return padded

    def weights(self, predictor: Predictor, t: float) -> Tensor:
        """The predictor's weights at `t` `[rows, anchors]`, or `[1, anchors]` for all rows."""
        return self._by_rows(_weights, predictor, t)

    def growth(self, predictor: Predictor, t: float) -> Tensor:
        """The predictor's growth at `t` `[rows]`, NaN for rows short of anchors."""
        return self._by_rows(_growth, predictor, t)[:, 0].expand(self.rows)

    def forecast(self, predictor: Predictor, t: float) -> list[Tensor]:
        """Forecasts of every leaf `[rows, ...]` at `t` in the predictor's coordinate."""
        weights = self.weights(predictor, t)
        depth = weights.shape[1]
        return [
            predictor.predict([slot[index] for slot in self.slots[:depth]], weights)
            for index in range(len(self.slots[0]))
        ]

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
        twin.anchors, twin.level = list(anchors), self.level
        return twin
