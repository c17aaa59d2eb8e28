"""Drafts of denoisers that keep something between their calls."""

from typing import Any

import pytest
import torch

import diffcache


class Filled:
    """What the first call fills and later ones read, as a cache of keys and values."""

    value: torch.Tensor | None = None


def keeping(module: torch.nn.Module, given: bool) -> None:
    """Makes a denoiser fill a cache in its first call and need it in all others."""
    plain, cache = module.forward, Filled()

    def forward(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        own = kwargs.pop("cross_attention_kwargs", None)
        kept = own["cache"] if own else cache
        output = plain(sample, timestep, *args, **kwargs)
        if timestep > 900:
            kept.value = output[0].mean()
        elif kept.value is None:
            raise RuntimeError("KV cache has not been populated yet")
        if timestep < 50:
            kept.value = None
        return output if given else (*output, cache)

    module.forward = forward


@pytest.mark.parametrize("given", [True, False], ids=["an argument", "an output"])
def test_what_a_call_fills_is_filled_again(unet, generate, given):
    keeping(unet.unet, given)
    options = {"cross_attention_kwargs": {"cache": Filled()}} if given else {}
    plain = generate(unet, steps=12, **options)
    diffcache.wrap(unet, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        generate(unet, steps=12, **options)
        assert torch.equal(run.refine().images, plain)
    assert run.report.prefix == run.reports[0].prefix_bytes == 0
