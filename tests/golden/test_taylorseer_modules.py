"""TaylorSeer module by module against diffusers' own hooks on a Flux transformer."""

import pytest
import torch
from diffusers import TaylorSeerCacheConfig

import diffcache
from diffcache.predictors import Taylor
from diffcache.sites import Modules

STEPS = 20


@torch.no_grad()
def sample(transformer, scheduler):
    generator = torch.Generator().manual_seed(5)
    x, text = (torch.randn(1, n, w, generator=generator) for n, w in ((16, 8), (6, 16)))
    pooled = torch.randn(1, 16, generator=generator)
    ids = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3)}
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        velocity = transformer(
            x,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=(t / 1000).expand(1),
            return_dict=False,
            **ids,
        )[0]
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("roles", [("self",), ("self", "mlp")], ids=" and ".join)
@pytest.mark.parametrize("order", [1, 2])
def test_same_latents_as_diffusers(flux_transformer, flow_scheduler, order, roles):
    plain = sample(flux_transformer, flow_scheduler)
    patterns = [r".*_blocks\.\d\.attn"]
    if "mlp" in roles:
        patterns += [r".*_blocks\.\d\.(ff|ff_context|proj_mlp)"]
    config = TaylorSeerCacheConfig(
        cache_interval=4,
        disable_cache_before_step=3,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=patterns,
    )
    flux_transformer.enable_cache(config)
    with flux_transformer.cache_context("cond"):
        expected = sample(flux_transformer, flow_scheduler)
    flux_transformer.disable_cache()
    diffcache.wrap(
        flux_transformer,
        "interval",
        scheduler=flow_scheduler,
        site=Modules(roles=roles),
        predictor=Taylor(order),
        every=4,
        protect=(3, 0),
    )
    found = sample(flux_transformer, flow_scheduler)
    mask = diffcache.report(flux_transformer).mask[:, 0]
    assert mask.nonzero()[:, 0].tolist() == [0, 1, 2, *range(4, STEPS, 4)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, plain, rtol=1e-4, atol=1e-4)
