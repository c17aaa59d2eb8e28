"""One library on one small Flux transformer; a line on stdin runs generations with and without.

Answers each line with JSON: the median seconds of a denoiser call and of a scheduler step, with
the library and without it, for some short turns of each. All on one model, as twins differ by where
their weights lie in memory, and in turns as short as can be, as a shared machine is as fast as its
neighbours let it be, which changes within a second.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from statistics import fmean, median

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

import diffcache
from diffcache.sites import BlockStack

# Dual-stream and single-stream blocks, and steps of a generation: the 57 are those of Flux.1.
SIZES = {"4": (2, 2, 28), "57": (19, 38, 12)}
TURNS = {"4": 5, "57": 1}


def build(size: str) -> FluxTransformer2DModel:
    """A narrow FluxTransformer2DModel of that many blocks, random weights."""
    torch.manual_seed(0)
    dual, single, _ = SIZES[size]
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=dual,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    ).eval()


def arguments() -> dict[str, torch.Tensor]:
    """Of a call, but for the timestep."""
    return {
        "hidden_states": torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(1)),
        "encoder_hidden_states": torch.randn(1, 24, 32),
        "pooled_projections": torch.randn(1, 32),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(24, 3),
    }


def put_on(name: str, model: FluxTransformer2DModel, scheduler, steps: int) -> None:
    """Enables the library called `name` such that it measures everything and never skips.

    `skip` is the exception: it skips whatever it may, with the forecast of `adaptive`.
    """
    if name == "adaptive":
        diffcache.wrap(model, scheduler=scheduler, tolerance=0.0)
    elif name == "stack":
        diffcache.wrap(model, scheduler=scheduler, tolerance=0.0, site=BlockStack())
    elif name == "fbcache":
        diffcache.wrap(model, "fbcache", scheduler=scheduler, threshold=0.0)
    elif name == "skip":
        diffcache.wrap(
            model, "interval", scheduler=scheduler, every=10**6, protect=(3, 1), force=True
        )
    elif name == "diffusers":
        from diffusers import FirstBlockCacheConfig

        model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    elif name == "cache-dit":
        import cache_dit

        cache_dit.enable_cache(
            model,
            cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=1,
                Bn_compute_blocks=0,
                residual_diff_threshold=0.0,
                num_inference_steps=steps,
            ),
        )


def take_off(name: str, model: FluxTransformer2DModel) -> None:
    """Leaves the plain model."""
    if name == "diffusers":
        model.disable_cache()
    elif name == "cache-dit":
        import cache_dit

        cache_dit.disable_cache(model)
    else:
        diffcache.unwrap(model)


@torch.no_grad()
def generation(model, scheduler, steps: int, call: dict) -> tuple[float, float]:
    """Runs one loop; median seconds of its calls and of its steps."""
    x = call["hidden_states"]
    calls, stepping = [], []
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        call["hidden_states"], call["timestep"] = x, (t / 1000).expand(1)
        began = time.perf_counter()
        velocity = model(**call, return_dict=False)[0]
        called = time.perf_counter()
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
        stepping.append(time.perf_counter() - called)
        calls.append(called - began)
    return median(calls), median(stepping)


def main() -> None:
    """Serves until stdin closes."""
    torch.set_num_threads(1)
    library, size = sys.argv[1:]
    steps = SIZES[size][-1]
    model, scheduler = build(size), FlowMatchEulerDiscreteScheduler()
    call = arguments()
    print("ready", flush=True)
    for _ in sys.stdin:
        turns = []
        for _ in range(TURNS[size]):
            # Without, with, with, without: what drifts in the meantime then does so for both.
            plain = [generation(model, scheduler, steps, dict(call))]
            put_on(library, model, scheduler, steps)
            # diffusers' cache has no state outside of a context that the pipeline would open.
            with model.cache_context("cond") if library == "diffusers" else nullcontext():
                cached = [generation(model, scheduler, steps, dict(call)) for _ in range(2)]
            take_off(library, model)
            plain.append(generation(model, scheduler, steps, dict(call)))
            pairs = {"plain": plain, "with": cached}
            turns.append({n: [*map(fmean, zip(*p, strict=True))] for n, p in pairs.items()})
        print(json.dumps(turns), flush=True)


if __name__ == "__main__":
    main()
