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

    # Its own patterns are for `transformer_blocks` and match no module of Wan.
    attention = None if hasattr(model, "transformer_blocks") else [r"blocks\.\d+\.attn[12]"]
    model.enable_cache(
        TaylorSeerCacheConfig(cache_interval=4, max_order=1, cache_identifiers=attention)
    )
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


PEERS_MODULES = "diffusers TaylorSeer, modules"
PEERS: dict[str, Callable] = {
    PEERS_MODULES: _modules_of_diffusers,
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

    def reading(name: str) -> Callable[[Tensor], Any]:
        plain = getattr(Tensor, name)

        def read(self: Tensor) -> Any:
            return plain(torch.ones(self.shape, dtype=self.dtype) if self.is_meta else self)

        return read

    for name in ("cpu", "item", "tolist"):
        monkeypatch.setattr(Tensor, name, reading(name))


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
        return {"refused": record.said(error)}
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
    assert all(by_method["adaptive"] < by_method[peer] for peer in PEERS)


OURS = ("adaptive", "fbcache", "taylorseer", "fora")


def on_device(model: models.Model) -> dict[str, Callable[[], Any]]:
    """What is put on a pipeline to measure its peak, by method."""
    ours = {
        name: lambda name=name: diffcache.wrapped(model.pipe, name, few_steps=0) for name in OURS
    }
    rivals_ = {
        name: lambda install=rivals.RIVALS[name][1]: install(model)
        for name in ("cache-dit DBCache", "diffusers TaylorSeer lite")
    }
    modules = {PEERS_MODULES: lambda: _modules_of_diffusers(model.denoiser, None)}
    return {"plain": nullcontext, **ours, **rivals_, **modules}


def peaks(model: models.Model) -> dict[str, float | None]:
    """Measures and records, one by one, the peaks of a pipeline in MiB; None of what fails."""
    found = {}
    for method, install in on_device(model).items():
        row: dict[str, Any] = {"model": model.name, "method": method, "how": "cuda"}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            with install():
                model.run()
                row["peak_mib"] = round(torch.cuda.max_memory_allocated() / MIB, 1)
                if method in OURS:
                    row["cache_mib"] = round(diffcache.report(model.pipe).cache_bytes / MIB, 2)
        except Exception as error:
            row["refused"] = record.said(error)
        record.append("memory", [row])
        found[method] = row.get("peak_mib")
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("name", DEPTHS)
def test_peak_on_the_device(name):
    found = peaks(models.build(name, "cuda", torch.bfloat16, num_inference_steps=8))
    assert None not in (found["plain"], *map(found.get, OURS))
    assert found["adaptive"] <= found["plain"] + 64
