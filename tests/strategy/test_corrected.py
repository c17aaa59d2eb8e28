"""Forecasts that make up for the gap before them."""

from itertools import pairwise
from math import exp

import pytest
import torch

from diffcache.predictors import Corrected, Course, Kriging

TIMES = (0.0, 0.02, 0.05, 0.11, 0.2, 0.31, 0.45, 0.6, 0.78, 1.0)
NOISE = tuple((1 - t) * 5 + 0.5 for t in TIMES)
MOVES = tuple(b - a for a, b in pairwise((*NOISE, 0.0)))
COURSE = Course(TIMES, MOVES, NOISE)


def weights(predictor, steps, now):
    times = torch.tensor([[TIMES[step] for step in steps]], dtype=torch.float64)
    return predictor.coefficients(times, torch.tensor([TIMES[now]], dtype=torch.float64))[0]


def at(values, steps, predictor, now):
    return sum(
        float(w) * values[step]
        for w, step in zip(weights(predictor, steps, now), steps, strict=False)
    )


@pytest.mark.parametrize("corrects", [True, False])
def test_a_run_keeps_what_corrections_read(corrects):
    base = Kriging(corrects=corrects)
    assert (base.anchors, base.along(COURSE).anchors) == (3, 3 + corrects)


def test_the_first_forecast_after_a_gap_corrects_the_sample():
    base, values = Kriging(), [t**3 - 2 * t for t in TIMES]
    # Computed: 0, 1, 2 and 5; forecast from 0, 1, 2: 3 and 4.
    steps = [5, 2, 1, 0]
    learnt = {j: at(values, steps[:3], base, j) for j in (3, 4)}
    forecast = {j: at(values, steps[1:], base, j) for j in (3, 4)}
    off = sum(MOVES[j] * (learnt[j] - forecast[j]) for j in (3, 4))
    newest = sum(MOVES[j] * float(weights(base, steps[:3], j)[0]) for j in (3, 4))
    trust = 1 - 6 * abs(newest) / NOISE[5]
    assert 0 < trust < 1
    wanted = at(values, steps[:3], base, 6) + trust * off / MOVES[6]
    assert at(values, steps, base.along(COURSE), 6) == pytest.approx(wanted, rel=1e-12)
    assert weights(base.along(COURSE), steps, 6).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("steps", "now"),
    [
        ([4, 3, 2, 1], 5),  # no gap
        ([6, 5, 2, 1], 7),  # a gap, and another computed step
        ([5, 2, 1, 0], 7),  # the second forecast after it
        ([8, 1, 0], 9),  # a gap too long to trust
        ([0], 1),
    ],
)
def test_other_forecasts_are_those_of_the_base(steps, now):
    found, plain = weights(Kriging().along(COURSE), steps, now), weights(Kriging(), steps, now)
    assert found[: len(plain)].equal(plain) and not found[len(plain) :].any()


def test_times_of_another_run_are_not_corrected():
    times = torch.tensor([[0.32, 0.06, 0.03, 0.01]], dtype=torch.float64)
    t = torch.tensor([0.46], dtype=torch.float64)
    found = Corrected(Kriging(), COURSE).coefficients(times, t)
    assert found[:, :3].equal(Kriging().coefficients(times, t))


def test_a_sample_that_follows_a_curve_ends_nearer_to_it():
    count = 41
    times = tuple(i / (count - 1) for i in range(count))
    course = Course(times, (-0.1,) * count, tuple(5 - 0.1 * i for i in range(count)))
    curve = [exp(3 * t) for t in times]
    ends = {}
    for base in (Kriging(corrects=False), Kriging()):
        predictor, computed, moved = base.along(course), [], 0.0
        for i, t in enumerate(times):
            if i < 3 or i % 3 == 0:
                computed.insert(0, i)
                moved += curve[i]
                continue
            anchors = computed[: predictor.anchors]
            clock = torch.tensor([[times[a] for a in anchors]], dtype=torch.float64)
            found = predictor.coefficients(clock, torch.tensor([t], dtype=torch.float64))[0]
            moved += sum(float(w) * curve[a] for w, a in zip(found, anchors, strict=False))
        ends[base.corrects] = abs(moved - sum(curve))
    assert ends[True] < 0.5 * ends[False]
