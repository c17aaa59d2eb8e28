"""What a report says of memory, against the tensors that are alive."""

import gc
from typing import Any

import pytest
import torch

import diffcache
from diffcache.methods import find, registry

STEPS = 12

# A policy's numbers a sample and the shared masks of steps are no cache.
SMALL = 4096

# A method that needs a measurement keeps what the others of its site keep.
METHODS = [name for name in registry() if not find(name).policy.measured_is_needed]
OPTIONS = {"mask": {"mask": [True, True, *[False, True] * 5]}, "dbcache": {"head": 1}}


def alive() -> int:
    """Bytes of all storages that a tensor keeps."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and each.device.type == "cpu":
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def alive_at_the_end(pipe: Any, generate: Any) -> int:
    """Bytes alive in the callback of a generation's last step."""
    seen = []

    def look(_pipe: Any, step: int, _t: Any, kwargs: dict) -> dict:
        if step == STEPS - 1:
            seen.append(alive())
        return kwargs

    generate(pipe, 2, steps=STEPS, size=64, callback_on_step_end=look)
    return seen[0]


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("name", METHODS)
def test_cache_bytes_are_those_of_the_tensors_alive(make, generate, name, kind):
    pipe = make(kind)
    try:
        diffcache.wrap(pipe, name, **OPTIONS.get(name, {}))
    except ValueError:
        return  # The table of applicability holds who refuses whom.
    generate(pipe, 2, steps=STEPS, size=64)
    diffcache.unwrap(pipe)
    plain = alive_at_the_end(pipe, generate)
    diffcache.wrap(pipe, name, **OPTIONS.get(name, {}))
    held = alive_at_the_end(pipe, generate) - plain
    assert diffcache.report(pipe).cache_bytes == pytest.approx(held, abs=SMALL)
    after = alive()
    diffcache.unwrap(pipe)
    assert after - alive() <= SMALL


@pytest.mark.parametrize(("name", "options"), [("fbcache", {"threshold": 0.4}), ("fora", {})])
def test_too_small_a_limit_falls_back_to_whole_outputs(make, generate, name, options):
    pipe = make("dit")
    calls: list[int] = []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    diffcache.wrap(pipe, name, **options)
    generate(pipe, 2, steps=24, cfg=False, size=64)
    limit = diffcache.report(pipe).cache_bytes * 4 // 5
    diffcache.wrap(pipe, name, max_cache_bytes=limit, **options)
    calls.clear()
    latents = generate(pipe, 2, steps=24, cfg=False, size=64)
    report = diffcache.report(pipe)
    assert latents.isfinite().all()
    assert any(f"max_cache_bytes={limit}" in n and "whole outputs" in n for n in report.notes)
    assert report.steps == 24 and report.mask.shape == (24, 2)
    # Steps that the output site skips do not call the transformer at all; an interval fits it.
    assert len(calls) == int(report.mask.any(1).sum())
    assert name != "fora" or len(calls) < 24
    generate(pipe, 2, steps=24, cfg=False, size=64)
    assert diffcache.report(pipe).mask.equal(report.mask)


def test_a_fallback_that_is_too_large_as_well_computes(make, generate):
    pipe = make("dit")
    plain = generate(pipe, 2, size=64)
    diffcache.wrap(pipe, "fbcache", max_cache_bytes=100)
    assert torch.equal(generate(pipe, 2, size=64), plain)
    assert any("given up" in note for note in diffcache.report(pipe).notes)


def test_a_bare_denoiser_falls_back_too(unet):
    model, scheduler = unet.unet, unet.scheduler
    diffcache.wrap(model, "fora", scheduler=scheduler, every=3, max_cache_bytes=10_000)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 32)
    for _ in range(2):
        sample = x
        scheduler.set_timesteps(20)
        for t in scheduler.timesteps:
            with torch.no_grad():
                output = model(sample, t, encoder_hidden_states=text).sample
            sample = scheduler.step(output, t, sample).prev_sample
        report = diffcache.report(model)
        assert any("max_cache_bytes=10000" in note for note in report.notes)
        assert report.steps == 20
    diffcache.unwrap(model)
