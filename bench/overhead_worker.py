"""One library on one small Flux transformer; a line on stdin runs a generation.

Answers each line with JSON: the median seconds of a denoiser call and of a scheduler step.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

import diffcache

STEPS = 40


def build() -> FluxTransformer2DModel:
    """A FluxTransformer2DModel of 2 dual-stream and 2 single-stream blocks, random weights."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=False,
    ).eval()


def put_on(name: str, model: FluxTransformer2DModel, scheduler) -> None:
    """Enables the library called `name` such that it measures everything and never skips."""
    if name == "adaptive":
        diffcache.wrap(model, scheduler=scheduler, tolerance=0.0)
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
                num_inference_steps=STEPS,
            ),
        )


@torch.no_grad()
def generation(model, scheduler, call: dict) -> dict[str, float]:
    """Runs one loop; median seconds of its calls and of its steps."""
    x = call["hidden_states"]
    calls, steps = [], []
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        call["hidden_states"], call["timestep"] = x, (t / 1000).expand(1)
        began = time.perf_counter()
        velocity = model(**call, return_dict=False)[0]
        called = time.perf_counter()
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
        steps.append(time.perf_counter() - called)
        calls.append(called - began)
    return {"call": median(calls), "step": median(steps)}


def main() -> None:
    """Serves until stdin closes."""
    torch.set_num_threads(1)
    model, scheduler = build(), FlowMatchEulerDiscreteScheduler()
    put_on(sys.argv[1], model, scheduler)
    start = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(1))
    conditioning = {
        "encoder_hidden_states": torch.randn(1, 24, 32),
        "pooled_projections": torch.randn(1, 32),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(24, 3),
    }
    # diffusers' cache has no state outside of a context that the pipeline would open.
    context = model.cache_context("cond") if sys.argv[1] == "diffusers" else None
    if context is not None:
        context.__enter__()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(generation(model, scheduler, {"hidden_states": start, **conditioning})))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
