"""MagCache against diffusers' own hooks on a Flux transformer."""

import pytest
import torch
from diffusers import MagCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

import diffcache


@pytest.mark.parametrize(
    ("threshold", "max_skips", "retention"), [(0.06, 3, 0.2), (0.24, 5, 0.1), (0.03, 2, 0.3)]
)
def test_same_steps_and_latents_as_diffusers(
    flux_transformer, flow_scheduler, sample, threshold, max_skips, retention
):
    flux_transformer.enable_cache(
        MagCacheConfig(
            threshold=threshold,
            max_skip_steps=max_skips,
            retention_ratio=retention,
            num_inference_steps=24,
            mag_ratios=FLUX_MAG_RATIOS,
        )
    )
    with flux_transformer.cache_context("cond"):
        expected, ran = sample(flux_transformer, flow_scheduler)
    flux_transformer.disable_cache()
    assert 1 <= len(ran) < 24
    diffcache.wrap(
        flux_transformer,
        "magcache",
        scheduler=flow_scheduler,
        threshold=threshold,
        max_skips=max_skips,
        retention=retention,
        ratios=FLUX_MAG_RATIOS.tolist(),
    )
    found, ours = sample(flux_transformer, flow_scheduler)
    diffcache.unwrap(flux_transformer)
    assert ours == ran
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
