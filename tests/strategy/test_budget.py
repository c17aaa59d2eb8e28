"""The default policy, as a pure function of errors and of the steps of a run."""

from dataclasses import replace

import pytest
import torch

from diffcache.policies import ErrorBudget, ForecastError, Grid, Step

NAN, INF = float("nan"), float("inf")


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


def filled(policy, mask, gains, must=()):
    state = policy.init(len(mask)) | {"gains": gains}
    return policy.fill(mask, must or [False] * len(mask), state)


@pytest.mark.parametrize(("wanted", "size"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 9), (9, 9)])
def test_the_smallest_size_that_holds_who_cannot_wait_is_taken(wanted, size):
    mask = [sample < wanted for sample in range(9)]
    found = filled(ErrorBudget(compute_rows=(2, 4)), mask, [0.0] * 9, must=mask)
    assert all(found[:wanted]) and sum(found) == size
    alike = filled(ErrorBudget(compute_rows=(2, 4), compute=0.5), mask, [0.0] * 9)
    assert alike == found


@pytest.mark.parametrize(
    ("gains", "size"),
    [
        ([0.5, -0.2, -0.5, -0.5], 2),  # one gains more than another loses
        ([0.3, -0.2, -0.5, -0.5], 0),  # and so little that it is not worth a part
        ([0.5, 0.3, 0.4, -0.4], 2),  # two more together lose
        ([0.5, 0.6, 0.7, -0.2], 4),  # or gain
        ([0.15, 0.15, -0.5, -0.5], 2),
        ([0.05, 0.05, 0.05, 0.05], 0),
    ],
)
def test_a_step_computes_as_many_as_gain_most_together(gains, size):
    found = filled(ErrorBudget(compute_rows=2), [gain >= 0 for gain in gains], gains)
    chosen = sorted(gains, reverse=True)[:size]
    assert sum(found) == size and all(gains[i] in chosen for i in range(4) if found[i])


def test_who_waits_gains_least():
    policy = ErrorBudget(compute_rows=2)
    mask, gains = [True] * 3 + [False] * 5, [2.0, 1.6, 3.0] + [-1.0] * 5
    assert filled(policy, mask, gains) == [True, False, True, *[False] * 5]
    for cannot in ({"gains": [2.0, INF, *gains[2:]]}, {"must": [False, True, *[False] * 6]}):
        found = filled(policy, mask, **({"gains": gains} | cannot))
        assert found == [False, True, True, *[False] * 5]
    assert filled(policy, mask, gains, must=mask) == [True] * 8


def test_the_part_is_filled_with_the_largest_gains():
    policy = ErrorBudget(compute_rows=3)
    wanted = [False, False, True, False, False]
    found = filled(policy, wanted, [-0.3, -0.1, 0.8, -0.2, -0.4])
    assert found == [False, True, True, True, False]
    # An error that cannot be predicted comes first of those that need not be computed.
    shared = ErrorBudget(compute_rows=3, compute=0.5)
    for gains in ([INF, 0.5, 0.3, 0.2, 0.0], [0.5, 0.3, 0.2, INF, 0.0]):
        found = filled(shared, [False] * 4 + [True], gains)
        assert found == [x in (INF, 0.5) for x in gains[:4]] + [True]
    assert filled(policy, [False] * 5, [INF] * 5) == [False] * 5
    assert filled(policy, [True] * 5, [INF] * 5) == [True] * 5


@pytest.mark.parametrize("options", [{}, {"compute": 0.5}])
def test_what_cannot_be_predicted_comes_first(options):
    policy = ErrorBudget(compute_rows=2, **options)
    _, state = policy.decide(at(3), predicting(1e-9, NAN, 1e-8), begun(policy, 3))
    low, unknown, high = state["gains"]
    assert low < high < unknown == INF


def test_who_may_wait_for_others_follows_half_of_what_they_err():
    def gains(errors, **options):
        policy = ErrorBudget(**options)
        return policy.decide(at(3), predicting(*errors), begun(policy, 4))[1]["gains"]

    # All err more than usual; who does not err at all tells nothing of the others.
    errors = [0.2, 0.8, 4.0, 0.0]
    middle = (0.2 * 0.8 * 4.0) ** (1 / 3)
    drawn = [(error * middle) ** 0.5 for error in errors]
    assert gains(errors, compute_rows=2) == pytest.approx(gains(drawn), rel=1e-6)
    assert gains(errors) != gains(drawn)
    assert gains([0.0] * 4, compute_rows=2) == gains([0.0] * 4)


def test_what_tolerates_nothing_does_not_wait():
    policy = ErrorBudget(compute_rows=2, tolerance=(0.1, None, *[0.1] * 6))
    errors = predicting(0.2, 0.1, 0.8, *[0.0] * 5)
    mask, state = policy.decide(at(3), errors, begun(policy, 8))
    assert mask == [True] * 3 + [False] * 5 and state["gains"][0] < state["gains"][2] < INF
    # One of three waits, and it is the one that gains least.
    assert policy.fill(mask, [False] * 8, state) == [False, True, True, *[False] * 5]
