"""Whether what is asked for is met: a share, a PSNR, one tolerance everywhere, a size of batches.

    python bench/targets.py                              # everything, on held-out prompts
    python bench/targets.py --part tune --cell unet-dpm-28
    python bench/targets.py --report                     # redo docs/targets.md from saved results

Evaluated on the first of the 64 held-out prompts of tiny/prompts.json; `tune` is given some of the
32 that follow, and chooses seeds as for a user. Results are appended to
bench/results/targets.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import cells
import numpy as np
import record
import targets_report
import torch
from cells import Cell, arguments, load

import diffcache
from diffcache import metrics

HERE = Path(__file__).parent
HELD_OUT = 64
BATCH = 16
ASKED = [Cell("unet", "ddim", 28), Cell("unet", "dpm", 28), Cell("dit", "flow", 28)]
"""Where targets are asked for."""

SAME = [
    Cell(pipeline, scheduler, steps)
    for steps in (20, 28, 50, 100)
    for pipeline, scheduler in (
        ("unet", "ddim"),
        ("unet", "dpm"),
        ("unet", "euler"),
        ("dit", "flow"),
    )
]
"""Where one tolerance is to give one fidelity."""

SHARES = (0.25, 0.35, 0.5, 0.65)
DECIBELS = (35.0, 40.0, 45.0)
TUNED_ON = (8, 16)
"""How many prompts `tune` is given."""

ROWS = (4, 2)
FREE = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Tolerances of the free decisions that `compute_rows` is compared with, at equal compute."""

PEERS = {"easycache": BATCH, "adaptivediffusion": 1, "teacache": BATCH, "fbcache": BATCH}
"""Threshold rules at their published defaults, with the pictures a call: the released code of
AdaptiveDiffusion takes one decision for a whole batch."""

DENOISERS = {"teacache": ("dit",), "fbcache": ("dit",)}
"""The pipelines of rules that need a stack of blocks."""

FINEST = 1.1
"""How near two tolerances come between which the cheapest setting lies."""


@dataclass(frozen=True)
class Played:
    """Some pictures by a method: `decibels` to the full run and `shares` computed, `[pictures]`.

    `sizes` are the numbers of pictures that steps computed.
    """

    decibels: np.ndarray
    shares: np.ndarray
    sizes: tuple[int, ...]

    def row(self) -> dict[str, Any]:
        """What is saved of it."""
        return {
            "prompts": len(self.decibels),
            "compute": round(float(self.shares.mean()), 4),
            "least": round(float(self.shares.min()), 4),
            "most": round(float(self.shares.max()), 4),
            "psnr": round(float(self.decibels.mean()), 2),
            "psnr_p5": round(float(np.percentile(self.decibels, 5)), 2),
        }


class Stand:
    """A cell's pipeline and its full run of some prompts."""

    def __init__(self, cell: Cell, pairs: list[dict]) -> None:
        self.cell, self.pairs = cell, pairs
        self.pipe = load(cell)

    def _pictures(self, pairs: list[dict]) -> np.ndarray:
        return self.pipe(**arguments(self.cell, pairs, self.cell.steps)).images

    @cached_property
    def reference(self) -> np.ndarray:
        """Pictures of the plain pipeline."""
        starts = range(0, len(self.pairs), BATCH)
        return np.concatenate([self._pictures(self.pairs[i : i + BATCH]) for i in starts])

    def play(self, method: str = "adaptive", batch: int = BATCH, **options: Any) -> Played:
        """All prompts by a method, `batch` of them a call."""
        reference, pictures, masks = self.reference, [], []
        with diffcache.wrapped(self.pipe, method, **options):
            for start in range(0, len(self.pairs), batch):
                pictures.append(self._pictures(self.pairs[start : start + batch]))
                masks.append(diffcache.report(self.pipe).mask)
        return Played(
            metrics.psnr(np.concatenate(pictures), reference),
            np.concatenate([mask.float().mean(0).numpy() for mask in masks]),
            tuple(sorted({int(n) for mask in masks for n in mask.sum(1)})),
        )


def shares(stand: Stand) -> Iterator[dict]:
    """How near `compute=` comes to what it was asked for."""
    for share in SHARES:
        yield {"asked": share, **stand.play(compute=share).row()}


