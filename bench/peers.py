"""Each library put on a pipeline through its own public API."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import Any

import cells
import torch
from candidates import Candidate
from cells import Cell

import diffcache
from diffcache import sites, tiny
from diffcache.methods import find

CALIBRATION = [
    {"prompt": text, "seed": seed} for seed, text in enumerate(tiny.prompts[:4], start=1)
]
"""None of these is among the prompts of `tiny/prompts.json`."""

CALIBRATOR = " + TaylorSeer"


@contextmanager
def installed(pipe: Any, cell: Cell, candidate: Candidate) -> Iterator[None]:
    """A candidate's method on `pipe` for the length of a `with` block.

    Raises:
        Exception: whatever the library refuses the pipeline or the setting with.
    """
    library = LIBRARIES[candidate.library]
    with library(pipe, cell, candidate):
        yield


@contextmanager
def _plain(pipe: Any, cell: Cell, candidate: Candidate) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=candidate.autocast):
        yield


@contextmanager
def _diffcache(pipe: Any, cell: Cell, candidate: Candidate) -> Iterator[None]:
    options = dict(candidate.options)
    if find(candidate.method).policy.measured is not None:
        options["calibration"] = _calibration(cell, candidate.method)
    if candidate.site is not None:
        options["site"] = getattr(sites, candidate.site)()
    with diffcache.wrapped(pipe, candidate.method, **options):
        yield


@cache
def _calibration(cell: Cell, method: str) -> Any:
    settings = cells.arguments(cell, CALIBRATION[:1], cell.steps)
    entries = [
        {name: cells.arguments(cell, [pair], cell.steps)[name] for name in ("prompt", "generator")}
        for pair in CALIBRATION
    ]
    shared = {n: value for n, value in settings.items() if n not in ("prompt", "generator")}
    return diffcache.calibrate(cells.load(cell), entries, method, **shared)


@contextmanager
def _cache_dit(pipe: Any, cell: Cell, candidate: Candidate) -> Iterator[None]:
    import cache_dit

    forecast = candidate.method.endswith(CALIBRATOR)
    cache_dit.enable_cache(
        pipe,
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=candidate.options["threshold"],
            max_warmup_steps=candidate.options["warmup"],
            num_inference_steps=candidate.steps,
            # It tells the branches of guidance by the parity of calls, if it is told to.
            enable_separate_cfg=cell.scale > 1,
        ),
        calibrator_config=cache_dit.TaylorSeerCalibratorConfig() if forecast else None,
    )
    try:
        yield
    finally:
        # It patches the pipeline's class, and what is left there would meet the next pipeline.
        cache_dit.disable_cache(pipe)


@contextmanager
def _diffusers(pipe: Any, cell: Cell, candidate: Candidate) -> Iterator[None]:
    pipe.transformer.enable_cache(_config(pipe, cell, candidate))
    yield


def _config(pipe: Any, cell: Cell, candidate: Candidate) -> Any:
    import diffusers

    options, method = dict(candidate.options), candidate.method
    if method == "FirstBlockCache":
        return diffusers.FirstBlockCacheConfig(**options)
    if method == "MagCache":
        return diffusers.MagCacheConfig(
            mag_ratios=_ratios(cell), num_inference_steps=candidate.steps, **options
        )
    if method == "TaylorSeer":
        # Its factors are kept in bf16 by default, which costs it fidelity.
        return diffusers.TaylorSeerCacheConfig(
            use_lite_mode=True, taylor_factors_dtype=torch.float32, **options
        )
    options["current_timestep_callback"] = lambda: pipe.current_timestep
    if method == "FasterCache":
        return diffusers.FasterCacheConfig(is_guidance_distilled=True, **options)
    return diffusers.PyramidAttentionBroadcastConfig(**options)


@cache
def _ratios(cell: Cell) -> tuple[float, ...]:
    """What diffusers' MagCache prints after a run that calibrates it."""
    from diffusers import MagCacheConfig

    pipe = cells.load(cell)
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=cell.steps))
    said = io.StringIO()
    with redirect_stdout(said):
        pipe(**cells.arguments(cell, CALIBRATION, cell.steps))
    line = next(line for line in said.getvalue().splitlines() if line.startswith("[1"))
    return tuple(ast.literal_eval(line))


@contextmanager
def _deepcache(pipe: Any, cell: Cell, candidate: Candidate) -> Iterator[None]:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(**candidate.options, cache_branch_id=0)
    helper.enable()
    yield


LIBRARIES: dict[str, Callable] = {
    "plain": _plain,
    "diffcache": _diffcache,
    "cache-dit": _cache_dit,
    "diffusers": _diffusers,
    "DeepCache": _deepcache,
}
