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


@pytest.mark.parametrize(
    ("cache", "fill"),
    [
        (list, lambda cache, value: cache.append(value)),
        (dict, lambda cache, value: cache.setdefault("first", value)),
        (lambda: torch.zeros(1), lambda cache, value: cache.fill_(value)),
    ],
    ids=["list", "dict", "tensor"],
)
def test_what_a_call_fills_may_be_a_plain_container(unet, generate, cache, fill):
    forward, read = unet.unet.forward, []

    def filling(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        own = kwargs.pop("cross_attention_kwargs")["cache"]
        (output,) = forward(sample, timestep, *args, **kwargs)
        if timestep > 900:
            fill(own, output.mean())
        found = next(iter(own.values() if isinstance(own, dict) else own), torch.zeros(()))
        read.append(float(found))
        return (output + 0.1 * found,)

    unet.unet.forward = filling
    plain = generate(unet, steps=12, cross_attention_kwargs={"cache": cache()})
    wanted = list(read)
    diffcache.wrap(unet, "interval", every=3)
    read.clear()
    with diffcache.request(keep_prefix=True) as run:
        generate(unet, steps=12, cross_attention_kwargs={"cache": cache()})
        read.clear()
        refined = run.refine().images
    assert wanted[0] != 0
    assert read == wanted
    assert torch.equal(refined, plain)


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
