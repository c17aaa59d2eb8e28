"""What a gap is told to have left the sample off by."""

from math import exp, log

import pytest
import torch

from diffcache.predictors import Course, Kriging, correction, followed, taken_back

TIMES = (0.0, 0.02, 0.05, 0.11, 0.2, 0.31, 0.45, 0.6, 0.78, 1.0)
NOISE = (*(5.5 * exp(-3 * t) for t in TIMES), 0.0)
# DPM-Solver++ 2M by midpoint: half the ratio of two steps in log σ.
CARRIES = tuple(
    0.5 * log(NOISE[i] / NOISE[i + 1]) / log(NOISE[i - 1] / NOISE[i]) if 0 < i < 9 else 0.0
    for i in range(10)
)
ONES = (1.0,) * 10
TWO_STEP = Course(TIMES, NOISE, CARRIES, ONES, ONES)
ONE_STEP = TWO_STEP._replace(carries=(0.0,) * 10)


def at(values, steps, now, base):
    """The forecast of step `now` from the values of `steps`."""
    times = torch.tensor([[TIMES[step] for step in steps]], dtype=torch.float64)
    weights = base.coefficients(times, torch.tensor([TIMES[now]], dtype=torch.float64))[0]
    return sum(float(w) * values[step] for w, step in zip(weights, steps, strict=False))


def found(base, course, steps):
    return correction(base, course, tuple(TIMES[step] for step in steps))


def reach(base, steps):
    """How far the newest value alone moves the gap, over the noise that is left."""
    newest = {step: float(step == steps[0]) for step in steps}
    gap = range(steps[1] + 1, steps[0])
    moves = [(NOISE[i] - NOISE[i + 1]) * at(newest, steps[:3], i, base) for i in gap]
    return abs(sum(moves)) / NOISE[steps[0]]


@pytest.mark.parametrize("damping", [1.0, 0.3, -0.5])
@pytest.mark.parametrize("course", [ONE_STEP, TWO_STEP])
@pytest.mark.parametrize("steps", [[5, 2, 1, 0], [7, 3, 2, 0], [4, 2, 1], [3, 1]])
def test_it_is_what_the_sampler_would_have_done_with_the_interpolated_values(
    course, steps, damping
):
    base, values = Kriging(), [t**3 - 2 * t for t in TIMES]

    def gone_through(anchors, kept=1.0):
        x, before = 3.0, 0.7
        for i in range(steps[1] + 1, steps[0]):
            first = values[anchors[0]]
            clean = x - NOISE[i] * (first + kept * (at(values, anchors, i, base) - first))
            ahead = clean + course.carries[i] * (clean - before)
            x = NOISE[i + 1] / NOISE[i] * x + (1 - NOISE[i + 1] / NOISE[i]) * ahead
            before = clean
        return x, before

    right, wrong = gone_through(steps[:3]), gone_through(steps[1:], damping)
    off = found(base, course, steps)
    trust = min(1, 2 - 2 * reach(base, steps))
    assert off.place == steps[0] and (trust < 1) == (steps[0] == 7)
    pairs = ((off.sample, off.damped_sample), (off.clean, off.damped_clean))
    for (weights, more), one, other in zip(pairs, right, wrong, strict=True):
        summed = [w + (1 - damping) * m for w, m in zip(weights, more, strict=True)]
        told = sum(w * values[step] for w, step in zip(summed, steps, strict=True))
        assert told == pytest.approx(trust * (one - other), rel=1e-9)


def test_where_nothing_is_carried_moves_add_up():
    base, values, steps = Kriging(), [t**3 - 2 * t for t in TIMES], [5, 2, 1, 0]
    missed = sum(
        (NOISE[i + 1] - NOISE[i])
        * (at(values, steps[:3], i, base) - at(values, steps[1:], i, base))
        for i in (3, 4)
    )
    weights = found(base, ONE_STEP, steps).sample
    told = sum(w * values[step] for w, step in zip(weights, steps, strict=True))
    assert told == pytest.approx(missed, rel=1e-9)


def test_a_value_that_ends_no_gap_corrects_nothing():
    assert found(Kriging(), TWO_STEP, [4, 3, 2, 1]) is None
    assert found(Kriging(), TWO_STEP, [0]) is None


def test_times_of_another_run_are_not_corrected():
    assert correction(Kriging(), TWO_STEP, (0.32, 0.06, 0.03, 0.01)) is None


def test_predictions_that_do_not_change_need_no_correction():
    off = found(Kriging(), TWO_STEP, [5, 2, 1, 0])
    assert sum(off.sample) == pytest.approx(0, abs=1e-9)
    assert sum(off.clean) == pytest.approx(0, abs=1e-9)


def test_a_gap_that_reaches_beyond_the_noise_left_corrects_nothing():
    steps = [8, 3, 2, 0]
    assert reach(Kriging(), steps) > 1
    assert found(Kriging(), TWO_STEP, steps) is None


def test_what_is_taken_back_is_told_sample_by_sample():
    last = torch.tensor([[1.0, 2.0], [1.0, 0.0], [3.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    newest = torch.tensor([[-2.0, -4.0], [0.0, 5.0], [6.0, 2.0], [1.0, 1.0], [-1.0, 1.0]])
    found = taken_back(newest, last)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5**0.5]))
    spoilt = taken_back(newest.index_fill(0, torch.tensor([2]), float("nan")), last)
    assert spoilt.isnan().tolist() == [False, False, True, False, False]
    assert taken_back(newest.bfloat16(), last.bfloat16()).dtype == torch.float32


def guided(branches, scale):
    """`[samples, elements]` of `[samples, 2, elements]`, as classifier-free guidance has them."""
    empty, text = branches.unbind(1)
    return empty + scale * (text - empty)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_of_one_guidance_scale_are_followed_sample_by_sample(dtype):
    generator = torch.Generator().manual_seed(0)
    drift, start, apart = torch.randn(3, 4, 2, 256, generator=generator)
    # Branches are much alike, and change by a fifth from one value to the next.
    branches = [start[:, :1] + 0.2 * apart + 0.2 * step * drift for step in range(3)]
    scales = torch.tensor([[7.0, 7.0, 7.0], [7.0, 1.5, 1.5], [1.5, 1.5, 7.0], [7.0, 7.0, 7.0]])
    values = [guided(each, scale[:, None]) for each, scale in zip(branches, scales.T, strict=True)]
    values[1][3, 0] = float("nan")
    values, branches = [v.to(dtype) for v in values], [b.to(dtype) for b in branches]
    assert followed(values, branches).tolist() == [1.0, 0.0, 0.0, 0.0]
    with torch.autocast("cpu", torch.bfloat16):
        assert followed(values, branches).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_a_branch_alone_and_branches_that_are_the_same_are_followed():
    values = list(torch.randn(3, 2, 64, generator=torch.Generator().manual_seed(0)))
    assert followed(values, [-value[:, None] for value in values]).tolist() == [1.0, 1.0]
    twice = [value[:, None].expand(-1, 2, -1) for value in values]
    assert followed(values, twice).tolist() == [1.0, 1.0]
    # Guidance that stops: the branch that is left does not make up what was guided.
    values[2] = 3 * values[2]
    assert followed(values, [value[:, None] for value in values[:2]] + [values[1][:, None]])[0] == 0
