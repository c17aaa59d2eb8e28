"""Schedulers whose σ and timesteps count the picture in place of the noise, as Mochi's do."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import diffcache
from diffcache import tiny
from diffcache.metrics import psnr
from diffcache.runtime.timetable import Timetable

STEPS = 28


def inverted(pipe: Any) -> Any:
    """Makes the pipeline as good as Mochi or OmniGen: a time that rises, and -v for v."""
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipe.scheduler.config, invert_sigmas=True
    )
    plain = pipe.transformer.forward

    @functools.wraps(plain)
    def forward(*args: Any, timestep: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        return (-plain(*args, timestep=1 - timestep, **kwargs)[0],)

    pipe.transformer.forward = forward
    return pipe


def generate(pipe: Any) -> np.ndarray:
    return pipe(
        list(tiny.prompts[:2]),
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
        output_type="np",
    ).images


@pytest.fixture(scope="module")
def pipes() -> list[Any]:
    found = [tiny.pipeline("dit"), inverted(tiny.pipeline("dit"))]
    for pipe in found:
        pipe.set_progress_bar_config(disable=True)
    return found


@pytest.mark.parametrize("options", [{}, {"compute": 0.25}, {"method": "spectrum"}], ids=str)
def test_a_run_is_cached_as_one_that_counts_noise(pipes, options):
    pictures, masks = [], []
    for pipe in pipes:
        plain = generate(pipe)
        with diffcache.wrapped(pipe, **options):
            skipping = generate(pipe)
            masks.append(diffcache.report(pipe).mask)
        assert not np.array_equal(plain, skipping)
        pictures.append(skipping)
    assert torch.equal(*masks)
    # Rounding in fp32 is all that tells 1 - (1 - σ) from σ.
    assert psnr(*pictures).min() > 55


@pytest.mark.parametrize("count", [1000, 1])
def test_its_timetable_is_that_of_the_noise(count):
    """OmniGen counts its timesteps up to 1."""
    options = {"num_train_timesteps": count, "shift": 3.0}
    tables = []
    for invert in (False, True):
        scheduler = FlowMatchEulerDiscreteScheduler(**options, invert_sigmas=invert)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS))
        tables.append(Timetable(scheduler))
    noise, signal = tables
    assert signal.timesteps[0] < signal.timesteps[-1]
    for name in ("scaled", "coordinates", "weights"):
        assert getattr(signal, name) == pytest.approx(getattr(noise, name), rel=1e-3, abs=0.01)
    assert signal.course.units == tuple(-unit for unit in noise.course.units)
    assert signal.course.slopes == pytest.approx(noise.course.slopes, rel=1e-3)
