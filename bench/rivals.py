"""Other libraries put on a pipeline through their own API, computing every other step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from models import Model, half


@contextmanager
def _cache_dit(model: Model) -> Iterator[None]:
    import cache_dit

    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        # Far above any change, so that the mask alone decides.
        residual_diff_threshold=1e9,
        max_warmup_steps=1,
        num_inference_steps=model.steps,
        steps_computation_mask=[int(compute) for compute in half(model.steps)],
        steps_computation_policy="static",
    )
    modules = list(model.denoiser.modules())
    before = [set(vars(module)) for module in modules]
    cache_dit.enable_cache(model.pipe, cache_config=config)
    try:
        yield
    finally:
        # It patches the pipeline's class, and what is left there would meet the next pipeline.
        cache_dit.disable_cache(model.pipe)
        # Copies of forwards that it leaves behind would be timed as the plain pipeline's.
        for module, known in zip(modules, before, strict=True):
            for name in set(vars(module)) - known:
                vars(module).pop(name)


@contextmanager
def _diffusers(model: Model, config: object) -> Iterator[None]:
    model.denoiser.enable_cache(config)
    try:
        yield
    finally:
        model.denoiser.disable_cache()


def _magcache(model: Model):
    from diffusers import MagCacheConfig

    return _diffusers(
        model,
        MagCacheConfig(
            mag_ratios=[1.0] * model.steps,
            num_inference_steps=model.steps,
            threshold=1e9,
            max_skip_steps=1,
            retention_ratio=0.0,
        ),
    )


def _taylorseer(model: Model):
    from diffusers import TaylorSeerCacheConfig

    return _diffusers(
        model,
        TaylorSeerCacheConfig(
            cache_interval=2,
            disable_cache_before_step=1,
            use_lite_mode=True,
            taylor_factors_dtype=torch.float32,
        ),
    )


@contextmanager
def _deepcache(model: Model) -> Iterator[None]:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=model.pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


RIVALS: dict[str, tuple[str, Callable]] = {
    "cache-dit DBCache": ("block stack", _cache_dit),
    "diffusers MagCache": ("block stack", _magcache),
    "diffusers TaylorSeer lite": ("output", _taylorseer),
    "DeepCache package": ("UNet branch", _deepcache),
}
"""By name, the site of ours that does the like, and what enables it.

diffusers' FirstBlockCache is not among them: nothing but its threshold decides, which no setting
makes compute every other step.
"""
