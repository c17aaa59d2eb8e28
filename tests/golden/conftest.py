"""Random-weight pipelines that are cheap to run for many steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)


@pytest.fixture(scope="session")
def sd_pipe():
    """A StableDiffusionPipeline without text encoder, on 8x8 latents."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    pipe = StableDiffusionPipeline(
        vae, None, None, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def flux_transformer():
    """A FluxTransformer2DModel of two dual-stream and three single-stream blocks."""
    torch.manual_seed(1)
    return FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    ).eval()


@pytest.fixture
def flow_scheduler():
    return FlowMatchEulerDiscreteScheduler()


def _inputs(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "hidden_states": torch.randn(batch, 16, 8, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 6, 16, generator=generator),
        "pooled_projections": torch.randn(batch, 16, generator=generator),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
    }


@torch.no_grad()
def _sample(
    transformer: torch.nn.Module, scheduler: Any, batch: int = 1, steps: int = 24
) -> tuple[torch.Tensor, list[int]]:
    call = _inputs(batch)
    x = call.pop("hidden_states")
    ran: list[int] = []
    index = [0]
    last = transformer.single_transformer_blocks[-1].norm
    hook = last.register_forward_hook(lambda *_: ran.append(index[0]))
    scheduler.set_timesteps(steps)
    for i, t in enumerate(scheduler.timesteps):
        index[0] = i
        velocity = transformer(x, timestep=(t / 1000).expand(batch), return_dict=False, **call)[0]
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    hook.remove()
    return x, ran


@pytest.fixture(scope="session")
def sample() -> Callable[..., tuple[torch.Tensor, list[int]]]:
    """A hand-written loop `sample(transformer, scheduler, batch=1, steps=24)`.

    It gives the latents, and at which steps the last block was run.
    """
    return _sample
