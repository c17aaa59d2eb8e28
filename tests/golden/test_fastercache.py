"""FasterCache's guidance half against diffusers' own hook, and against the formula written out."""

from copy import deepcopy

import pytest
import torch
from diffusers import FasterCacheConfig
from diffusers.hooks import apply_faster_cache

import diffcache

STEPS, SCALE = 25, 5.0
SAMPLES = 2


@torch.no_grad()
def trajectory(model, scheduler, now=None, swapped=False, plan=None):
    """Latents after each step of a guided loop `[steps, samples, ...]`, and rows of each call.

    With a `plan`, the unconditional half is what the plan makes of the conditional one.
    """
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 4, 8, 8, generator=generator)
    texts = torch.randn(2 * SAMPLES, 5, 16, generator=generator)
    if swapped:
        texts = texts.roll(SAMPLES, 0)
    rows = []
    hook = model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    scheduler.set_timesteps(STEPS)
    seen = []
    for index, t in enumerate(scheduler.timesteps):
        if now is not None:
            now[:] = [float(t)]

        def call(which, x=x, t=t):
            repeated = torch.cat([x, x])[which]
            time = t.expand(len(repeated))
            return model(
                repeated, timestep=time, encoder_hidden_states=texts[which], return_dict=False
            )[0]

        if plan is None:
            first, second = call(slice(None)).chunk(2)
            uncond, cond = (second, first) if swapped else (first, second)
        else:
            uncond, cond = plan(index, float(t), call)
        x = scheduler.step(uncond + SCALE * (cond - uncond), t, x, return_dict=False)[0]
        seen.append(x)
    hook.remove()
    return torch.stack(seen), rows


def written_out():
    """The published rule, naively: a plan that remembers two spectra."""
    delta = {}

    def split(image):
        spectrum = torch.fft.fftshift(torch.fft.fft2(image), dim=(-2, -1))
        height, width = image.shape[-2:]
        low = torch.zeros(height, width, dtype=torch.bool)
        for y in range(height):
            for x in range(width):
                distance = (y - height // 2) ** 2 + (x - width // 2) ** 2
                low[y, x] = distance <= (min(height, width) // 5) ** 2
        return spectrum * low, spectrum * ~low

    def plan(index, t, call):
        if index % 5 == 0 or t >= 641:
            uncond, cond = call(slice(None)).chunk(2)
            for name, a, b in zip("lh", split(uncond), split(cond), strict=True):
                delta[name] = a - b
            return uncond, cond
        cond = call(slice(SAMPLES, None))
        delta["l"] = delta["l"] * (1.1 if 99 < t < 901 else 1)
        delta["h"] = delta["h"] * (1.1 if t < 301 else 1)
        low, high = split(cond)
        both = torch.fft.ifftshift(low + delta["l"] + high + delta["h"], dim=(-2, -1))
        return torch.fft.ifft2(both).real, cond

    return plan


@pytest.fixture
def model(sd_pipe):
    return deepcopy(sd_pipe.unet)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# The hook calls `meshgrid` the old way.
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_same_latents_as_diffusers(sd_pipe, model):
    now = []
    hooked = deepcopy(sd_pipe.unet)
    config = FasterCacheConfig(tensor_format="BCHW", current_timestep_callback=lambda: now[0])
    apply_faster_cache(hooked, config)
    expected, _ = trajectory(hooked, sd_pipe.scheduler, now)
    plain, _ = trajectory(model, sd_pipe.scheduler)
    diffcache.wrap(model, "fastercache", scheduler=sd_pipe.scheduler)
    found, _ = trajectory(model, sd_pipe.scheduler)
    close(found, expected)
    assert not torch.allclose(plain, expected, rtol=1e-3, atol=1e-3)
    diffcache.unwrap(model)


@pytest.mark.parametrize("swapped", [False, True], ids=["uncond first", "cond first"])
def test_same_latents_as_the_formula_in_either_order(sd_pipe, model, swapped):
    expected, _ = trajectory(deepcopy(model), sd_pipe.scheduler, plan=written_out())
    diffcache.wrap(model, "fastercache", scheduler=sd_pipe.scheduler)
    found, rows = trajectory(model, sd_pipe.scheduler, swapped=swapped)
    report = diffcache.report(model)
    diffcache.unwrap(model)
    close(found, expected)
    skipped = [
        index % 5 != 0 and float(t) < 641 for index, t in enumerate(sd_pipe.scheduler.timesteps)
    ]
    assert report.mask[:, 0].tolist() == [not skip for skip in skipped]
    assert report.computed == sum(SAMPLES * (2 - skip) for skip in skipped)
    assert report.total == 2 * SAMPLES * STEPS
    # To see that rows are independent the first mixed step is computed in full as well, and once
    # more without the first row.
    assert sum(rows) == report.computed + (3 if swapped else 2) * SAMPLES
