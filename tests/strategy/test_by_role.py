"""Policies of several roles as pure functions."""

import pytest
import torch

from diffcache.methods import find
from diffcache.policies import (
    ByRole,
    Gated,
    GrowingInterval,
    Interval,
    LagErrors,
    MagnitudeRatios,
    Mask,
    NoEvidence,
    Step,
    Threshold,
)


def decide(policy, index, samples=2, timestep=500.0):
    step = Step(index, 20, timestep=timestep)
    return policy.decide(step, NoEvidence(samples), policy.init(samples))[0]


def test_each_role_has_a_column():
    policy = ByRole({"self": Interval(2), "cross": Interval(6)})
    assert policy.groups == ("self", "cross")
    assert decide(policy, 0).tolist() == [[True, True]] * 2
    assert decide(policy, 4).tolist() == [[True, False]] * 2
    assert decide(policy, 3).tolist() == [[False, False]] * 2


@pytest.mark.parametrize(
    "alone",
    [
        Interval(3),
        GrowingInterval(3.0, growth=0.5, start=1),
        MagnitudeRatios(0.2, 4, 0.1, ratios=(1.0,) + (0.95,) * 19),
        Gated(6, GrowingInterval(2.0, growth=1.0, start=0), Interval(3)),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_a_role_follows_its_policy_as_if_it_were_alone(alone):
    """Beside another that computes at other steps."""
    both = ByRole({"self": alone, "mlp": Interval(5)})
    states, own, columns = [alone.init(2), both.init(2)], [], []
    for index in range(20):
        step, error = Step(index, 20), torch.zeros(2)
        mask, states[0] = alone.decide(step, NoEvidence(2), states[0])
        states[0] = alone.observe(step, error, mask.tolist(), states[0])
        table, states[1] = both.decide(step, NoEvidence(2), states[1])
        states[1] = both.observe(step, error, table.all(1).tolist(), states[1])
        own.append(mask.tolist())
        columns.append(table[:, 0].tolist())
    assert columns == own and 1 < sum(map(all, own)) < 19


def test_roles_learn_of_steps_that_a_guard_computes():
    policy = ByRole({"self": GrowingInterval(4.0, growth=0.0, start=0)})
    state, computed = policy.init(1), []
    for index in range(9):
        table, state = policy.decide(Step(index, 20), NoEvidence(1), state)
        done = bool(table) or index == 1
        state = policy.observe(Step(index, 20), torch.zeros(1), [done], state)
        computed += [index] * done
    assert computed == [1, 5]


def test_samples_differ_within_a_role():
    policy = ByRole({"self": Mask([[True, False]]), "mlp": Interval(1)})
    assert decide(policy, 0).tolist() == [[True, True], [False, True]]


def test_policies_are_hashable_and_need_no_mapping():
    pairs = (("self", Interval(2)), ("mlp", Interval(3)))
    assert ByRole(pairs) == ByRole(dict(pairs))
    assert hash(ByRole(pairs)) == hash(ByRole(dict(pairs)))


@pytest.mark.parametrize(
    "policies",
    [
        {},
        {"self": Threshold(0.1)},
        {"self": 2},
        {"self": LagErrors()},
        {"self": ByRole({"self": Interval(2)})},
    ],
)
def test_what_cannot_decide_is_refused(policies):
    with pytest.raises(ValueError, match=r"try ByRole\("):
        ByRole(policies)


class InPairs(Interval):
    """Computes one sample, and another beside it."""

    def decide(self, step, evidence, state):
        return torch.arange(evidence.samples) == 0, state

    def fill(self, mask, must, state):
        return [want or sample == 1 for sample, want in enumerate(mask)]


def test_both_phases_of_a_gate_fill_learn_and_remember():
    policy = Gated(6, before=GrowingInterval(2, growth=1.0, start=0), after=InPairs())
    state, computed = policy.init(3), []
    for index in range(8):
        step = Step(index, 20)
        mask, state = policy.decide(step, NoEvidence(3), state)
        mask = policy.fill(mask.tolist(), [False] * 3, state)
        state = policy.observe(step, torch.zeros(3), mask, state)
        computed.append(mask)
    once, pair = [[True] * 3, [False] * 3], [True, True, False]
    assert computed == [once[1], once[0], once[1], once[1], once[0], once[1], pair, pair]


@pytest.mark.parametrize("phase", [Threshold(0.1), 2, LagErrors(), ByRole({"mlp": Interval(2)})])
def test_a_phase_that_cannot_decide_is_refused(phase):
    with pytest.raises(ValueError, match=r"try Gated\(4, Interval"):
        Gated(4, before=Interval(2), after=phase)


def test_interval_within_timesteps_and_never():
    policy = Interval(2, within=(100, 800))
    assert [bool(decide(policy, 1, 1, t)) for t in (50, 100, 101, 799, 800)] == [1, 1, 0, 0, 1]
    assert bool(decide(policy, 1, 1, float("nan")))
    never = Interval(None, start=3)
    assert [bool(decide(never, i, 1)) for i in range(6)] == [1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="try within=\\(100, 800\\)"):
        Interval(2, within=(1, 2, 3))


def test_masks_are_bool():
    assert decide(ByRole({"self": Interval(2)}), 1).dtype == torch.bool


def test_tgate_freezes_cross_attention_and_thins_self_attention_before_the_gate():
    policy = find("tgate").policy
    columns = {role: [] for role in policy.groups}
    for index in range(20):
        for role, value in zip(policy.groups, decide(policy, index, 1)[0].tolist(), strict=True):
            columns[role] += [index] * value
    assert columns == {"cross": list(range(10)), "self": [0, 1, 2, 7, *range(10, 20)]}
