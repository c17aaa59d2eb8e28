"""Policies as pure functions of evidence and state."""

import pytest
import torch

from diffcache.policies import (
    AccumulatedPrediction,
    AccumulatedProbe,
    GrowingInterval,
    Interval,
    LatentChange,
    MagnitudeRatios,
    Mask,
    NoEvidence,
    PredictedChange,
    ProbeChange,
    Statistics,
    Step,
    ThirdOrder,
    Threshold,
)

STEP = Step(5, 50)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("every", "start", "expected"),
    [(2, 0, [1, 0, 1, 0, 1, 0]), (3, 1, [1, 1, 0, 0, 1, 0]), (1, 0, [1] * 6)],
)
def test_interval(every, start, expected):
    policy = Interval(every=every, start=start)
    masks = [policy.decide(Step(i, 6), NoEvidence(2), {})[0] for i in range(6)]
    assert [mask.tolist() for mask in masks] == [[bool(e)] * 2 for e in expected]


def test_interval_counts_from_its_phase():
    policy = Interval(every=5, start=3, phase=1)
    computed = [i for i in range(16) if policy.decide(Step(i, 16), NoEvidence(1), {})[0].item()]
    assert computed == [0, 1, 2, 4, 9, 14]


@pytest.mark.parametrize(("growth", "published"), [(0.75, 14), (3.0, 10)])
def test_growing_interval_makes_the_published_count_of_calls(growth, published):
    policy = GrowingInterval(window=2.0, growth=growth, start=5)
    state, calls = policy.init(2), 0
    for i in range(50):
        mask, state = policy.decide(Step(i, 50), NoEvidence(2), state)
        assert mask[0] == mask[1]
        state = policy.observe(Step(i, 50), vector(0.0, 0.0), mask.tolist(), state)
        calls += int(mask[0])
    assert calls == published


def test_growing_interval_counts_for_each_sample_from_its_own_computed_step():
    policy = GrowingInterval(window=3.0, growth=1.0, start=0)
    state = policy.init(2)
    for i, computed in enumerate([(True, True), (False, False), (True, False)]):
        _, state = policy.decide(Step(i, 50), NoEvidence(2), state)
        state = policy.observe(Step(i, 50), vector(0, 0), computed, state)
    assert policy.decide(Step(3, 50), NoEvidence(2), state)[0].tolist() == [False, False]
    _, state = policy.decide(Step(3, 50), NoEvidence(2), state)
    assert policy.decide(Step(4, 50), NoEvidence(2), state)[0].tolist() == [False, True]


def test_mask_plays_back_and_computes_where_it_does_not_fit():
    policy = Mask([[True, False], [False, True]])
    assert policy.decide(Step(1, 3), NoEvidence(2), {})[0].tolist() == [False, True]
    assert policy.decide(Step(2, 3), NoEvidence(2), {})[0].tolist() == [True, True]
    assert policy.decide(Step(0, 3), NoEvidence(3), {})[0].tolist() == [True] * 3


def test_a_mask_says_where_it_does_not_fit():
    policy = Mask([[True, False], [False, True]])
    assert policy.remark(2, 2) is None and Mask([True, False]).remark(2, 5) is None
    assert policy.remark(3, 2).startswith("the mask is of 2 steps and the generation made 3")
    assert policy.remark(2, 4).startswith("the mask is of 2 samples and the batch was of 4")


def test_a_flat_mask_serves_any_batch():
    policy = Mask(torch.tensor([1, 0, 1]))
    assert policy.decide(Step(1, 3), NoEvidence(4), {})[0].tolist() == [False] * 4


def run_third_order(policy: ThirdOrder, latents: torch.Tensor) -> list[list[bool]]:
    """Masks after each latent of `[steps, samples, elements]`."""
    state, masks = policy.init(latents.shape[1]), []
    for i in range(1, len(latents)):
        first = (latents[i] - latents[i - 1]).abs().mean(1)
        third = None
        if i >= 3:
            x = latents[i - 3 : i + 1].flip(0)
            third = (x[0] - 3 * x[1] + 3 * x[2] - x[3]).abs().mean(1)
        mask, state = policy.decide(Step(i, 50), LatentChange(first, third), state)
        masks.append(mask.tolist())
    return masks


