"""How much of the ideal speed-up the clock shows, when half the steps are computed.

The ideal is measured in the same run, and with the same rounds: the plain pipeline, in which the
modules that a site bypasses give what they last gave, at once, at the steps that are skipped.
Weights are random; what is skipped does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import models
import pytest
import record
import timing
import torch
from models import Model, half
from rivals import RIVALS
from torch import nn

import diffcache
from diffcache import Method
from diffcache.predictors import Reuse
from diffcache.sites import BlockStack, Output, UNetBranch
from diffcache.sites.discovery import block_lists, is_unet
from diffcache.sites.unet_levels import below

SITES = {"output": Output(), "block stack": BlockStack(head=1), "UNet branch": UNetBranch()}
CPU_CASES = [
    (name, site)
    for name in models.CPU
    for site in ("output", "UNet branch" if name.startswith("unet") else "block stack")
]
CPU_LEAST = 0.95
GPU_LEAST = {"output": 0.97, "block stack": 0.93, "UNet branch": 0.93}
ROUNDS = 3
GPU_ROUNDS = 2


def bypassed(denoiser: nn.Module, site: str) -> list[nn.Module]:
    """The modules that a skip of `site` does not run."""
    if site == "output":
        return [denoiser]
    if site == "UNet branch":
        return list(below(denoiser, SITES[site].depth, SITES[site].inner).modules)
    blocks = [block for _, listed in block_lists(denoiser) for block in listed]
    return blocks[SITES[site].head :]


@contextmanager
def ideal(model: Model, site: str) -> Iterator[None]:
    """Makes bypassed modules give what they last gave at the steps that `half` skips."""
    compute = half(model.steps)
    calls = 0
    per_step = calls_per_step(model)
    kept: dict[int, Any] = {}
    top = model.denoiser
    patched = bypassed(top, site)

    def counted(*args: Any) -> None:
        nonlocal calls
        calls += 1

    def replaying(module: nn.Module) -> Callable:
        plain = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            step, branch = divmod(calls - 1, per_step)
            key = (id(module), branch)
            if compute[step % model.steps]:
                kept[key] = plain(*args, **kwargs)
            return kept[key]

        return forward

    hook = top.register_forward_pre_hook(counted)
    for module in patched:
        module.forward = replaying(module)
    try:
        yield
    finally:
        hook.remove()
        for module in patched:
            del module.forward


def calls_per_step(model: Model) -> int:
    """Calls of the denoiser in a step: one a guidance branch where they are not batched."""
    return 2 if "wan" in model.name else 1


def put_on(model: Model, site: str) -> Any:
    """diffcache on `site` with the mask that computes half of the steps."""
    method = Method(site=SITES[site], predictor=Reuse())
    return diffcache.wrapped(model.pipe, method, mask=half(model.steps))


def measure(model: Model, variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list]:
    """Seconds of a generation under each of `variants`, which take turns."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, install in variants.items():
            with install():
                taken = timing.seconds(model.run)
            # The first of each warms up.
            if number:
                found[name].append(taken)
    return found


def judged(model: Model, site: str, found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each variant but the plain and the ideal pipeline."""
    rows = []
    for name, each in found.items():
        if name in ("plain", "ideal"):
            continue
        speedups = [a / b for a, b in zip(found["plain"], each, strict=True)]
        realised = [a / b for a, b in zip(found["ideal"], each, strict=True)]
        rows.append(
            {
                "model": model.name,
                "parameters": model.parameters,
                "dtype": str(model.denoiser.dtype).removeprefix("torch."),
                "site": site,
                "library": name,
                "steps": model.steps,
                **timing.quantiles("plain_s", found["plain"]),
                **timing.quantiles("ideal_s", found["ideal"]),
                **timing.quantiles("seconds", each),
                **timing.quantiles("speedup", speedups),
                **timing.quantiles("realised", realised),
            }
        )
    return rows


def compare(model: Model, site: str, rounds: int) -> list[dict[str, Any]]:
    """Measures diffcache on `site`, and the rivals that do the like, beside plain and ideal."""
    variants: dict[str, Callable[[], Any]] = {
        "plain": nullcontext,
        "ideal": lambda: ideal(model, site),
        "diffcache": lambda: put_on(model, site),
    }
    refused = []
    for name, (where, install) in RIVALS.items():
        if where != site or (name == "DeepCache package") != is_unet(model.denoiser):
            continue
        try:
            with install(model):
                model.run()
        except Exception as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            refused.append({"model": model.name, "site": site, "library": name, "refused": why})
        else:
            variants[name] = lambda install=install: install(model)
    return judged(model, site, measure(model, variants, rounds)) + refused


def _ours(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["library"] == "diffcache")


@pytest.fixture(scope="module", params=models.CPU)
def small_enough(request) -> Model:
    return models.build(request.param)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measured at real sizes on this machine")
def test_on_cpu(benchmark, small_enough):
    model = small_enough
    assert model.parameters >= 100e6
    sites = [site for name, site in CPU_CASES if name == model.name]
    rows = {site: compare(model, site, ROUNDS) for site in sites}
    record.append("speedup", [row for site in sites for row in rows[site]])
    with put_on(model, "output"):
        benchmark.pedantic(model.run, rounds=1)
    assert {
        site: _ours(rows[site])["realised_p50"] >= CPU_LEAST for site in sites
    } == dict.fromkeys(sites, True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", models.REAL)
def test_at_real_size(name):
    with torch.no_grad():
        model = models.build(name, "cuda", torch.bfloat16)
    sites = ["output", "UNet branch" if is_unet(model.denoiser) else "block stack"]
    rows = {site: compare(model, site, GPU_ROUNDS) for site in sites}
    record.append("speedup", [row for site in sites for row in rows[site]])
    short = {
        site: found
        for site in sites
        if (found := _ours(rows[site])["realised_p50"]) < GPU_LEAST[site]
    }
    assert short == {}
