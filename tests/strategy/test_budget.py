"""The default policy, as a pure function of errors and of the steps of a run."""

from dataclasses import replace

import pytest
import torch

from diffcache.policies import ErrorBudget, ForecastError, Grid, Step


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def predicting(*errors: float) -> ForecastError:
    return ForecastError(errors)


TIMES = tuple(i / 20 for i in range(20))


def at(index: int, heavy: int = -1) -> Step:
    """A step of twenty even ones, of which one may weigh ten times as much."""
    weights = tuple(10.0 if i == heavy else 1.0 for i in range(20))
    return Step(index, 20, weights[index], grid=Grid(TIMES, weights, (False,) * 20, 8))


def begun(policy: ErrorBudget, samples: int) -> dict:
    """The state of a run whose first three steps were computed."""
    state = policy.init(samples)
    for index in range(3):
        state = policy.observe(at(index), vector(*[0.0] * samples), [True] * samples, state)
    return state


def test_it_computes_while_an_error_cannot_be_predicted():
    policy = ErrorBudget(tolerance=100.0)
    errors = predicting(float("nan"), float("inf"), 1.0)
    assert policy.decide(at(3), errors, begun(policy, 3))[0] == [True, True, False]
    # Nor before anything is known of the run.
    assert policy.decide(Step(5, 50), errors, policy.init(3))[0] == [True] * 3


def test_it_skips_until_errors_are_worth_a_step():
    policy = ErrorBudget(tolerance=0.1)
    state, masks = begun(policy, 1), []
    for index in range(3, 10):
        mask, state = policy.decide(at(index), predicting(0.01 * (index - 2) ** 2), state)
        state = policy.observe(at(index), vector(0.0), [False], state)
        masks += mask
    assert masks == sorted(masks) and {*masks} == {False, True}


@pytest.mark.parametrize("steps", [28, 50, 100])
@pytest.mark.parametrize("skipped", [0, 2, 5])
def test_it_never_skips_far_beyond_its_tolerance(steps, skipped):
    times = tuple(i / steps for i in range(steps))
    grid = Grid(times, (1.0,) * steps, (False,) * steps, 8)
    policy, middle = ErrorBudget(tolerance=0.08), steps // 2
    state = policy.init(1)
    for index in range(middle):
        done = index < middle - skipped
        state = policy.observe(Step(index, steps, grid=grid), vector(0.0), [done], state)
    assert policy.decide(Step(middle, steps, grid=grid), predicting(0.25), state)[0] == [True]


def test_it_computes_where_nothing_was_expected_to_err():
    policy = ErrorBudget(tolerance=0.1)
    twice = Grid((*TIMES[:4], *TIMES[3:19]), (1.0,) * 20, (False,) * 20, 8)
    step, state = replace(at(4), grid=twice), policy.init(2)
    for index in range(4):
        state = policy.observe(replace(step, index=index), vector(0.0, 0.0), [True] * 2, state)
    assert policy.decide(step, predicting(0.3, 0.0), state)[0] == [True, False]


def test_it_plans_on_the_host_whatever_the_default_device_is():
    grid = Grid(tuple((i / 23) ** 1.1 for i in range(24)), (1.0,) * 24, (False,) * 24, 8)
    step, policy = Step(3, 24, grid=grid), ErrorBudget(tolerance=0.1)
    state = policy.init(1)
    for index in range(3):
        state = policy.observe(replace(step, index=index), vector(0.0), [True], state)
    with torch.device("meta"):
        assert policy.decide(step, predicting(10.0), state)[0] == [True]


def test_it_computes_more_where_errors_are_larger_or_less_is_tolerated():
    policy = ErrorBudget(tolerance=(0.1, 0.1, 0.1, 1.0, 0.01))
    errors = predicting(1e-4, 0.01, 1.0, 1.0, 0.01)
    _, state = policy.decide(at(3), errors, begun(policy, 5))
    low, middle, high, tolerant, strict = state["gains"]
    assert low < middle < high and tolerant < high and strict > middle


def test_it_charges_a_step_by_how_far_it_moves_the_sample():
    policy = ErrorBudget(tolerance=0.1)
    masks = [
        policy.decide(at(3, heavy), predicting(0.02), begun(policy, 1))[0] for heavy in (-1, 3)
    ]
    assert masks == [[False], [True]]


def test_it_starts_afresh_for_the_samples_that_were_computed():
    policy = ErrorBudget(tolerance=0.1)
    state = begun(policy, 2)
    for index in range(3, 6):
        state = policy.observe(at(index), vector(0.0, 0.0), [index == 5, False], state)
    # What errs as much after one step as after four errs at a higher rate, and has three to go.
    errors = predicting(0.02, 0.1)
    assert policy.decide(at(6), errors, state)[0] == [False, True]


def test_it_has_a_tolerance_for_each_sample_and_none_computes():
    policy = ErrorBudget(tolerance=(0.5, 0.0005, None))
    mask, _ = policy.decide(at(3), predicting(0.02, 0.02, 0.02), begun(policy, 3))
    assert mask == [False, True, True]


@pytest.mark.parametrize(
    ("tolerance", "computes"),
    [(0.0, True), (1e-300, False), (1e300, False), (float("inf"), False)],
)
def test_it_of_zero_computes_even_where_the_error_is_zero(tolerance, computes):
    policy = ErrorBudget(tolerance=tolerance)
    assert policy.decide(at(3), predicting(0.0), begun(policy, 1))[0] == [computes]
    # Of what errs, as little as can be told is tolerated.
    found = policy.decide(at(3), predicting(0.1), begun(policy, 1))[0]
    assert found == [tolerance < 1]


def test_it_computes_steps_beyond_those_of_the_scheduler():
    policy = ErrorBudget(tolerance=100.0)
    state = begun(policy, 1)
    for index in range(3, 24):
        step = at(min(index, 19))
        mask, state = policy.decide(replace(step, index=index), predicting(0.01), state)
        assert mask == [True] or index < 20
        state = policy.observe(replace(step, index=index), vector(0.0), mask, state)


def test_tolerances_of_another_count_than_the_samples_are_named():
    with pytest.raises(ValueError, match=r"tolerance=\[0.1, 0.2\] has 2 entries for a batch of 3"):
        ErrorBudget(tolerance=(0.1, 0.2)).init(3)
