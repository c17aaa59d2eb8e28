"""Samples corrected for what skipped steps were off by, on the trained pipelines."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

import diffcache
from diffcache import metrics, tiny
from diffcache.predictors import Kriging
from diffcache.runtime.timetable import Timetable
from diffcache.sites import BlockStack, Output


@pytest.mark.parametrize(
    ("scheduler", "known"),
    [
        (DDIMScheduler(), True),
        (EulerDiscreteScheduler(), True),
        (FlowMatchEulerDiscreteScheduler(), True),
        (DDIMScheduler(prediction_type="v_prediction"), False),
        (DPMSolverMultistepScheduler(), False),
        (HeunDiscreteScheduler(), False),
    ],
)
def test_the_course_is_known_where_steps_add_the_prediction(scheduler, known):
    scheduler.set_timesteps(10)
    course = Timetable(scheduler).course
    assert (course is not None) == known
    if known:
        assert len(course.times) == len(course.moves) == 10
        assert sum(course.moves) == pytest.approx(-course.noise[0])


PROMPTS = [
    f"{count} {colour} {shape}"
    for colour in ("red", "blue")
    for count, shape in (("one", "circle"), ("two", "squares"), ("three", "triangles"))
]


def plain(pipe):
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    call = {"num_inference_steps": 28, "generator": seeds, "output_type": "np"}
    return pipe(PROMPTS, height=32, width=32, **call).images


def pictures(pipe, **options):
    with diffcache.wrapped(pipe, compute=0.36, **options):
        return plain(pipe)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_corrected_pictures_are_nearer_to_the_full_ones(kind):
    pipe = tiny.pipeline(kind)
    pipe.set_progress_bar_config(disable=True)
    full = plain(pipe)
    with_it, without = (
        metrics.psnr(pictures(pipe, corrects=corrects), full) for corrects in (True, False)
    )
    assert with_it.mean() > without.mean() + 0.5


def test_multistep_samplers_are_not_corrected():
    pipe = tiny.pipeline("unet")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert np.array_equal(pictures(pipe, corrects=True), pictures(pipe, corrects=False))


def test_only_whole_outputs_keep_what_corrections_read(make, generate):
    def kept(corrects, site):
        predictor = Kriging(corrects=corrects)
        pipe = diffcache.wrap(make("dit"), site=site, predictor=predictor, tolerance=0.0)
        generate(pipe, 1, 12, cfg=False)
        return diffcache.report(pipe).cache_bytes

    assert kept(True, BlockStack()) == kept(False, BlockStack())
    assert kept(True, Output()) > kept(False, Output())
