"""The UNet branch site on a pipeline: sizes that change, and what it refuses."""

import pytest
import torch
from diffusers import DDIMScheduler

import diffcache
from diffcache.sites import UNetBranch


def test_generations_of_other_sizes(unet, make, generate):
    diffcache.wrap(unet, "deepcache", every=3)
    first = generate(unet)
    report = diffcache.report(unet)
    assert report.mask[:, 0].tolist() == [i % 3 == 0 for i in range(12)]
    generate(unet, samples=3, size=24)
    assert torch.equal(generate(unet), first)
    diffcache.unwrap(unet)
    assert torch.equal(generate(unet), generate(make("unet")))


def test_a_denoiser_that_is_no_unet_is_refused(dit):
    with pytest.raises(ValueError, match=r"is no UNet.*adaptive"):
        diffcache.wrap(dit, "deepcache")


def test_a_depth_that_a_unet_lacks_is_refused(unet):
    with pytest.raises(ValueError, match="use depth <= 1"):
        diffcache.wrap(unet, "deepcache", depth=2)
    with pytest.raises(ValueError, match="something has to stay computed"):
        UNetBranch(0, 0)


def test_levels_that_are_compiled_one_by_one_are_taken(unet):
    # Nothing is compiled before a first call.
    for level, block in enumerate(unet.unet.up_blocks):
        unet.unet.up_blocks[level] = torch.compile(block, backend="eager")
    diffcache.unwrap(diffcache.wrap(unet, "deepcache"))


def test_levels_that_are_lists_of_layers_are_refused(bench):
    unet = bench("denoisers").build("StableCascadeUNet")
    with pytest.raises(ValueError, match=r"layers of its levels one by one.*'adaptive'"):
        diffcache.wrap(unet, "deepcache", scheduler=DDIMScheduler())
