"""What each method keeps, at the sizes of Flux.1-dev and Wan 2.1 1.3B, in bf16.

Without a GPU the denoisers are on the meta device, which has shapes but no values, and have few
blocks: what a cache keeps is linear in them, so that two depths give that of the published one.
Evidence that would be read counts as one, by which every rule computes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import models
import pytest
import record
import rivals
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import diffcache
from diffcache.methods import find, registry

DEPTHS = {
    "flux-1-dev": (19, lambda n: {"num_layers": n, "num_single_layers": 2 * n}),
    "wan-2.1-1.3b": (30, lambda n: {"num_layers": n}),
}
"""How deep the published model is, and the options of one that is `n` deep."""

TRIED = (2, 3)
TIMETABLE = 30
STEPS = 7
MIB = 2**20


def _inputs(name: str) -> list[dict[str, Any]]:
    """Arguments of the calls of a step but for sample and timestep, one a guidance branch."""

    def make(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=torch.bfloat16)

    if name.startswith("wan"):
        return [{"encoder_hidden_states": make(1, 512, 4096)} for _ in range(2)]
    return [
        {
            "encoder_hidden_states": make(1, 512, 4096),
            "pooled_projections": make(1, 768),
            "img_ids": make(4096, 3),
            "txt_ids": make(512, 3),
            "guidance": make(1),
        }
    ]


SAMPLES = {"flux-1-dev": (1, 4096, 64), "wan-2.1-1.3b": (1, 16, 21, 60, 104)}
"""1024 × 1024 pixels, and 81 frames of 480 × 832."""


@contextmanager
def _ours(model: nn.Module, scheduler: Any, method: str) -> Iterator[None]:
    diffcache.wrap(model, method, scheduler=scheduler)
    try:
        yield
    finally:
        diffcache.unwrap(model)


@contextmanager
def _modules_of_diffusers(model: nn.Module, scheduler: Any) -> Iterator[None]:
    from diffusers import TaylorSeerCacheConfig

    model.enable_cache(TaylorSeerCacheConfig(cache_interval=4, max_order=1))
    try:
        yield
    finally:
        model.disable_cache()


@contextmanager
def _cache_dit(model: nn.Module, scheduler: Any) -> Iterator[None]:
    import cache_dit

    mask = [int(step % 4 == 0 or step < 3) for step in range(TIMETABLE)]
    cache_dit.enable_cache(
        model,
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            num_inference_steps=TIMETABLE,
            steps_computation_mask=mask,
            steps_computation_policy="static",
        ),
        calibrator_config=cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1),
    )
    try:
        yield
    finally:
        cache_dit.disable_cache(model)


PEERS: dict[str, Callable] = {
    "diffusers TaylorSeer, modules": _modules_of_diffusers,
    "cache-dit DBCache + TaylorSeer": _cache_dit,
}


def alive() -> int:
    """Bytes of all meta tensors, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and thing.device.type == "meta":
            storage = thing.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


