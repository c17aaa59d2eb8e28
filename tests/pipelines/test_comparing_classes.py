"""Pipelines that compare their scheduler's class run on while it is observed."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    BriaTransformer2DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.bria.pipeline_bria import BriaPipeline

import diffcache
from diffcache.runtime import clock


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    transformer = BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[0, 4, 4],
    )
    vae = AutoencoderKL(block_out_channels=(32,), scaling_factor=1.0, shift_factor=0.0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = BriaPipeline(transformer, scheduler, vae, text_encoder=None, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_bria_asks_whether_its_scheduler_is_of_a_class(pipe):
    def latents():
        texts = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(1))
        size = {"height": 64, "width": 64, "num_inference_steps": 12, "guidance_scale": 1.0}
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt_embeds=texts, generator=generator, output_type="latent", **size).images

    plain = latents()
    diffcache.wrap(pipe, tolerance=0)
    assert torch.equal(latents(), plain)
    diffcache.wrap(pipe, mask=[step % 2 == 0 for step in range(12)])
    assert latents().isfinite().all()
    assert diffcache.report(pipe).compute_fraction == 0.5
    diffcache.unwrap(pipe)
    assert torch.equal(latents(), plain)


def test_an_observed_class_equals_its_own_and_no_other():
    watcher, scheduler, other = object(), DDIMScheduler(), FlowMatchEulerDiscreteScheduler()
    clock.watch(scheduler, watcher)
    clock.watch(other, watcher)
    kind, apart = type(scheduler), type(other)
    assert kind is not DDIMScheduler
    assert DDIMScheduler == kind == DDIMScheduler
    assert {DDIMScheduler: "found"}[kind] == "found"
    assert kind not in (apart, type("Own", (kind,), {}), FlowMatchEulerDiscreteScheduler, "DDIM")
