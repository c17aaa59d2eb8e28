"""Pipelines that step, or read from their denoiser, in ways of their own are computed in full."""

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import diffcache
from diffcache import tiny

CALLS = {
    "StableDiffusionPanoramaPipeline": {"height": 128, "width": 640},
    "StableDiffusionSAGPipeline": {"sag_scale": 0.7},
}


@pytest.fixture(params=CALLS)
def name(request) -> str:
    return request.param


@pytest.fixture
def own_loop(name: str) -> Any:
    kind = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    parts = {name: part for name, part in tiny.pipeline("unet").components.items() if name in known}
    pipe = kind(**parts, requires_safety_checker=False)
    pipe.vae_scale_factor = 8
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def latents(name: str, own_loop: Any) -> Callable[[], Tensor]:
    call = {"num_inference_steps": 12, "guidance_scale": 2.5, "output_type": "latent"}

    def generate() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return own_loop("two red circles", generator=generator, **call, **CALLS[name]).images

    return generate


@pytest.mark.parametrize("method", [("interval", {}), ("adaptive", {"compute": 0.4})], ids=str)
def test_nothing_is_skipped_and_it_is_said_why(own_loop, latents, method):
    plain = latents()
    diffcache.wrap(own_loop, method[0], **method[1])
    assert torch.equal(latents(), plain)
    report = diffcache.report(own_loop)
    assert report.compute_fraction == 1
    # Where nothing is gated, no advice to skip by force would be true.
    observed = report.total > 0
    assert any(note.startswith("computed in full") for note in report.notes)
    assert observed or len(report.notes) == 1


def test_a_draft_is_exact_where_processors_keep_what_the_pipeline_reads(own_loop, latents):
    plain = latents()
    diffcache.wrap(own_loop)
    with diffcache.request(keep_prefix=True) as run:
        latents()
    assert torch.equal(run.refine().images, plain)


class Travel(diffusers.StableDiffusionPipeline):
    """Goes back four steps after the eighth, as resampling does."""

    @torch.no_grad()
    def __call__(self) -> None:
        scheduler, unet = self.scheduler, self.unet
        scheduler.set_timesteps(12)
        texts, _ = self.encode_prompt(["two red circles"], "cpu", 1, False)
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(
            1, unet.config.in_channels, *[unet.config.sample_size] * 2, generator=generator
        )
        for i in (*range(8), *range(4, 12)):
            t = scheduler.timesteps[i]
            predicted = unet(latents, t, encoder_hidden_states=texts).sample
            latents = scheduler.step(predicted, t, latents).prev_sample


def test_a_loop_that_goes_back_is_computed_from_there():
    pipe = Travel(**tiny.pipeline("unet").components)
    diffcache.wrap(pipe, "interval", every=4)
    pipe()
    report = diffcache.report(pipe)
    assert report.timeline() == "███·█···" + "█" * 8
    assert any("not stepped from each timestep to the next" in note for note in report.notes)
