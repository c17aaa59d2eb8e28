"""First Block Cache against diffusers' own hook on a Flux transformer."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig

import diffcache

STEPS = 24


@pytest.mark.parametrize("threshold", [0.2, 0.25, 0.3, 1.5])
def test_same_steps_and_latents_as_diffusers(flux_transformer, flow_scheduler, sample, threshold):
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


def test_each_sample_decides_as_if_it_were_alone(flux_transformer, flow_scheduler, sample):
    diffcache.wrap(flux_transformer, "fbcache", scheduler=flow_scheduler, threshold=0.25)
    sample(flux_transformer, flow_scheduler, batch=3)
    masks = diffcache.report(flux_transformer).mask
    assert masks.shape == (STEPS, 3)
    assert not (masks == masks[:, :1]).all()
