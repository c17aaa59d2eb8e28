"""How much of the ideal speed-up the clock shows, when half the steps are computed.

The ideal is measured in the same run, and with the same rounds: the plain pipeline, in which the
modules that a site bypasses give what they last gave, at once, at the steps that are skipped.
Weights are random; what is skipped does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import inf
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
ROUNDS = (5, 5)
GPU_ROUNDS = (2, 7)
"""The fewest and the most rounds; between the two, as many as `GPU_SECONDS` have room for."""
GPU_SECONDS = 40.0
SHORT = 4
"""Steps of the generations that warm up."""

Cell = tuple[str, str]
"""Site and library; the plain pipeline's site is empty."""
Install = Callable[[Model], AbstractContextManager]


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


def variants(model: Model, sites: Sequence[str]) -> dict[Cell, Install]:
    """Plain, and for each site the ideal, diffcache and the rivals that do the like."""
    found: dict[Cell, Install] = {("", "plain"): lambda _: nullcontext()}
    for site in sites:
        found[site, "ideal"] = lambda model, site=site: ideal(model, site)
        found[site, "diffcache"] = lambda model, site=site: put_on(model, site)
        for name, (where, install) in RIVALS.items():
            if where == site and (name == "DeepCache package") == is_unet(model.denoiser):
                found[site, name] = install
    return found


class Race:
    """Generations under each of `variants`, which take turns.

    Attributes:
        seconds: of each variant, a number a round.
        refused: why rivals dropped out.
    """

    def __init__(self, model: Model, variants: dict[Cell, Install]) -> None:
        self.model = model
        self.variants = variants
        self.refused: dict[Cell, str] = {}
        for cell in list(variants):
            self._try(cell, model.of(SHORT))
        self.seconds: dict[Cell, list[float]] = {cell: [] for cell in self.variants}

    def _try(self, cell: Cell, model: Model) -> float | None:
        """Seconds of a generation; None where it is a rival that fails, which is then left out."""
        try:
            with self.variants[cell](model):
                return timing.seconds(model.run)
        except Exception as error:
            if cell[1] not in RIVALS:
                raise
            self.refused[cell] = record.said(error)
            del self.variants[cell]
            return None

    def run(self, least: int, most: int, seconds: float = inf) -> None:
        """At least `least` rounds, and up to `most` where `seconds` have room for them."""
        began = time.perf_counter()
        for number in range(1, most + 1):
            taken = {cell: self._try(cell, self.model) for cell in list(self.variants)}
            for cell, found in taken.items():
                self.seconds[cell].append(found)
            spent = time.perf_counter() - began
            if number >= least and spent * (number + 1) / number > seconds:
                return

    def rows(self) -> list[dict[str, Any]]:
        """A row for each variant but the plain and the ideal pipeline, of whole rounds."""
        model, each = self.model, self.seconds
        rounds = min(map(len, each.values()))
        about = {"model": model.name, "steps": model.steps}
        rows = [
            about | {"site": s, "library": n, "refused": w} for (s, n), w in self.refused.items()
        ]
        for site, name in self.variants if rounds else ():
            if name in ("plain", "ideal"):
                continue
            plain, best, own = (each[c] for c in (("", "plain"), (site, "ideal"), (site, name)))
            speedups = [a / b for a, b in zip(plain, own, strict=False)]
            realised = [a / b for a, b in zip(best, own, strict=False)]
            rows.append(
                {
                    "model": model.name,
                    "parameters": model.parameters,
                    "dtype": str(model.denoiser.dtype).removeprefix("torch."),
                    "site": site,
                    "library": name,
                    "steps": model.steps,
                    "rounds": rounds,
                    **timing.quantiles("plain_s", plain),
                    **timing.quantiles("ideal_s", best),
                    **timing.quantiles("seconds", own),
                    **timing.quantiles("speedup", speedups),
                    **timing.quantiles("realised", realised),
                }
            )
        return rows


def compare(
    model: Model, sites: Sequence[str], rounds: tuple[int, int], seconds: float = inf
) -> dict[str, float]:
    """Measures and records diffcache on `sites` and its rivals; what diffcache realised, by site.

    Whole rounds are recorded also where a later one is interrupted.
    """
    race = Race(model, variants(model, sites))
    try:
        race.run(*rounds, seconds)
    finally:
        record.append("speedup", race.rows())
    ours = {row["site"]: row for row in race.rows() if row["library"] == "diffcache"}
    return {site: row["realised_p50"] for site, row in ours.items()}


@pytest.fixture(scope="module")
def small_enough(request) -> Model:
    return models.build(request.param)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measured at real sizes on this machine")
@pytest.mark.parametrize(("small_enough", "site"), CPU_CASES, indirect=["small_enough"])
def test_on_cpu(benchmark, small_enough, site):
    model = small_enough
    assert model.parameters >= 100e6
    realised = compare(model, [site], ROUNDS)
    with put_on(model, site):
        benchmark.pedantic(model.run, rounds=1)
    assert realised[site] >= CPU_LEAST


@pytest.mark.gpu
@pytest.mark.parametrize("name", models.REAL)
def test_at_real_size(name):
    model = models.build(name, "cuda", torch.bfloat16)
    sites = ["output", "UNet branch" if is_unet(model.denoiser) else "block stack"]
    realised = compare(model, sites, GPU_ROUNDS, GPU_SECONDS)
    assert {site: realised[site] for site in sites if realised[site] < GPU_LEAST[site]} == {}
    # Numbers that overflow would leave a method that measures nothing to go by.
    assert model.of(SHORT).run().isfinite().all()
