"""Everything that is measured in a cell, as data: methods, peers, fewer steps, the noise floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from cells import Cell

import diffcache

FULL, FEWER, FLOOR = "full", "fewer steps", "noise floor"
BATCH = 16
SHARES = (0.2, 0.25, 0.35, 0.5, 0.65, 0.8)
"""Of the full run's steps, for fewer steps."""

MANY_STEPS = 250
"""What stands for 1000 steps in the noise floor: DDIM at a quarter of the cost."""


@dataclass(frozen=True)
class Candidate:
    """A way to generate.

    Args:
        family: what the tables call it.
        setting: what tells it from others of its family.
        steps: steps that the pipeline is asked for.
        library: whose process runs it: "plain", "diffcache" or a peer.
        method: a name that the library knows.
        options: of that method.
        site: a class of `diffcache.sites` in place of the method's own.
        scheduler: one of `cells.SCHEDULERS` in place of the cell's.
        batch: pictures a call. Rules that decide for a whole batch get one: their own results are
            for single prompts.
        autocast: computes in bf16 with weights in fp32.
        dtype: one of `cells.DTYPES` in place of the cell's.
    """

    family: str
    setting: float | str
    steps: int
    library: str = "plain"
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    site: str | None = None
    scheduler: str | None = None
    batch: int = BATCH
    autocast: bool = False
    dtype: str | None = None


def _grid(**axes: tuple) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


METHODS: dict[str, list[dict[str, Any]]] = {
    "adaptive": _grid(tolerance=(0.007, 0.015, 0.03, 0.06, 0.12, 0.24, 0.48, 0.96, 1.92, 3.84))
    + _grid(compute=(0.25, 0.35, 0.5, 0.65)),
    "abcache": _grid(every=(2, 3, 4, 5)),
    "adaptivediffusion": _grid(threshold=(0.003, 0.01, 0.03, 0.1)),
    "dbcache": _grid(threshold=(0.04, 0.08, 0.16, 0.32), head=(1,), protect=((8, 0), (3, 0))),
    "deepcache": _grid(every=(2, 3, 5)),
    "easycache": [
        *_grid(threshold=(0.05, 0.1)),
        *_grid(threshold=(0.05, 0.1, 0.2, 0.4), protect=((3, 1),)),
    ],
    "fbcache": _grid(threshold=(0.02, 0.05, 0.1, 0.2, 0.4)),
    "fora": _grid(every=(2, 3, 5)),
    "hicache": _grid(every=(2, 3, 4, 5)),
    "interval": _grid(every=(2, 3, 4)) + _grid(every=(2, 3, 4), order=(2,)),
    "magcache": _grid(threshold=(0.03, 0.06, 0.12)) + _grid(threshold=(0.12, 0.24), max_skips=(5,)),
    "speca": _grid(base=(0.5, 1.0, 2.0, 4.0, 7.0)),
    "spectrum": _grid(growth=(0.0, 0.25, 0.75, 3.0)),
    "taylorseer": _grid(every=(2, 3, 4, 5), order=(1, 2)),
    "teacache": _grid(threshold=(0.05, 0.1, 0.25, 0.4, 0.8)),
    "third_order": _grid(threshold=(0.003, 0.01, 0.03, 0.1)),
}
"""Settings of diffcache's methods; one that is not named here runs at its defaults."""

SITES = {"unet": ("UNet branch", "UNetBranch"), "dit": ("block stack", "BlockStack")}
"""Where else than on whole outputs the default method is measured, at the tolerances here."""

_ELSEWHERE = _grid(tolerance=(0.015, 0.03, 0.06, 0.12, 0.24, 0.48))

PLAYBACK = ("mask",)
"""Methods that decide nothing of their own."""

