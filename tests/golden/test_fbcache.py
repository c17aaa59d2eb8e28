"""First Block Cache against diffusers' own hook on a Flux transformer."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig

import diffcache

STEPS = 24


def inputs(batch: int):
    generator = torch.Generator().manual_seed(batch)
    return {
        "hidden_states": torch.randn(batch, 16, 8, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 6, 16, generator=generator),
        "pooled_projections": torch.randn(batch, 16, generator=generator),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(6, 3),
    }


@torch.no_grad()
def sample(transformer, scheduler, batch=1):
    """A hand-written loop; the latents, and at which steps the last block was run."""
    call = inputs(batch)
    x = call.pop("hidden_states")
    ran: list[int] = []
    index = [0]
    last = transformer.single_transformer_blocks[-1].norm
    hook = last.register_forward_hook(lambda *_: ran.append(index[0]))
    scheduler.set_timesteps(STEPS)
    for i, t in enumerate(scheduler.timesteps):
        index[0] = i
        velocity = transformer(x, timestep=(t / 1000).expand(batch), return_dict=False, **call)[0]
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    hook.remove()
    return x, ran


@pytest.mark.parametrize("threshold", [0.2, 0.25, 0.3, 1.5])
def test_same_steps_and_latents_as_diffusers(flux_transformer, flow_scheduler, threshold):
    flux_transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    with flux_transformer.cache_context("cond"):
        expected, ran = sample(flux_transformer, flow_scheduler)
    flux_transformer.disable_cache()
    assert 1 <= len(ran) < STEPS
    diffcache.wrap(flux_transformer, "fbcache", scheduler=flow_scheduler, threshold=threshold)
    found, ours = sample(flux_transformer, flow_scheduler)
    report = diffcache.report(flux_transformer)
    diffcache.unwrap(flux_transformer)
    assert ours == ran
    assert report.mask[:, 0].nonzero()[:, 0].tolist() == ran
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_sample_decides_as_if_it_were_alone(flux_transformer, flow_scheduler):
    diffcache.wrap(flux_transformer, "fbcache", scheduler=flow_scheduler, threshold=0.25)
    sample(flux_transformer, flow_scheduler, batch=3)
    masks = diffcache.report(flux_transformer).mask
    assert masks.shape == (STEPS, 3)
    assert not (masks == masks[:, :1]).all()
