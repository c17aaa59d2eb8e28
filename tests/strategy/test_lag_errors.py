"""SmoothCache's policy as a pure function."""

import pytest
import torch

from diffcache.policies import LagErrors, NoEvidence, Statistics, Step

STEPS = 10


def measured(*curves):
    """Statistics of one role whose curves begin, as recorded, with a None a lag."""
    rows = tuple((*[None] * lag, *curve) for lag, curve in enumerate(curves, start=1))
    return Statistics(STEPS, errors={"mlp": rows})


def column(policy):
    masks = [policy.decide(Step(i, STEPS), NoEvidence(1), {})[0] for i in range(STEPS)]
    return [mask[0].tolist() for mask in masks]


def test_errors_are_told_by_the_step_that_is_repeated():
    # From step 4 on, the next output is 0.01 away, and all others are far.
    near = [0.5] * 4 + [0.01] + [0.5] * 4
    found = column(LagErrors(0.08).fit(measured(near, [0.5] * 8)))
    assert [i for i, (on,) in enumerate(found) if not on] == [5]


def test_steps_without_a_measurement_are_not_skipped():
    nothing = [0.01, None, 0.01, *[None] * 6]
    found = column(LagErrors(0.08).fit(measured(nothing)))
    assert [i for i, (on,) in enumerate(found) if not on] == [1, 3]


def test_without_errors_all_is_computed_and_no_group_is_named():
    assert LagErrors().groups == ()
    assert column(LagErrors()) == [True] * STEPS


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.1])
def test_samples_do_not_depend_on_their_neighbours(alpha):
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand(3, STEPS - 1, generator=generator) * 0.15).tolist()
    policy = LagErrors(alpha, {"self": rows, "mlp": rows[::-1]})
    for index in range(STEPS):
        alone, _ = policy.decide(Step(index, STEPS), NoEvidence(1), policy.init(1))
        together, _ = policy.decide(Step(index, STEPS), NoEvidence(3), policy.init(3))
        assert torch.equal(together, alone.expand(3, -1))
