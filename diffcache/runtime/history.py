"""Values really computed, the newest first, with a clock reading for each row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import nan
from typing import NamedTuple

import torch
from torch import Tensor

from diffcache.kernels import combine
from diffcache.kernels.transfer import sent
from diffcache.predictors import Predictor, damped

Weights = tuple[tuple[float, ...], ...]


class Anchor(NamedTuple):
    """When a value was computed: in the scheduler's coordinate, and as a step number."""

    time: float
    step: int

    def on(self, coordinate: str) -> float:
        """The reading of a predictor's coordinate, "noise" or "step"."""
        return self.time if coordinate == "noise" else float(self.step)


# Samples and runs over one timetable ask for the same few hundred combinations again and again.
@lru_cache(maxsize=4096)
def _outlook(
    predictor: Predictor, anchors: tuple[Anchor, ...], now: Anchor
) -> tuple[tuple[float, ...], float]:
    """Weights of values computed at `anchors` in their forecast `now`, and the growth of its error.

    The growth is NaN where there are not anchors enough to tell it.
    """
    times = torch.tensor([[a.on(predictor.coordinate) for a in anchors]], dtype=torch.float64)
    t = torch.tensor([now.on(predictor.coordinate)], dtype=torch.float64)
    growth = predictor.growth(times, t).item() if len(anchors) >= predictor.needed else nan
    return tuple(predictor.coefficients(times, t)[0].tolist()), growth


def _form(leaves: Sequence[Tensor]) -> list[tuple]:
    return [(leaf.shape, leaf.dtype, leaf.device) for leaf in leaves]


def _room(leaves: Sequence[Tensor]) -> list[Tensor]:
    # A denoiser may be called in inference mode, and its scheduler stepped outside of it.
    with torch.inference_mode(False):
        return [torch.zeros_like(leaf) for leaf in leaves]


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
        self._form: list[tuple] | None = None
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
        return self._form == _form(leaves)

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
            self.slots, self._form = [], _form(leaves)
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
                slots.append([] if own else _room(leaves))
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
            self.slots.append(_room(leaves))
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

    def outlook(self, predictor: Predictor, now: Anchor) -> tuple[Weights, list[float]]:
        """The predictor's weights `now` `[rows, K]`, and each row's growth.

        The weights may be one row for all of them; those of rows with fewer anchors than others are
        padded with zeros. The growth of rows short of anchors is NaN.
        """
        depth = predictor.anchors
        if self.level:
            weights, growth = _outlook(predictor, tuple(self.anchors[0][:depth]), now)
            return (weights,), [growth] * self.rows
        found = [_outlook(predictor, tuple(anchors[:depth]), now) for anchors in self.anchors]
        deepest = max(len(weights) for weights, _ in found)
        padded = tuple(weights + (0.0,) * (deepest - len(weights)) for weights, _ in found)
        return padded, [growth for _, growth in found]

    def hindsight(self, predictor: Predictor) -> tuple[tuple[float, ...] | Tensor, list[bool]]:
        """Weights of the values before the newest in its forecast, and which rows have enough.

        The weights are `[K]` for all rows, or a tensor `[rows, K]`.
        """
        count = predictor.anchors
        known = [len(anchors) > count for anchors in self.anchors]

        def weights(row: int) -> tuple[float, ...]:
            newest, *before = self.anchors[row]
            return _outlook(predictor, tuple(before[:count]), newest)[0]

        if not any(known):
            return (), known
        if self.level:
            return weights(0), known
        found = [weights(row) if enough else (0.0,) * count for row, enough in enumerate(known)]
        return torch.tensor(found, dtype=torch.float32), known

    def forecast(
        self, predictor: Predictor, now: Anchor, factors: Tensor | None = None
    ) -> list[Tensor]:
        """Forecasts `now` of every leaf `[rows, ...]`.

        `factors` are of how far forecasts go from the newest value, `[samples]`, of which rows are
        a multiple.
        """
        weights, _ = self.outlook(predictor, now)
        depth = len(weights[0])
        if factors is not None and not self.rows % len(factors):
            # A scheduler may step on another device than the denoiser's.
            device = self.slots[0][0].device
            plain = sent(torch.tensor(weights, dtype=torch.float32), device)
            weights = damped(plain, factors.to(device).repeat(self.rows // len(factors)))
        return [
            predictor.predict([slot[index] for slot in self.slots[:depth]], weights)
            for index in range(len(self.slots[0]))
        ]

    def blend(self, weights: Tensor, leaf: int) -> None:
        """Puts sums of each row's values, by `weights` `[rows, K]`, in place of its newest one.

        Only those of the leaf of that number change.
        """
        depth = min(len(self.slots), weights.shape[1])
        values = [slot[leaf] for slot in self.slots[:depth]]
        combine(values, weights[:, :depth], out=values[0])

    def snapshot(self) -> History:
        """An independent copy."""
        twin = History(self.capacity)
        # As in `_room`: who goes on may write to them outside of inference mode.
        with torch.inference_mode(False):
            twin.slots = [[leaf.clone() for leaf in slot] for slot in self.slots]
        twin._form, twin.rows, twin.level = self._form, self.rows, self.level
        twin.anchors = list(self.anchors)
        return twin
