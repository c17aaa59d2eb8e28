"""A share of the run as a target, a fixed size of the batch's part, and tolerances by name."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from diffcache.policies import ErrorBudget, ForecastError, Gated, Grid, Interval, Mask, Step
from diffcache.policies.budget import QUALITIES
from diffcache.policies.planning import Gaps
from diffcache.policies.targets import priced
from diffcache.predictors import Kriging

NAN, INF = float("nan"), float("inf")


def grid(steps: int, seed: int, protect: tuple[int, int] = (3, 1), cap: float = 8) -> Grid:
    dice = random.Random(seed)
    times = sorted(dice.random() for _ in range(steps))
    weights = tuple(sorted((dice.random() * 10 + 0.2 for _ in range(steps)), reverse=True))
    first, last = protect
    return Grid(
        tuple(times), weights, tuple(i < first or i >= steps - last for i in range(steps)), cap
    )


def played(policy: ErrorBudget, plan: Grid, rates: list[float], seed: int = 0) -> torch.Tensor:
    """Mask `[steps, samples]` of a run whose errors grow with distance, at noisy rates."""
    dice, steps = random.Random(seed), len(plan.times)
    state, rows = policy.init(len(rates)), []
    newest, skipped = [0] * len(rates), [0] * len(rates)
    for i in range(steps):
        step = Step(i, steps, plan.weights[i], grid=plan)
        predicted = [
            NAN if i < 2 else r * dice.uniform(0.3, 3) * (plan.times[i] - plan.times[k]) ** 1.5
            for r, k in zip(rates, newest, strict=True)
        ]
        mask, state = policy.decide(step, ForecastError(predicted), state)
        forced = [plan.protected[i] or n >= plan.cap for n in skipped]
        mask = [a or b for a, b in zip(mask, forced, strict=True)]
        mask = policy.fill(mask, forced, state)
        state = policy.observe(step, torch.zeros(len(rates)).double(), mask, state)
        rows.append(mask)
        newest = [i if m else k for m, k in zip(mask, newest, strict=True)]
        skipped = [0 if m else n + 1 for m, n in zip(mask, skipped, strict=True)]
    return torch.tensor(rows)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("compute", [0.25, 0.35, 0.5, 0.65, 0.8, 1.0])
@pytest.mark.parametrize("steps", [20, 28, 50])
def test_a_share_of_the_run_is_met_by_every_sample(steps, compute, seed):
    mask = played(ErrorBudget(compute=compute), grid(steps, seed), [1.0, 0.01, 300.0], seed)
    assert mask.sum(0).tolist() == [round(compute * steps)] * 3


def test_a_share_without_the_steps_to_plan_computes():
    policy = ErrorBudget(compute=0.5)
    mask, _ = policy.decide(Step(3, 20), ForecastError([0.1, NAN]), policy.init(2))
    assert mask == [True, True]


def test_the_last_steps_are_not_starved():
    mask = played(ErrorBudget(compute=0.4), grid(50, 1), [1.0], 1)
    assert mask[25:49].sum() >= 3


@pytest.mark.parametrize("rows", [(1.0, 2.0), (1.0, 0.5), (1.0, 1.5, 1.0), (1.0, 1 / 3)])
@pytest.mark.parametrize("compute", [0.5, 0.8])
def test_a_share_is_one_of_row_steps(compute, rows):
    plan, policy = grid(36, 6), ErrorBudget(compute=compute)
    state, computed, known = policy.init(1), 0.0, 1.0
    cost = [rows[i * len(rows) // 36] for i in range(36)]
    for i in range(36):
        step = Step(i, 36, plan.weights[i], grid=plan, rows=known)
        mask, state = policy.decide(step, ForecastError([NAN]), state)
        mask = [mask[0] or plan.protected[i]]
        known = cost[i]
        state = policy.observe(replace(step, rows=known), torch.zeros(1).double(), mask, state)
        computed += known * mask[0]
    # Of what the front of the plan costs more or less than reckoned with, half is made up for.
    off = played(policy, plan, [1.0])[:, 0].double() @ torch.tensor(cost).double()
    asked = compute * sum(cost)
    assert abs(computed - asked) <= abs(float(off) - asked) / 2 + max(rows)


@pytest.mark.parametrize("compute", [0.3, 0.5])
def test_each_evaluation_of_a_step_meets_the_share(compute):
    plan = grid(39, 6, protect=(1, 0))
    policy = ErrorBudget(compute=compute)
    states, computed = [policy.init(1), policy.init(1)], [0, 0]
    unknown = torch.full((1,), NAN, dtype=torch.float64)
    # Heun: one evaluation at the first time, then two at each, of which the last has one.
    for i in range(39):
        step = Step(i, 39, plan.weights[i], grid=plan)
        mask, state = policy.decide(step, ForecastError([NAN]), states[i % 2])
        states[i % 2] = policy.observe(step, unknown, mask, state)
        computed[i % 2] += sum(mask)
    assert computed == [round(compute * 20), round(compute * 19)]


def test_a_run_that_begins_afresh_plans_what_is_left():
    plan, policy = grid(28, 3, protect=(1, 0)), ErrorBudget(compute=0.5)
    state, computed = policy.init(1), []
    unknown = torch.full((1,), NAN, dtype=torch.float64)
    for i in range(10, 28):
        step = Step(i, 28, plan.weights[i], grid=plan)
        # The runtime computes a first step without asking.
        mask = [True]
        if i > 10:
            mask, state = policy.decide(step, ForecastError([NAN]), state)
        state = policy.observe(step, unknown, mask, state)
        computed += [i] if all(mask) else []
    assert computed[0] == 10 and len(computed) == 9 and 28 - computed[-1] <= 9


def test_a_plan_without_a_cap_has_room_for_few_steps():
    mask = played(ErrorBudget(compute=0.06), grid(50, 1, protect=(1, 0), cap=float("inf")), [1.0])
    assert int(mask.sum()) == 3


def test_steps_too_few_for_a_plan_are_spread():
    plan = grid(200, 1, protect=(1, 0), cap=float("inf"))
    mask = played(ErrorBudget(compute=0.02), plan, [1.0])
    found = mask[:, 0].nonzero()[:, 0].tolist()
    assert len(found) == 4 and max(b - a for a, b in pairwise([*found, 200])) <= 50


def test_a_share_below_what_guards_compute_computes_no_more_than_they_do():
    mask = played(ErrorBudget(compute=0.1), grid(20, 0, protect=(4, 2)), [1.0])
    # Four and two protected steps, and the cap of eight skips in a row.
    assert 6 <= int(mask.sum()) <= 7


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("options", [{"tolerance": 0.3}, {"compute": 0.5}])
def test_the_denoiser_sees_no_third_batch_size(rows, options):
    rates = [0.2, 1.0, 5.0, 0.1, 2.0, 0.7, 9.0, 0.4]
    policy = ErrorBudget(compute_rows=rows, **options)
    sizes = set(played(policy, grid(40, 2), rates, 1).sum(1).tolist())
    # A share of the run is planned alike for all samples.
    assert sizes <= {0, rows, 8} and (rows in sizes) == ("tolerance" in options)


def test_the_denoiser_sees_the_given_sizes_alone():
    options = {"tolerance": 0.3}
    rates = [0.2, 1.0, 5.0, 0.1, 2.0, 0.7, 9.0, 0.4]
    free = played(ErrorBudget(**options), grid(40, 2), rates, 1).sum(1)
    assert set(free.tolist()) - {0, 2, 5, 8}
    policy = ErrorBudget(compute_rows=(5, 2, 16), **options)
    assert policy.row_counts(8) == (0, 2, 5, 8)
    sizes = set(played(policy, grid(40, 2), rates, 1).sum(1).tolist())
    assert {2, 5} <= sizes <= {0, 2, 5, 8}


def test_row_counts_are_those_of_the_parts():
    fixed = Interval(every=3)
    assert ErrorBudget().row_counts(3) == (0, 1, 2, 3)
    assert Gated(4, fixed, fixed).row_counts(3) == fixed.row_counts(3) == (0, 3)
    assert Mask([[True] * 3, [True, False, False], [False] * 3]).row_counts(3) == (0, 1, 3)
    assert Mask([[True], [False]]).row_counts(3) == (0, 3)


def test_a_sample_follows_the_cheapest_plan_at_its_own_price():
    plan, tolerance, counts = grid(9, 4, protect=(1, 0)), 0.2, []
    gaps = Gaps(*_kriging(plan), longest=8)
    for rate in (0.005, 0.05, 0.5, 5.0):
        policy, computed = ErrorBudget(tolerance=tolerance), [0]
        # Less than a usual rate of 0.5 is believed half-way, on a log scale.
        believed = rate if rate > 0.5 else (0.5 * rate) ** 0.5
        own = priced(gaps, 3 * (tolerance / believed) ** 2)
        state = policy.init(1)
        for i in range(9):
            step, older = Step(i, 9, grid=plan), computed[max(len(computed) - 2, 0)]
            error = gaps.error(i, computed[-1], older) * rate if i > 1 else NAN
            mask, state = policy.decide(step, ForecastError([error]), state)
            assert mask == [i < 2 or own.gain(i, computed[-1], older) >= 0]
            state = policy.observe(step, torch.zeros(1).double(), mask, state)
            computed += [i] if i and all(mask) else []
        counts.append(len(computed))
    assert counts[0] < counts[-1] and counts == sorted(counts)


def test_each_evaluation_of_a_step_has_a_plan_of_its_own():
    plan, policy = grid(39, 6, protect=(1, 0)), ErrorBudget(tolerance=0.3)
    errors = [random.Random(i).uniform(0.01, 0.4) for i in range(39)]
    masks = []
    for first, stride in ((0, 2), (1, 2)):
        own = Grid(*(part[first::stride] for part in (plan.times, plan.weights, plan.protected)), 8)
        for steps, total in ((plan, 39), (own, len(own.times))):
            state, mask = policy.init(1), []
            for place in range(len(own.times)):
                index = place if steps is own else first + stride * place
                step = Step(index, total, grid=steps)
                known = ForecastError([errors[place] if place > 1 else NAN])
                wanted, state = policy.decide(step, known, state)
                state = policy.observe(step, torch.zeros(1).double(), wanted, state)
                mask += wanted
            masks.append(mask)
    assert masks[0] == masks[1] and masks[2] == masks[3] and not all(masks[0])


def _kriging(plan: Grid):
    times = torch.tensor(plan.times, dtype=torch.float64)
    weights = [*plan.weights[:-2], 2 * plan.weights[-2], plan.weights[-1]]
    gram = Kriging().covariance(times[:, None] - times[None, :])
    return gram, plan.times, weights, Kriging(), plan.protected


def test_qualities_are_tolerances_by_name():
    for name, tolerance in QUALITIES.items():
        assert ErrorBudget(quality=name).init(2)["tolerance"] == [tolerance] * 2
    assert QUALITIES["high"] < QUALITIES["balanced"] < QUALITIES["fast"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quality": "best"}, "high, balanced, fast"),
        ({"compute": 0.0}, "try compute=0.5"),
        ({"compute": 1.2}, "try compute=0.5"),
        ({"compute_rows": 0}, "try compute_rows=4"),
        ({"compute_rows": 1.5}, "try compute_rows=4"),
        ({"compute_rows": (2, 0)}, "try compute_rows=4"),
        ({"compute_rows": ()}, "try compute_rows=4"),
        ({"compute": "half"}, "compute='half' is not a share"),
        ({"compute": [0.3, 0.5]}, "try compute=0.5"),
        ({"compute": 0.5, "quality": "fast"}, "quality='fast' and compute=0.5 .* keep one"),
        ({"compute": 0.5, "tolerance": 0.04}, "tolerance=0.04 and compute=0.5 .* keep one"),
        ({"quality": "fast", "tolerance": (0.1, None)}, "keep one"),
    ],
)
def test_targets_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ErrorBudget(**options)


def test_one_target_takes_the_place_of_another():
    policy = ErrorBudget(compute_rows=2)
    targets = [{"compute": 0.5}, {"tolerance": (0.04, None)}, {"quality": "fast"}]
    for options in [*targets, *reversed(targets), {"tolerance": None}]:
        policy = policy.revised(**options)
        assert policy == ErrorBudget(compute_rows=2, **options)
        assert policy.revised(compute_rows=2) == policy
    assert ErrorBudget(compute=0.5).revised(quality=None) == ErrorBudget(compute=0.5)