class Ladder:
    """The cheapest tolerance with which enough of a stand's pictures reach a PSNR."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self._played: dict[float, Played] = {}

    def at(self, tolerance: float) -> Played:
        """All pictures with a tolerance."""
        if tolerance not in self._played:
            self._played[tolerance] = self.stand.play(tolerance=tolerance)
        return self._played[tolerance]

    def cheapest(self, psnr: float) -> float:
        """The largest tolerance that does, to a tenth."""
        good = bad = targets_report.DEFAULT
        while not self._meets(good, psnr):
            good, bad = good / 2, good
        while good == bad or self._meets(bad, psnr):
            good, bad = bad, bad * 2
        while bad > FINEST * good:
            middle = sqrt(good * bad)
            good, bad = (middle, bad) if self._meets(middle, psnr) else (good, middle)
        return good

    def _meets(self, tolerance: float, psnr: float) -> bool:
        return met(self.at(tolerance), psnr) >= targets_report.SURE


def met(played: Played, psnr: float) -> float:
    """The share of the pictures that reach a PSNR."""
    return float(np.mean(played.decibels >= psnr))


def tuned(stand: Stand, others: list[dict]) -> Iterator[dict]:
    """What `tune` finds on `others`, against the cheapest setting on the stand's own prompts."""
    ladder, cell = Ladder(stand), stand.cell
    for psnr in DECIBELS:
        tolerance = ladder.cheapest(psnr)
        best = ladder.at(tolerance)
        for count in TUNED_ON:
            call = arguments(cell, others[:count], cell.steps)
            for name in ("prompt", "generator", "output_type"):
                del call[name]
            found = diffcache.tune(
                stand.pipe,
                [pair["prompt"] for pair in others[:count]],
                psnr=psnr,
                batch_size=BATCH,
                **call,
            )
            played = ladder.at(found.options["tolerance"])
            yield {
                "asked": psnr,
                "tuned_on": count,
                "tuned_pictures": found.searched.pictures + found.confirmed.pictures,
                "tolerance": round(found.options["tolerance"], 4),
                "met": round(met(played, psnr), 4),
                **played.row(),
                "cheapest": round(tolerance, 4),
                "cheapest_compute": best.row()["compute"],
                "cheapest_met": round(met(best, psnr), 4),
            }


def same(stand: Stand, few: int, peers: dict[str, int]) -> Iterator[dict]:
    """One tolerance, and what peers' thresholds give on `few` of the prompts."""
    yield {"method": "adaptive", **stand.play().row()}
    for method, batch in peers.items():
        if stand.cell.pipeline in DENOISERS.get(method, (stand.cell.pipeline,)):
            part = Stand(stand.cell, stand.pairs[:few])
            part.reference = stand.reference[:few]
            yield {"method": method, **part.play(method, batch).row()}


def sized(stand: Stand) -> Iterator[dict]:
    """`compute_rows` beside decisions that are free for each picture, by share and by tolerance."""
    asked = [{"compute": share} for share in (0.35, 0.5)]
    asked += [{"tolerance": tolerance} for tolerance in (0.08, 0.3)]
    free = [{"tolerance": tolerance} for tolerance in FREE]
    for rows, settings in ((None, asked[:2] + free), *((k, asked) for k in ROWS)):
        for options in settings:
            (kind, value), *_ = options.items()
            played = stand.play(batch=targets_report.SERVED, compute_rows=rows, **options)
            found = {"by": kind, "asked": value, "rows": rows, "sizes": list(played.sizes)}
            yield {**found, **played.row()}


def measure(
    parts: list[str], wanted: list[str] | None, prompts: int, few: int, peers: dict[str, int]
) -> Iterator[dict]:
    """Rows of the chosen parts, in the wanted cells or in all of the part's."""
    listed = cells.prompts()
    held, others = listed[:HELD_OUT][:prompts], listed[HELD_OUT:]
    for cell in dict.fromkeys([*ASKED, *SAME]):
        if wanted and cell.name not in wanted:
            continue
        stand = Stand(cell, held)
        made = {
            "compute": lambda stand=stand: shares(stand),
            "tune": lambda stand=stand: tuned(stand, others),
            "rows": lambda stand=stand: sized(stand),
            "same": lambda stand=stand: same(Stand(stand.cell, held[: 2 * few]), few, peers),
        }
        for part in parts:
            if cell in (SAME if part == "same" else ASKED):
                for row in made[part]():
                    yield {"part": part, "cell": cell.name, **row}


def main() -> None:
    """Parse the command line, measure, save and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=targets_report.PARTS)
    parser.add_argument("--cell", action="append", choices=[cell.name for cell in SAME])
    parser.add_argument("--prompts", type=int, default=HELD_OUT)
    parser.add_argument("--few", type=int, default=16, help="prompts of the peers' thresholds")
    parser.add_argument("--own", action="store_true", help="leave peers' thresholds out")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.report:
        parts = options.part or list(targets_report.PARTS)
        peers = {} if options.own else PEERS
        for row in measure(parts, options.cell, options.prompts, options.few, peers):
            record.append("targets", [row])
            print(json.dumps(row), flush=True)
    targets_report.write(record.RESULTS, HERE.parent / "docs")


if __name__ == "__main__":
    main()
