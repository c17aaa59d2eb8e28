"""Planned schedules, against every schedule there is."""

from itertools import combinations, pairwise

import pytest
import torch

from diffcache.policies.planning import LONGEST, Gaps, Plan, Priced
from diffcache.predictors import Kriging, Newton


def run(steps: int, seed: int) -> tuple[torch.Tensor, tuple[float, ...], tuple[float, ...]]:
    """Predictions `[steps, elements]` along a smooth path, its times and its weights."""
    generator = torch.Generator().manual_seed(seed)
    times = (torch.rand(steps, generator=generator).double() + 0.1).cumsum(0)
    times = times / times[-1]
    a, b, c = (torch.randn(60, generator=generator).double() for _ in range(3))
    t = times[:, None]
    values = a + b * (3 * t).sin() + c * (7 * t).cos() + 2
    return values, tuple(times.tolist()), tuple((1.5 - times).tolist())


def followed(plan: Plan, count: int, *computed: int) -> tuple[int, ...]:
    """The `count` steps that are computed by `plan`, of which the first ones were in any case."""
    computed = [0, *computed]
    for step in range(computed[-1] + 1, plan.gaps.steps):
        older = computed[-2] if len(computed) > 1 else computed[-1]
        if plan.computes(step, count - len(computed), computed[-1], older):
            computed.append(step)
    return tuple(computed)


def cost(values, times, weights, predictor, chosen) -> float:
    """What a schedule costs, played step by step with the predictor's own anchors."""
    total, gap, kept = 0.0, 0.0, []
    for i in range(len(values)):
        if i in chosen:
            total, gap = total + gap**2, 0.0
            kept.insert(0, i)
            continue
        anchors = kept[: predictor.anchors]
        c = predictor.coefficients(
            torch.tensor([[times[k] for k in anchors]]).double(), torch.tensor([times[i]]).double()
        )[0]
        forecast = sum(w * values[k] for w, k in zip(c, anchors, strict=True))
        gap += weights[i] * float((values[i] - forecast).norm() / values[i].norm())
    return total + gap**2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", range(1, 10))
def test_a_plan_of_lines_is_the_best_there_is(seed, count):
    predictor = Newton(1)
    values, times, weights = run(9, seed)
    found = followed(Plan(Gaps(values @ values.T, times, weights, predictor), count), count)
    every = ((0, *rest) for rest in combinations(range(1, 9), count - 1))
    least = min(cost(values, times, weights, predictor, chosen) for chosen in every)
    assert len(found) == count
    assert cost(values, times, weights, predictor, found) == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("count", range(9, 22))
def test_a_plan_with_more_anchors_beats_even_spacing(count):
    values, times, weights = run(28, 1)
    predictor = Kriging()
    found = followed(Plan(Gaps(values @ values.T, times, weights, predictor), count), count)
    even = {round(i * 27 / (count - 1)) for i in range(count)}
    planned = cost(values, times, weights, predictor, found)
    assert planned < cost(values, times, weights, predictor, even)


@pytest.mark.parametrize("count", [4, 7, 12, 29, 30])
def test_no_gap_of_a_plan_is_longer_than_any_may_be(count):
    values, times, weights = run(30, 2)
    found = followed(Plan(Gaps(values @ values.T, times, weights, Newton(1)), count), count)
    ends = [*found, 30]
    assert len(found) == count and max(b - a for a, b in pairwise(ends)) <= LONGEST + 1


@pytest.mark.parametrize("count", range(6, 20))
def test_protected_steps_are_in_every_plan(count):
    values, times, weights = run(20, 3)
    protected = [step in (3, 11, 19) for step in range(20)]
    gaps = Gaps(values @ values.T, times, weights, Newton(1), protected)
    found = followed(Plan(gaps, count), count)
    assert len(found) == count and {0, 3, 11, 19} <= set(found)


def test_a_plan_goes_on_from_where_it_was_left():
    values, times, weights = run(12, 5)
    # Steps 1 and 2 were computed against the plan, and six may be in all.
    found = followed(Plan(Gaps(values @ values.T, times, weights, Newton(1)), 6), 6, 1, 2)
    every = ((0, 1, 2, *rest) for rest in combinations(range(3, 12), 3))
    least = min(cost(values, times, weights, Newton(1), chosen) for chosen in every)
    assert cost(values, times, weights, Newton(1), found) == pytest.approx(least)


def bought(plan: Priced, *computed: int) -> tuple[int, ...]:
    """The steps that are worth their price, of which the first ones were computed in any case."""
    computed = [0, *computed]
    for step in range(computed[-1] + 1, plan.gaps.steps):
        older = computed[-2] if len(computed) > 1 else computed[-1]
        if plan.gain(step, computed[-1], older) >= 0:
            computed.append(step)
    return tuple(computed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("price", [1e-9, 1e-4, 1e-3, 1e-2, 0.1, 1.0])
def test_a_priced_plan_of_lines_is_the_best_there_is(seed, price):
    predictor = Newton(1)
    values, times, weights = run(9, seed)
    every = [(0, *rest) for n in range(9) for rest in combinations(range(1, 9), n)]
    costs = {c: cost(values, times, weights, predictor, c) + price * len(c) for c in every}
    found = bought(Priced(Gaps(values @ values.T, times, weights, predictor), price))
    assert costs[found] == pytest.approx(min(costs.values()), abs=1e-9)


def test_a_gain_is_what_the_best_run_without_the_step_costs_more():
    predictor, price = Newton(1), 3e-3
    values, times, weights = run(9, 4)
    plan = Priced(Gaps(values @ values.T, times, weights, predictor), price)
    for step in range(2, 9):
        known = [(0, 1, *rest) for n in range(8) for rest in combinations(range(step, 9), n)]
        costs = {c: cost(values, times, weights, predictor, c) + price * len(c) for c in known}
        with_it, without = (
            min(total for chosen, total in costs.items() if (step in chosen) == wanted)
            for wanted in (True, False)
        )
        assert plan.gain(step, 1, 0) == pytest.approx((without - with_it) / price, abs=1e-4)


def test_a_lower_price_buys_no_fewer_steps():
    values, times, weights = run(28, 1)
    gaps = Gaps(values @ values.T, times, weights, Kriging())
    counts = [len(bought(Priced(gaps, 10.0**n))) for n in range(4, -12, -1)]
    assert counts == sorted(counts) and counts[0] <= 5 and counts[-1] == 28


def test_what_cannot_be_skipped_gains_without_end():
    values, times, weights = run(20, 3)
    protected = [step in (3, 11, 19) for step in range(20)]
    plan = Priced(Gaps(values @ values.T, times, weights, Newton(1), protected, longest=5), 1e6)
    found = bought(plan)
    assert {0, 3, 11, 19} <= set(found) and len(found) == 6
    assert plan.gain(11, 9, 3) == plan.gain(15, 9, 3) == float("inf")


@pytest.mark.parametrize("gap", [1, 3])
def test_the_expected_error_is_that_of_the_forecast(gap):
    values, times, weights = run(12, 2)
    gaps = Gaps(values @ values.T, times, weights, Newton(1))
    for newest, older in ((4, 2), (6, 5)):
        step = newest + gap
        slope = (values[newest] - values[older]) / (times[newest] - times[older])
        missed = values[step] - values[newest] - slope * (times[step] - times[newest])
        wanted = float(missed.norm() / values[step].norm())
        assert gaps.error(step, newest, older) == pytest.approx(wanted)
