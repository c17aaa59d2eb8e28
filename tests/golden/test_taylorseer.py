"""TaylorSeer's light form against diffusers' own hooks on a Flux transformer."""

import pytest
import torch
from diffusers import TaylorSeerCacheConfig

import diffcache


@pytest.mark.parametrize(("every", "start", "order"), [(5, 3, 1), (3, 5, 2)])
def test_same_steps_and_latents_as_diffusers(
    flux_transformer, flow_scheduler, sample, every, start, order
):
    config = TaylorSeerCacheConfig(
        cache_interval=every,
        disable_cache_before_step=start,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )
    plain, _ = sample(flux_transformer, flow_scheduler)
    diffcache.wrap(
        flux_transformer,
        "taylorseer",
        scheduler=flow_scheduler,
        every=every,
        start=start,
        order=order,
    )
    found, ran = sample(flux_transformer, flow_scheduler)
    diffcache.unwrap(flux_transformer)
    # Last, because diffusers has no way to take these hooks off.
    flux_transformer.enable_cache(config)
    with flux_transformer.cache_context("cond"):
        expected, _ = sample(flux_transformer, flow_scheduler)
    assert ran == [i for i in range(24) if i < start or (i - start - 1) % every == 0]
    assert not torch.allclose(found, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