def test_tensor_statistic_sees_direction_where_norms_do_not():
    angle = torch.arange(12).double() * 0.6
    turning = torch.stack([angle.cos(), angle.sin()], 1).repeat(1, 8)[:, None]
    assert all(m == [True] for m in run_third_order(ThirdOrder(0.1, "tensor"), turning))
    assert not all(m == [True] for m in run_third_order(ThirdOrder(0.1, "norms"), turning)[4:])


def test_tensor_statistic_skips_a_quadratic_path():
    t = torch.arange(12).double()
    smooth = (t**2 / 50 + t)[:, None, None].expand(-1, 1, 4)
    masks = run_third_order(ThirdOrder(0.01, "tensor"), smooth)
    assert masks[:2] == [[True]] * 2
    assert masks[2:] == [[False]] * (len(masks) - 2)


def test_third_order_refuses_an_unknown_statistic():
    with pytest.raises(ValueError, match="statistic='l2' is not known; use"):
        ThirdOrder(statistic="l2")


def test_threshold_computes_above_and_where_nothing_is_known():
    change = vector(0.04, 0.06, float("nan"))
    assert Threshold(0.05).decide(STEP, ProbeChange(change), {})[0].tolist() == [False, True, True]


def test_accumulated_changes_reach_the_threshold_for_each_sample_on_its_own():
    policy = AccumulatedPrediction(threshold=0.1)
    state, masks = policy.init(3), []
    for _ in range(3):
        change = vector(0.04, 0.06, float("nan"))
        mask, state = policy.decide(STEP, PredictedChange(change), state)
        state = policy.observe(STEP, change, mask.tolist(), state)
        masks.append(mask.tolist())
    assert masks == [[False, False, True], [False, True, True], [True, False, True]]


def test_accumulated_probe_adds_up_its_polynomial():
    policy = AccumulatedProbe(threshold=1.0, polynomial=(2.0, 0.0, 0.5))
    mask, state = policy.decide(STEP, ProbeChange(vector(0.1, 0.9)), policy.init(2))
    assert mask.tolist() == [False, True]
    assert state["spent"].tolist() == pytest.approx([0.52, 2.12])


def test_accumulated_policies_of_threshold_zero_compute():
    for policy, evidence in [
        (AccumulatedPrediction(0.0), PredictedChange(vector(0.0))),
        (AccumulatedProbe(0.0), ProbeChange(vector(0.0))),
    ]:
        assert policy.decide(STEP, evidence, policy.init(1))[0].tolist() == [True]


def run_ratios(policy: MagnitudeRatios, steps: int) -> list[bool]:
    state, computed = policy.init(1), []
    for i in range(steps):
        mask, state = policy.decide(Step(i, steps), NoEvidence(1), state)
        state = policy.observe(Step(i, steps), vector(0.0), mask.tolist(), state)
        computed.append(bool(mask))
    return computed


def test_magnitudes_near_one_are_skipped_up_to_the_cap_after_the_retention():
    policy = MagnitudeRatios(threshold=0.5, max_skips=3, retention=0.2, ratios=(1.0,) * 10)
    assert run_ratios(policy, 10) == [True, True, False, False, False, True, *[False] * 3, True]


def test_errors_of_the_cumulative_ratio_add_up():
    policy = MagnitudeRatios(threshold=0.3101, max_skips=9, retention=0.0, ratios=(1.1,) * 6)
    # |1 - 1.1| = 0.1, then |1 - 1.21| = 0.21, together 0.31; a third would add 0.331.
    assert run_ratios(policy, 6)[:3] == [False, False, True]
    assert run_ratios(MagnitudeRatios(0.2, 9, 0.0, (1.1,) * 6), 6)[:3] == [False, True, False]


def test_ratios_are_taken_at_the_nearest_step_of_another_count():
    policy = MagnitudeRatios(threshold=0.1, max_skips=9, retention=0.0, ratios=(1.0, 1.0, 5.0, 5.0))
    assert run_ratios(policy, 8) == [False] * 4 + [True] * 4


def test_without_ratios_magnitudes_compute():
    assert run_ratios(MagnitudeRatios(), 5) == [True] * 5


def test_ratios_are_averaged_over_lists_of_blocks():
    statistics = Statistics(3, {}, {"0": (None, 1.2, 1.0), "1": (None, 1.0, 0.8)})
    assert MagnitudeRatios().fit(statistics).ratios == pytest.approx((1.0, 1.1, 0.9))


def test_policies_without_numbers_to_measure_take_no_calibration():
    with pytest.raises(ValueError, match="Threshold takes no calibration; leave out"):
        Threshold().fit(Statistics(3))
