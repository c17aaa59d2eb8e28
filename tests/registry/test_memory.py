"""What a report says of memory, against the tensors that are alive."""

import gc
from typing import Any

import pytest
import torch

import diffcache
from diffcache.methods import find, registry
from diffcache.sites import Output

STEPS = 12

# A policy's numbers a sample and the shared masks of steps are no cache.
SMALL = 4096

OPTIONS = {"mask": {"mask": [True, True, *[False, True] * 5]}, "dbcache": {"head": 1}}

# Methods whose fallback has something left to give up.
INNER = [name for name in registry() if not isinstance(find(name).site, Output)]


class Asked:
    """Stands for a pipeline, and keeps what it is called with."""

    def __init__(self, pipe: Any) -> None:
        if hasattr(pipe, "unet"):
            self.unet = pipe.unet
        self.images = None

    def __call__(self, **settings: Any) -> Any:
        self.settings = settings
        return self


def put_on(pipe: Any, generate: Any, name: str, **options: Any) -> bool:
    """Wraps the pipeline, calibrated where the method wants it; False where it does not apply."""
    calibration = None
    try:
        if find(name).policy.measured is not None:
            asked = Asked(pipe)
            generate(asked, 2, steps=STEPS, size=64)
            calibration = diffcache.calibrate(pipe, [asked.settings], name)
        diffcache.wrap(pipe, name, calibration=calibration, **OPTIONS.get(name, {}), **options)
    except ValueError:
        return False  # The table of applicability holds who refuses whom.
    return True


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
@pytest.mark.parametrize("name", registry())
def test_cache_bytes_are_those_of_the_tensors_alive(make, generate, name, kind):
    pipe = make(kind)
    if not put_on(pipe, generate, name):
        return
    generate(pipe, 2, steps=STEPS, size=64)
    diffcache.unwrap(pipe)
    plain = alive_at_the_end(pipe, generate)
    before = alive()
    put_on(pipe, generate, name)
    held = alive_at_the_end(pipe, generate) - plain
    report = diffcache.report(pipe)
    assert report.cache_bytes == pytest.approx(held, abs=SMALL)
    assert report.cache_bytes > 0 or report.compute_fraction == 1
    assert abs(alive() - before) <= SMALL


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("name", INNER)
def test_every_site_goes_on_with_whole_outputs(make, generate, name, kind):
    """Or with all computed, where whole outputs are no less."""
    pipe = make(kind)
    if not put_on(pipe, generate, name):
        return
    generate(pipe, 2, steps=STEPS, size=64)
    limit = diffcache.report(pipe).cache_bytes * 4 // 5
    if not limit:
        return
    put_on(pipe, generate, name, max_cache_bytes=limit)
    assert generate(pipe, 2, steps=STEPS, size=64).isfinite().all()
    report = diffcache.report(pipe)
    assert any("only whole outputs were kept" in note for note in report.notes)
    assert report.steps == STEPS


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


def test_cache_bytes_are_the_most_that_was_held(unet, generate):
    """Also where an edit of the latents has dropped the caches."""

    def edit(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * (0.99 if step == 18 else 1)}

    diffcache.wrap(unet, "interval", every=2)
    generate(unet, steps=20)
    whole = diffcache.report(unet).cache_bytes
    generate(unet, steps=20, callback_on_step_end=edit)
    assert diffcache.report(unet).cache_bytes == whole > 0
