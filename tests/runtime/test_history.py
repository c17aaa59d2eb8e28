"""Histories against a model that keeps a plain list for each row."""

import random
from math import isnan
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcache.predictors import Newton, Reuse, Taylor
from diffcache.runtime.history import Anchor, History


class Naive:
    """A list of `(time, step, values)` for each row, newest first."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows: list[list[tuple[float, int, list[Tensor]]]] = [[] for _ in range(rows)]
        self.capacity = capacity

    def append(self, leaves: list[Tensor], time: float, step: int, rows: list[bool]) -> None:
        for index, kept in enumerate(self.rows):
            if rows[index]:
                if kept and kept[0][0] == time:
                    del kept[0]
                kept.insert(0, (time, step, [leaf[index].clone() for leaf in leaves]))
                del kept[self.capacity :]

    def forecast(self, predictor: Any, t: float) -> list[Tensor]:
        which = 0 if predictor.coordinate == "noise" else 1
        rows = []
        for kept in self.rows:
            used = kept[: predictor.anchors]
            times = torch.tensor([[anchor[which] for anchor in used]], dtype=torch.float64)
            weights = predictor.coefficients(times, torch.tensor([t], dtype=torch.float64))[0]
            rows.append(
                [
                    sum(w * leaf.double() for w, leaf in zip(weights, leaves, strict=True))
                    for leaves in zip(*(anchor[2] for anchor in used), strict=True)
                ]
            )
        return [torch.stack(leaf) for leaf in zip(*rows, strict=True)]


def values(rows: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(rows, *shape, generator=generator) for shape in ((3,), (2, 2))]


@pytest.mark.parametrize(
    "predictor", [Reuse(), Newton(1), Newton(2), Newton(3), Taylor(2)], ids=str
)
@pytest.mark.parametrize("seed", range(8))
def test_random_appends_agree_with_lists(predictor, seed):
    dice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, capacity = dice.randint(1, 4), predictor.anchors
    history, naive = History(capacity), Naive(rows, capacity)
    time = 0.0
    for step in range(25):
        time += dice.choice([0.0, 0.3, 1.0, 2.5])
        mask = [True] * rows
        if step and dice.random() < 0.6:
            mask = [dice.random() < 0.5 for _ in range(rows)]
        leaves = values(rows, generator)
        history.append(leaves, Anchor(time, step), None if all(mask) else mask)
        naive.append(leaves, time, step, mask)
        for leaf in leaves:
            leaf.fill_(float("nan"))

        assert [len(anchors) for anchors in history.anchors] == [len(r) for r in naive.rows]
        assert history.depth == min(len(r) for r in naive.rows)
        for found, kept in zip(history.anchors, naive.rows, strict=True):
            assert [tuple(anchor) for anchor in found] == [anchor[:2] for anchor in kept]
        t = time + dice.random() if predictor.coordinate == "noise" else step + 1.0
        wanted = naive.forecast(predictor, t)
        for found, leaf in zip(
            history.forecast(predictor, Anchor(t, step + 1)), wanted, strict=True
        ):
            torch.testing.assert_close(found.double(), leaf, rtol=1e-3, atol=1e-3)


def test_coincident_times_replace():
    history = History(3)
    for time, value in ((0.0, 1.0), (1.0, 2.0), (1.0, 5.0), (1.0, 6.0)):
        history.append([torch.full((2, 1), value)], Anchor(time, int(time)), None)
    assert history.depth == 2
    assert history.forecast(Newton(1), Anchor(2.0, 2))[0].tolist() == [[11.0], [11.0]]


def test_values_are_copies_and_forecasts_are_new_memory():
    history, value = History(2), torch.ones(2, 3)
    history.append([value], Anchor(0.0, 0), None)
    value.zero_()
    forecast = history.forecast(Reuse(), Anchor(1.0, 1))[0]
    assert forecast.tolist() == [[1.0] * 3] * 2
    forecast.zero_()
    assert history.forecast(Reuse(), Anchor(2.0, 2))[0].tolist() == [[1.0] * 3] * 2


def test_owned_values_are_kept_as_they_are():
    history = History(2)
    owned = [torch.full((2, 3), float(step)) for step in range(3)]
    for step, value in enumerate(owned):
        history.append([value], Anchor(float(step), step), own=True)
    assert [slot[0].data_ptr() for slot in history.slots] == [v.data_ptr() for v in owned[:0:-1]]
    copied = torch.full((2, 3), 3.0)
    history.append([copied], Anchor(3.0, 3))
    assert torch.equal(history.forecast(Newton(1), Anchor(4.0, 4))[0], torch.full((2, 3), 4.0))
    copied.zero_()
    assert torch.equal(history.forecast(Newton(1), Anchor(4.0, 4))[0], torch.full((2, 3), 4.0))


def test_memory_is_bounded_and_reported():
    history = History(2)
    for step in range(9):
        history.append(
            [torch.ones(2, 5)], Anchor(float(step), step), [True, False] if step else None
        )
    assert history.bytes == 2 * 2 * 5 * 4


@pytest.mark.parametrize(
    "other",
    [
        [torch.ones(3, 3)],
        [torch.ones(2, 4)],
        [torch.ones(2, 3).half()],
        [torch.ones(2, 3), torch.ones(2, 3)],
    ],
    ids=["rows", "shape", "dtype", "number"],
)
def test_other_leaves_start_afresh(other):
    history = History(2)
    for step in range(2):
        history.append([torch.zeros(2, 3)], Anchor(float(step), step), None)
    assert not history.fits(other)
    history.append(other, Anchor(2.0, 2), [True, *[False] * (len(other[0]) - 1)])
    assert (history.depth, history.rows, history.level) == (1, len(other[0]), True)
    assert torch.equal(history.forecast(Newton(1), Anchor(3.0, 3))[0], other[0])


def test_growth_is_unknown_short_of_anchors():
    history = History(2)
    history.append([torch.ones(2, 1)], Anchor(0.0, 0), None)
    assert all(map(isnan, history.outlook(Newton(1), Anchor(1.0, 1))[1]))
    history.append([torch.ones(2, 1)], Anchor(1.0, 1), [True, False])
    growth = history.outlook(Newton(1), Anchor(3.0, 3))[1]
    assert growth[0] == 2.0 * 3.0 and isnan(growth[1])


def test_snapshot_is_independent():
    history = History(2)
    history.append([torch.tensor([[1.0], [2.0]])], Anchor(0.0, 0), None)
    twin = history.snapshot()
    history.append([torch.tensor([[7.0], [8.0]])], Anchor(1.0, 1), None)
    assert twin.forecast(Reuse(), Anchor(2.0, 2))[0].tolist() == [[1.0], [2.0]]
    assert (twin.depth, history.depth) == (1, 2)