_DBCACHE = _grid(threshold=(0.04, 0.08, 0.16, 0.32), warmup=(8, 3))
PEERS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "cache-dit": {"DBCache": _DBCACHE, "DBCache + TaylorSeer": _DBCACHE},
    "diffusers": {
        "FirstBlockCache": _grid(threshold=(0.02, 0.05, 0.1, 0.2, 0.4)),
        "MagCache": _grid(threshold=(0.03, 0.06, 0.12), max_skip_steps=(3,))
        + _grid(threshold=(0.12, 0.24), max_skip_steps=(5,)),
        "TaylorSeer": _grid(cache_interval=(2, 3, 4, 5), max_order=(1, 2)),
        "FasterCache": _grid(spatial_attention_block_skip_range=(2, 4)),
        "PAB": _grid(spatial_attention_block_skip_range=(2, 4)),
    },
    "DeepCache": {"package": _grid(cache_interval=(2, 3, 5))},
}
"""Settings of peers by library and method, under the names of their own options."""

DENOISERS = {"cache-dit": ("dit",), "diffusers": ("dit",), "DeepCache": ("unet",)}
BATCH_WIDE = {"adaptivediffusion", "DBCache", "DBCache + TaylorSeer", "FirstBlockCache"}
"""Methods with one decision for all samples of a batch."""


def label(options: Mapping[str, Any]) -> float | str:
    """A setting's name: the one value of a method's own knob, or names and values."""
    if len(options) == 1 and "compute" not in options:
        (value,) = options.values()
        if isinstance(value, (int, float)):
            return value
    return " ".join(f"{name}={value}" for name, value in options.items()) or "default"


def _fewer(cell: Cell) -> Iterator[Candidate]:
    numbers = sorted({max(2, round(cell.steps * share)) for share in SHARES})
    others = {"dpm": "DPM++ 2M", "unipc": "UniPC"} if cell.pipeline == "unet" else {}
    for n in numbers:
        yield Candidate(FEWER, n, n)
        for scheduler, name in others.items():
            if scheduler != cell.scheduler:
                yield Candidate(f"{FEWER}, {name}", n, n, scheduler=scheduler)


def _floor(cell: Cell) -> Iterator[Candidate]:
    yield Candidate(FLOOR, "batch of 1", cell.steps, batch=1)
    if cell.dtype == "fp32":
        yield Candidate(FLOOR, "bf16", cell.steps, autocast=True)
    else:
        yield Candidate(FLOOR, "fp32", cell.steps, dtype="fp32")
    if cell.scheduler in ("ddim", "flow"):
        yield Candidate(FLOOR, f"{MANY_STEPS} steps", MANY_STEPS)


def _methods(cell: Cell) -> Iterator[Candidate]:
    for name in diffcache.methods():
        if name not in PLAYBACK:
            for options in METHODS.get(name, [{}]):
                yield Candidate(
                    name,
                    label(options),
                    cell.steps,
                    library="diffcache",
                    method=name,
                    options=options,
                    batch=1 if name in BATCH_WIDE else BATCH,
                )


def _elsewhere(cell: Cell) -> Iterator[Candidate]:
    name, site = SITES[cell.pipeline]
    for options in _ELSEWHERE:
        yield Candidate(
            f"adaptive, {name}",
            label(options),
            cell.steps,
            library="diffcache",
            method="adaptive",
            options=options,
            site=site,
        )


def _peers(cell: Cell) -> Iterator[Candidate]:
    for library, methods in PEERS.items():
        if cell.pipeline not in DENOISERS[library]:
            continue
        for name, settings in methods.items():
            for options in settings:
                yield Candidate(
                    f"{library} {name}",
                    label(options),
                    cell.steps,
                    library=library,
                    method=name,
                    options=options,
                    batch=1 if name in BATCH_WIDE else BATCH,
                )


def candidates(cell: Cell) -> list[Candidate]:
    """Everything that is measured in a cell, the full run first."""
    return [
        Candidate(FULL, cell.steps, cell.steps),
        *_floor(cell),
        *_fewer(cell),
        *_methods(cell),
        *_elsewhere(cell),
        *_peers(cell),
    ]
