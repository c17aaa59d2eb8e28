"""What deciding from evidence a step old costs: `adaptive` with and without `lagged=True`.

On the tiny trained pipelines, 28 steps, the 32 tuning prompts of `tiny/prompts.json`, its last.
Compute is the share of row-steps; PSNR is against the full run, in float, capped at 60 dB a
picture.
"""

from __future__ import annotations

import cells
import numpy as np
import record
import torch
from cells import Cell

import diffcache
from diffcache import metrics

CELLS = (Cell("unet", "ddim", 28), Cell("dit", "flow", 28))
TOLERANCES = (0.3, 0.15, 0.08, 0.04)
PROMPTS = 32


def generated(pipe: object, cell: Cell, pairs: list[dict]) -> np.ndarray:
    """Pictures `[n, height, width, 3]` of `pairs`."""
    return np.asarray(pipe(**cells.arguments(cell, pairs, cell.steps)).images)


def measured(cell: Cell, pairs: list[dict], tolerances: tuple[float, ...]) -> list[dict]:
    """A row for each tolerance, exact and lagged."""
    pipe = cells.load(cell)
    full = generated(pipe, cell, pairs)
    rows = []
    for tolerance in tolerances:
        for lagged in (False, True):
            with diffcache.wrapped(pipe, "adaptive", tolerance=tolerance, lagged=lagged):
                pictures = generated(pipe, cell, pairs)
                report = diffcache.report(pipe)
            decibels = metrics.psnr(pictures, full)
            rows.append(
                {
                    "cell": cell.name,
                    "prompts": len(pairs),
                    "tolerance": tolerance,
                    "lagged": lagged,
                    "compute": round(report.compute_fraction, 4),
                    "host_reads": report.host_reads,
                    "psnr": round(float(decibels.mean()), 2),
                    "psnr_p5": round(float(np.percentile(decibels, 5)), 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measures every cell and appends to `results/lagged.jsonl`."""
    torch.set_num_threads(1)
    pairs = cells.prompts()[-PROMPTS:]
    for cell in CELLS:
        record.append("lagged", measured(cell, pairs, TOLERANCES))


if __name__ == "__main__":
    main()
