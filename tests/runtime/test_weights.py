"""What a run reads off a scheduler: how much errors weigh, and where its steps lie."""

import math
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from diffcache.runtime.schedulers import (
    coordinates,
    ends_clean,
    is_flow,
    noise,
    reach,
    timesteps_of,
    weights,
)


def of(scheduler: Any, steps: int = 20) -> list[float]:
    scheduler.set_timesteps(steps)
    times = timesteps_of(scheduler)
    levels = noise(scheduler, times)
    reached = reach(scheduler, times, levels)
    return weights(levels, is_flow(scheduler), ends_clean(scheduler), reached)


def relative(moves: list[float], ratios: list[float], bound: float = 15) -> list[float]:
    """What moves at these σ/α weigh; above a bound an error is taken back in proportion."""
    *others, last = moves
    moves = [*others, max(3 * last, median(moves))]
    middle = median([*others, last])
    kept = [min(1, bound / ratio) for ratio in ratios]
    return [move / middle * part for move, part in zip(moves, kept, strict=True)]


def test_variance_preserving_steps_weigh_by_noise_over_signal():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    found = of(scheduler)
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    noise = [*((1 - kept) / kept).sqrt().tolist(), 0.0]
    moves = [a - b for a, b in pairwise(noise)]
    assert found == pytest.approx(relative(moves, noise[:-1]), rel=1e-4)


def test_euler_weighs_by_its_sigmas():
    found = of(scheduler := EulerDiscreteScheduler(use_karras_sigmas=True))
    sigmas = scheduler.sigmas.double().tolist()
    moves = [a - b for a, b in pairwise(sigmas)]
    assert sigmas[0] > 100
    assert found == pytest.approx(relative(moves, sigmas[:-1]), rel=1e-4)


def test_what_a_scaled_prediction_moves_is_weighed_where_the_network_is_told_noise():
    """By Karras et al. (arXiv 2206.00364), what is predicted is multiplied by c_out."""
    karras = {"use_karras_sigmas": True, "sigma_max": 80.0, "sigma_min": 0.002}
    kinds = {
        0.5: EDMEulerScheduler(),
        1.0: EulerDiscreteScheduler(
            **karras, timestep_type="continuous", prediction_type="v_prediction"
        ),
        # Trained on counted timesteps, it weighs as if it predicted noise.
        math.inf: EulerDiscreteScheduler(prediction_type="v_prediction"),
    }
    for width, scheduler in kinds.items():
        found = of(scheduler)
        sigmas = scheduler.sigmas.double().tolist()
        moves = [(a - b) / math.hypot(1, a / width) for a, b in pairwise(sigmas)]
        assert found == pytest.approx(relative(moves, sigmas[:-1]), rel=1e-4)


def test_flow_steps_weigh_by_their_length_over_the_signal_after_them():
    found = of(scheduler := FlowMatchEulerDiscreteScheduler(shift=3.0))
    sigmas = scheduler.sigmas.double().tolist()
    moves = [(a - b) / (1 - b) for a, b in pairwise(sigmas)]
    ratios = [sigma / max(1 - sigma, 1e-3) for sigma in sigmas[:-1]]
    assert found == pytest.approx(relative(moves, ratios, bound=7), rel=1e-4)


def test_a_last_step_that_leaves_noise_weighs_what_it_moves():
    vp = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    clean, noisy = (of(DDIMScheduler(set_alpha_to_one=one, **vp), 20) for one in (True, False))
    assert clean[:-1] == noisy[:-1]
    assert clean[-1] == 1.0 and noisy[-1] < 0.7


def test_a_schedule_that_begins_in_pure_noise_leaves_the_others_their_weight():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    found = of(scheduler)
    assert all(map(math.isfinite, found))
    assert median(found[:-1]) == pytest.approx(1.0, abs=0.2)
    assert found[0] < 3 * found[5]


def test_both_evaluations_of_a_step_weigh_alike():
    found = of(HeunDiscreteScheduler())
    assert found[1] == found[2] > 0 and found[3] == found[4] > 0


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        EulerDiscreteScheduler(use_karras_sigmas=True, sigma_max=700.0, sigma_min=0.002),
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=12.0),
    ],
    ids=["vp", "zero-snr", "ve", "flow", "shifted-flow"],
)
def test_coordinates_rise_to_one_at_the_clean_sample(scheduler):
    scheduler.set_timesteps(50)
    found = coordinates(noise(scheduler, timesteps_of(scheduler)), is_flow(scheduler))
    assert all(a < b for a, b in pairwise(found))
    assert found[0] < 0.2 and 0.5 < found[-1] < 1.0
    assert coordinates([0.0], is_flow(scheduler)) == [1.0]


def test_coordinates_are_the_cube_root_of_noise_over_signal():
    assert coordinates([27.0, 8.0, 1.0, 0.0], False) == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert coordinates([8 / 9, 0.5, 0.0], True) == pytest.approx([0.0, 0.5, 1.0])
    # Noise that drowns the signal: the logarithm continues the root without a kink.
    far, near = coordinates([50.0 * math.e, 50.0], False)
    assert (far, near) == pytest.approx((-1 / 3, 0.0))
    below, at, above = coordinates([49.999, 50.0, 50.001], False)
    assert below - at == pytest.approx(at - above, rel=1e-3)