@torch.no_grad()
def held(name: str, model: nn.Module, install: Callable[[nn.Module, Any], Any]) -> int:
    """Bytes alive after `STEPS` steps of a loop over `model`, with what `install` puts on it."""
    scheduler, branches = FlowMatchEulerDiscreteScheduler(), _inputs(name)
    x = torch.empty(SAMPLES[name], device="meta", dtype=torch.bfloat16)
    with install(model, scheduler):
        scheduler.set_timesteps(TIMETABLE)
        for t in scheduler.timesteps[:STEPS]:
            for number, branch in enumerate(branches):
                # diffusers' caches have no state outside of a context, one a guidance branch.
                with model.cache_context(str(number)):
                    time = torch.empty(1, device="meta")
                    out = model(hidden_states=x, timestep=time, **branch, return_dict=False)[0]
            x = scheduler.step(out, t, x, return_dict=False)[0]
        del out
        return alive()


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets values be read from the meta device: all of them are one."""
    plain = Tensor.cpu

    def cpu(self: Tensor) -> Tensor:
        return torch.ones(self.shape, dtype=self.dtype) if self.is_meta else plain(self)

    monkeypatch.setattr(Tensor, "cpu", cpu)


def candidates(model: nn.Module) -> dict[str, Callable[[nn.Module, Any], Any]]:
    """The methods that fit `model` without a calibration, and the peers."""
    found: dict[str, Callable[[nn.Module, Any], Any]] = {}
    for name in registry():
        method = find(name)
        try:
            method.site.check(model)
        except ValueError:
            continue
        if not method.policy.measured_is_needed and name != "mask":
            found[name] = lambda model, scheduler, name=name: _ours(model, scheduler, name)
    return found | PEERS


def measured(name: str, tried: list[nn.Module], plain: list[int], install: Callable) -> dict:
    """What a method keeps at the published depth, or why that is not known.

    Args:
        name: the published model.
        tried: models of its kind, as deep as `TRIED`.
        plain: what is alive after a loop over each of them without a cache.
        install: puts the method on a model.
    """
    try:
        kept = [held(name, m, install) - base for m, base in zip(tried, plain, strict=True)]
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    a_layer = (kept[1] - kept[0]) / (TRIED[1] - TRIED[0])
    total = kept[0] + a_layer * (DEPTHS[name][0] - TRIED[0])
    return {"cache_mib": round(total / MIB, 2)}


@pytest.mark.parametrize("name", DEPTHS)
def test_what_is_kept(name, readable):
    tried = [models.denoiser(name, "meta", torch.bfloat16, **DEPTHS[name][1](n)) for n in TRIED]
    plain = [held(name, model, lambda model, scheduler: nullcontext()) for model in tried]
    rows = [
        {"model": name, "method": method, "how": "meta", **measured(name, tried, plain, install)}
        for method, install in candidates(tried[0]).items()
    ]
    record.append("memory", rows)
    by_method = {row["method"]: row.get("cache_mib") for row in rows}
    assert by_method["adaptive"] < by_method["fbcache"] < by_method["fora"]
    # diffusers' TaylorSeer finds no module of Wan that it would cache.
    caching = [peer for peer in PEERS if by_method[peer]]
    assert caching and all(by_method["adaptive"] < by_method[peer] for peer in caching)


@pytest.mark.gpu
@pytest.mark.parametrize("name", DEPTHS)
def test_peak_on_the_device(name):
    model = models.build(name, "cuda", torch.bfloat16, num_inference_steps=8)
    installs = {
        "plain": lambda: nullcontext(),
        **{
            method: lambda method=method: diffcache.wrapped(model.pipe, method, few_steps=0)
            for method in ("adaptive", "fbcache", "taylorseer", "fora")
        },
        "cache-dit DBCache": lambda: rivals.RIVALS["cache-dit DBCache"][1](model),
        "diffusers TaylorSeer lite": lambda: rivals.RIVALS["diffusers TaylorSeer lite"][1](model),
        "diffusers TaylorSeer, modules": lambda: _modules_of_diffusers(model.denoiser, None),
    }
    rows = []
    for method, install in installs.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        row = {"model": name, "method": method, "how": "cuda"}
        try:
            with install():
                model.run()
                peak = torch.cuda.max_memory_allocated()
                ours = method in diffcache.methods()
                bytes_ = diffcache.report(model.pipe).cache_bytes if ours else None
        except Exception as error:
            if method in ("plain", *diffcache.methods()):
                raise
            rows.append(row | {"refused": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
            continue
        row["peak_mib"] = round(peak / MIB, 1)
        rows.append(row | ({"cache_mib": round(bytes_ / MIB, 2)} if ours else {}))
    record.append("memory", rows)
    peaks = {row["method"]: row.get("peak_mib") for row in rows}
    assert peaks["adaptive"] <= peaks["plain"] + 64
