"""Values really computed, the newest first, with a clock reading for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffcache.predictors import Predictor


class History:
    """The last `capacity` computed values of some tensors, kept row by row.

    Rows are computed at different steps, so each row has anchors of its own; all are stored newest
    first. Values are copies, in the dtype they were computed in: nothing that a pipeline later
    writes in place reaches them, and what `forecast` returns is new memory.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots: list[list[Tensor]] = []
        self.times = torch.empty(0, 0, dtype=torch.float64)
        self.steps = torch.empty(0, 0, dtype=torch.float64)
        self.counts = torch.empty(0, dtype=torch.long)
        self._level = True
        self._depth = 0

    @property
    def rows(self) -> int:
        return len(self.counts)

    @property
    def bytes(self) -> int:
        return sum(leaf.nbytes for slot in self.slots for leaf in slot)

    @property
    def depth(self) -> int:
        """Anchors that every row has."""
        return self._depth if self._level else int(self.counts.min())

    def fits(self, leaves: Sequence[Tensor]) -> bool:
        """Whether `leaves` continue what is stored: same number, shapes, dtypes, devices."""
        if not self.slots:
            return False
        return len(leaves) == len(self.slots[0]) and all(
            new.shape == old.shape and new.dtype == old.dtype and new.device == old.device
            for new, old in zip(leaves, self.slots[0], strict=True)
        )

    def append(self, leaves: Sequence[Tensor], time: float, step: int, rows: Tensor | None) -> None:
        """Stores `leaves`, each `[rows, ...]`, as computed at `time` for the rows in `rows`.

        `rows` is a bool mask, None for all. A value at the time of the newest one replaces it
        (PNDM repeats a timestep). Leaves of another shape, dtype or device start afresh.
        """
        if not self.fits(leaves):
            self._start(leaves)
            rows = None
        if rows is None and self._level:
            self._append_all(leaves, time, step)
        else:
            everything = torch.ones(self.rows, dtype=torch.bool)
            self._append_some(leaves, time, step, everything if rows is None else rows)

    def _start(self, leaves: Sequence[Tensor]) -> None:
        rows = leaves[0].shape[0]
        self.slots = [[torch.zeros_like(leaf) for leaf in leaves]]
        self.times = torch.zeros(rows, self.capacity, dtype=torch.float64)
        self.steps = torch.zeros(rows, self.capacity, dtype=torch.float64)
        self.counts = torch.zeros(rows, dtype=torch.long)
        self._level, self._depth = True, 0

    def _append_all(self, leaves: Sequence[Tensor], time: float, step: int) -> None:
        if self._depth == 0 or self.times[0, 0].item() != time:
            if self._depth > 0:
                if len(self.slots) < self.capacity:
                    self.slots.append([torch.empty_like(leaf) for leaf in leaves])
                self.slots.insert(0, self.slots.pop())
                self.times = self.times.roll(1, 1)
                self.steps = self.steps.roll(1, 1)
            self._depth = min(self._depth + 1, self.capacity)
            self.counts.fill_(self._depth)
            self.times[:, 0] = time
        self.steps[:, 0] = step
        for old, new in zip(self.slots[0], leaves, strict=True):
            old.copy_(new)

    def _append_some(self, leaves: Sequence[Tensor], time: float, step: int, rows: Tensor) -> None:
        self._level = False
        fresh = (rows & ((self.times[:, 0] != time) | (self.counts == 0))).nonzero()[:, 0]
        while len(self.slots) < self.capacity:
            self.slots.append([torch.zeros_like(leaf) for leaf in leaves])
        for index in range(len(leaves)):
            where = fresh.to(leaves[index].device)
            for newer, older in zip(self.slots[-2::-1], self.slots[:0:-1], strict=True):
                older[index][where] = newer[index][where]
            written = rows.nonzero()[:, 0].to(leaves[index].device)
            self.slots[0][index][written] = leaves[index][written]
        for clock in (self.times, self.steps):
            clock[fresh] = clock[fresh].roll(1, 1)
        self.counts[fresh] = (self.counts[fresh] + 1).clamp(max=self.capacity)
        self.times[rows, 0] = time
        self.steps[rows, 0] = step

    def clock(self, predictor: Predictor) -> Tensor:
        """Anchor times `[rows, capacity]` in the predictor's coordinate, newest first."""
        return self.times if predictor.coordinate == "noise" else self.steps

    def groups(self, anchors: int) -> list[tuple[int, Tensor | slice]]:
        """Rows by how many anchors they have, at most `anchors`: usually one group of all rows."""
        if self._level:
            return [(min(self._depth, anchors), slice(None))]
        usable = self.counts.clamp(max=anchors)
        return [(int(n), usable == n) for n in usable.unique()]

    def weights(self, predictor: Predictor, t: Tensor) -> Tensor:
        """The predictor's weights `[rows, anchors]` at `t` `[rows]`; rows without anchors get 0."""
        return self._by_group(predictor, t, predictor.coefficients)

    def growth(self, predictor: Predictor, t: Tensor) -> Tensor:
        """The predictor's growth `[rows]` at `t` `[rows]`, NaN for rows short of anchors."""
        growth = torch.full((self.rows,), float("nan"), dtype=torch.float64)
        clock = self.clock(predictor)
        for count, rows in self.groups(predictor.anchors):
            if count == predictor.anchors:
                growth[rows] = predictor.growth(clock[rows, :count], t[rows])
        return growth

    def _by_group(
        self, predictor: Predictor, t: Tensor, rule: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        clock = self.clock(predictor)
        groups = self.groups(predictor.anchors)
        if len(groups) == 1 and groups[0][0] > 0:
            return rule(clock[:, : groups[0][0]], t)
        weights = torch.zeros(self.rows, predictor.anchors, dtype=torch.float64)
        for count, rows in groups:
            if count:
                weights[rows, :count] = rule(clock[rows, :count], t[rows])
        return weights

    def forecast(self, predictor: Predictor, t: Tensor) -> list[Tensor]:
        """Forecasts of every leaf `[rows, ...]` at `t` `[rows]` in the predictor's coordinate."""
        weights = self.weights(predictor, t)
        depth = weights.shape[1]
        return [
            predictor.predict([slot[index] for slot in self.slots[:depth]], weights)
            for index in range(len(self.slots[0]))
        ]

    def snapshot(self) -> History:
        """An independent copy."""
        return self._mapped(torch.clone)

    def gather(self, index: Tensor) -> History:
        """A history of the rows in `index`, in that order."""
        return self._mapped(lambda tensor: tensor[index.to(tensor.device)])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> History:
        twin = History(self.capacity)
        twin.slots = [[change(leaf) for leaf in slot] for slot in self.slots]
        twin.times, twin.steps = change(self.times), change(self.steps)
        twin.counts = change(self.counts)
        twin._level, twin._depth = self._level, self._depth
        return twin
