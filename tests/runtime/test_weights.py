"""How much a prediction's error at a step weighs, for schedulers whose formula is known."""

import math
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import pytest
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from diffcache.runtime.schedulers import coordinates, timetable, weights


def of(scheduler: Any, steps: int = 20) -> list[float]:
    scheduler.set_timesteps(steps)
    return weights(scheduler, coordinates(scheduler, timetable(scheduler)))


def relative(moves: list[float]) -> list[float]:
    return [move / median(moves) for move in moves]


def test_variance_preserving_steps_weigh_by_noise_over_signal():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    found = of(scheduler)
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    noise = [*((1 - kept) / kept).sqrt().tolist(), 0.0]
    moves = [a - b for a, b in pairwise(noise)]
    assert found == pytest.approx(relative(moves), rel=1e-4)


def test_euler_weighs_by_its_sigmas():
    found = of(scheduler := EulerDiscreteScheduler(use_karras_sigmas=True))
    sigmas = scheduler.sigmas.double().tolist()
    moves = [a - b for a, b in pairwise(sigmas)]
    # The timesteps of Karras' sigmas are interpolated in the table of the training schedule.
    assert found[1:-2] == pytest.approx(relative(moves)[1:-2], rel=0.05)


def test_flow_steps_weigh_by_their_length_over_the_signal_after_them():
    found = of(scheduler := FlowMatchEulerDiscreteScheduler(shift=3.0))
    sigmas = scheduler.sigmas.double().tolist()
    moves = [(a - b) / (1 - b) for a, b in pairwise(sigmas)]
    assert found == pytest.approx(relative(moves), rel=1e-4)


def test_a_schedule_that_begins_in_pure_noise_leaves_the_others_their_weight():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    found = of(scheduler)
    assert all(map(math.isfinite, found))
    assert np.median(found) == pytest.approx(1.0)
    assert found[0] > 10 * found[5]


def test_both_evaluations_of_a_step_weigh_alike():
    found = of(HeunDiscreteScheduler())
    assert found[1] == found[2] > 0 and found[3] == found[4] > 0
