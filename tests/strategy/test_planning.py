"""Planned schedules, against every schedule there is, and the policy that follows them."""

from itertools import combinations, pairwise

import pytest
import torch

from diffcache.policies import ForecastError, Scheduled, Statistics, Step
from diffcache.policies.planning import LONGEST, Plan
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


def schedules(*given, **options) -> list[tuple[int, ...]]:
    plan = Plan(*given, **options)
    found = map(plan.schedule, range(1, plan.steps + 1))
    return [schedule for schedule in found if schedule is not None]


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
def test_plans_of_a_line_are_the_best_there_are(seed):
    steps, predictor = 9, Newton(1)
    values, times, weights = run(steps, seed)
    found = schedules(values @ values.T, times, weights, predictor)
    assert [len(plan) for plan in found] == list(range(1, steps + 1))
    for plan in found:
        every = ((0, *rest) for rest in combinations(range(1, steps), len(plan) - 1))
        least = min(cost(values, times, weights, predictor, chosen) for chosen in every)
        assert cost(values, times, weights, predictor, plan) == pytest.approx(least, abs=1e-9)


def test_plans_with_more_anchors_beat_even_spacing():
    values, times, weights = run(28, 1)
    predictor = Kriging()
    for plan in schedules(values @ values.T, times, weights, predictor)[7:21]:
        even = {round(i * 27 / (len(plan) - 1)) for i in range(len(plan))}
        planned = cost(values, times, weights, predictor, plan)
        assert planned < cost(values, times, weights, predictor, even)


def test_no_plan_has_a_gap_longer_than_any_may_be():
    values, times, weights = run(30, 2)
    plans = schedules(values @ values.T, times, weights, Newton(1))
    assert plans[-1] == tuple(range(30))
    for plan in plans:
        ends = [*plan, 30]
        assert max(b - a for a, b in pairwise(ends)) <= LONGEST + 1


def test_protected_steps_are_in_every_plan():
    values, times, weights = run(20, 3)
    protected = [step in (3, 11, 19) for step in range(20)]
    plans = schedules(values @ values.T, times, weights, Newton(1), protected)
    assert len(plans) > 10 and all({0, 3, 11, 19} <= set(plan) for plan in plans)


@pytest.mark.parametrize("count", [4, 7, 12])
def test_a_plan_followed_step_by_step_is_its_schedule(count):
    values, times, weights = run(24, 4)
    plan = Plan(values @ values.T, times, weights, Kriging())
    computed = [0]
    for step in range(1, 24):
        older = computed[-2] if len(computed) > 1 else computed[-1]
        if plan.computes(step, count - len(computed), computed[-1], older):
            computed.append(step)
    assert tuple(computed) == plan.schedule(count)


def test_a_plan_goes_on_from_where_it_was_left():
    values, times, weights = run(12, 5)
    plan = Plan(values @ values.T, times, weights, Newton(1))
    # Steps 1 and 2 were computed against the plan, and six may be in all.
    computed = [0, 1, 2]
    for step in range(3, 12):
        if plan.computes(step, 6 - len(computed), computed[-1], computed[-2]):
            computed.append(step)
    every = ((0, 1, 2, *rest) for rest in combinations(range(3, 12), 3))
    least = min(cost(values, times, weights, Newton(1), chosen) for chosen in every)
    assert cost(values, times, weights, Newton(1), computed) == pytest.approx(least)


def played(policy: Scheduled, total: int, predicted: float) -> list[int]:
    state, computed = policy.init(1), []
    for i in range(total):
        mask, state = policy.decide(Step(i, total), ForecastError([predicted]), state)
        state = policy.observe(Step(i, total), torch.zeros(1).double(), mask, state)
        computed += [i] if all(mask) else []
    return computed


PLANS = ((0, 1), (0, 1, 5), (0, 1, 3, 6), tuple(range(10)))


@pytest.mark.parametrize(
    ("compute", "total", "expected"),
    [
        (0.2, 10, [0, 1]),
        (0.3, 10, [0, 1, 5]),
        (1.0, 10, list(range(10))),
        (0.4, 19, [0, 2, 6, 12]),
    ],
)
def test_the_plan_nearest_to_the_share_is_followed(compute, total, expected):
    policy = Scheduled(compute).fit(Statistics(10, schedules=PLANS))
    assert played(policy, total, float("nan")) == expected


def test_a_veto_computes_against_the_plan():
    policy = Scheduled(0.2, veto=0.5).fit(Statistics(10, schedules=PLANS))
    assert played(policy, 10, 0.2) == [0, 1, 4, 7]


def test_what_is_not_measured_is_computed_or_refused():
    assert played(Scheduled(), 6, 0.0) == list(range(6))
    with pytest.raises(ValueError, match=r"diffcache\.calibrate"):
        Scheduled().fit(Statistics(10))


@pytest.mark.parametrize("options", [{"compute": 0}, {"compute": 1.5}, {"veto": 0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="try"):
        Scheduled(**options)
