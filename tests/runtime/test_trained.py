"""The trained tiny pipelines: real pictures, and counts that add up."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import diffcache
from diffcache import metrics, tiny

PROMPTS = tiny.prompts[:2]
STEPS = 25


@pytest.fixture(scope="module", params=["unet", "dit"])
def trained(request: pytest.FixtureRequest) -> Any:
    pipe = tiny.pipeline(request.param)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe: Any) -> torch.Tensor:
    guidance = {"guidance_scale": 3.0}
    if hasattr(pipe, "transformer"):
        guidance = {"true_cfg_scale": 3.0, "negative_prompt": [""] * len(PROMPTS)}
    found = pipe(
        list(PROMPTS),
        height=64,
        width=64,
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
        output_type="pt",
        **guidance,
    )
    return found.images


@pytest.fixture(scope="module")
def plain(trained: Any) -> torch.Tensor:
    return pictures(trained)


@pytest.mark.parametrize("method", ["adaptive", "interval", "third_order"])
def test_pictures_are_close_and_counts_add_up(trained, plain, method):
    with diffcache.wrapped(trained, method):
        found = pictures(trained)
        report = diffcache.report(trained)
    assert found.shape == plain.shape and found.isfinite().all()
    error = (found - plain).square().flatten(1).mean(1)
    assert (-10 * error.clamp(min=1e-12).log10() > 20).all()
    assert report.total == 4 * STEPS
    assert report.computed == 2 * int(report.mask.sum())
    assert report.steps == len(report.trace) == len(report.mask) == STEPS
    assert report.mask[:3].all()
    # `adaptive` protects no last step.
    assert report.mask[-1].all() or method == "adaptive"
    if method != "third_order":
        assert report.compute_fraction < 0.9
        assert not torch.equal(found, plain)
    assert torch.equal(pictures(trained), plain)


def test_never_skipping_is_bit_identical(trained, plain):
    with diffcache.wrapped(trained, tolerance=0):
        assert torch.equal(pictures(trained), plain)
        assert diffcache.report(trained).compute_fraction == 1


@pytest.mark.parametrize("method", ["third_order", "adaptivediffusion", "adaptive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_third_differences_in_half_precision_are_said(method, dtype):
    """They measure rounding there, and nothing said why so little was skipped."""
    pipe = tiny.pipeline("unet", dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    diffcache.wrap(pipe, method)
    pipe(PROMPTS[0], num_inference_steps=10, output_type="latent")
    said = any("in half precision" in note for note in diffcache.report(pipe).notes)
    assert said == (dtype == torch.bfloat16 and method != "adaptive")


def test_more_of_the_run_is_no_farther_from_it():
    # Plans that forecast the last step but one from afar gave 57 dB at both.
    pipe = tiny.pipeline("unet")
    pipe.set_progress_bar_config(disable=True)

    def made():
        seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
        call = {"num_inference_steps": 28, "guidance_scale": 8.0, "generator": seeds}
        return pipe([*PROMPTS, *PROMPTS], output_type="np", **call).images

    full, found = made(), []
    for compute in (0.5, 0.65):
        with diffcache.wrapped(pipe, compute=compute):
            found.append(metrics.psnr(made(), full).mean())
    assert found[1] > found[0] + 1


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("steps", [20, 28])
def test_a_quarter_of_a_run_computes_its_second_step_unless_it_begins_in_pure_noise(kind, steps):
    # Where the UNet's was forecast from the first alone, some pictures turned out others.
    pipe = tiny.pipeline(kind)
    pipe.set_progress_bar_config(disable=True)
    if kind == "dit":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    with diffcache.wrapped(pipe, compute=0.25):
        pipe(PROMPTS[0], num_inference_steps=steps, output_type="latent")
        mask = diffcache.report(pipe).mask
    assert mask[0].all() and mask[1].all() == (kind == "unet") and mask.sum() == steps / 4


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_double_precision_is_served(kind):
    pipe = tiny.pipeline(kind, dtype=torch.float64)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 12, "output_type": "pt"}
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    plain = pipe(list(PROMPTS), generator=seeds, **call).images
    with diffcache.wrapped(pipe, tolerance=0.2):
        seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
        found = pipe(list(PROMPTS), generator=seeds, **call).images
        assert diffcache.report(pipe).compute_fraction < 0.9
    error = (found - plain).square().flatten(1).mean(1)
    assert (-10 * error.clamp(min=1e-12).log10() > 20).all()
