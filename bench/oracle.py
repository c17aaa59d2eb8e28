"""The best that any choice of computed steps can do, and how near `adaptive` comes to it.

    python bench/oracle.py                                   # both pipelines, T = 12, 16 samples
    python bench/oracle.py --pipeline dit --steps 20 --most 5   # five computed steps or fewer
    python bench/oracle.py --report                          # redo docs/benchmarks.md

Every mask that computes the first step is played, for each sample, with the forecast of `adaptive`
on skipped steps and its corrections. Masks share their prefixes: a level of the tree
of decisions is one batch, which doubles from step to step. Results are appended to
bench/results/oracle.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pareto_report
import record
import torch
from candidates import label
from cells import Cell, arguments, load, prompts
from oracle_tree import Tree

import diffcache
from diffcache import metrics

HERE = Path(__file__).parent
CELLS = {"unet": "ddim", "dit": "flow"}
"""Samplers without a memory of their own, whose steps depend on nothing but the latents."""

TOLERANCES = (0.007, 0.015, 0.03, 0.06, 0.12, 0.24, 0.48, 0.96, 1.92)
SHARES = range(4, 10)
"""Settings of `adaptive`: tolerances, and shares by the number of computed steps."""

UNGUARDED = {"protect": (1, 0), "max_consecutive_skips": None, "force": True}


def adaptive(pipe: Any, call: Any, setting: dict) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of `adaptive` without guards, and its mask `[samples, steps]`."""
    with diffcache.wrapped(pipe, "adaptive", **setting, **UNGUARDED):
        pictures = pipe(**call()).images
        return pictures, diffcache.report(pipe).mask.T.numpy()


def best(masks: np.ndarray, decibels: np.ndarray) -> dict[int, np.ndarray]:
    """By the number of computed steps, each sample's best PSNR with at most as many, `[samples]`.

    Args:
        masks: `[masks, steps]` of bool.
        decibels: `[masks, samples]`.
    """
    counts = masks.sum(1)
    found: dict[int, np.ndarray] = {}
    for k in sorted(set(counts.tolist())):
        found[k] = decibels[counts <= k].max(0)
    return found


def measure(
    pipeline: str, pairs: list[dict], steps: int, most: int | None = None
) -> list[dict[str, Any]]:
    """Rows of the oracle, of the best mask for all samples together, and of `adaptive`.

    Masks compute `most` steps or fewer; where that is less than all, one of all is left out, and so
    is what `adaptive` does with more.
    """
    cell = Cell(pipeline, CELLS[pipeline], steps)
    pipe = load(cell)

    def call() -> dict[str, Any]:
        return arguments(cell, pairs, steps)

    tree = Tree(pipe, call(), most)
    masks, decibels = tree.decibels()
    within = masks.sum(1) <= tree.most
    masks, decibels = masks[within], decibels[within]
    shared = {"pipeline": pipeline, "scheduler": cell.scheduler, "steps": steps}
    shared["samples"] = len(pairs)
    oracle, rows = best(masks, decibels), []
    for k, values in oracle.items():
        rows.append({"kind": "oracle", "computed": k, **_spread(values)})
        fixed = decibels[masks.sum(1) <= k]
        rows.append(
            {"kind": "best fixed mask", "computed": k, **_spread(fixed[fixed.mean(1).argmax()])}
        )
    shares = [{"compute": round(count / steps, 3)} for count in SHARES if count <= tree.most]
    for setting in [*({"tolerance": tolerance} for tolerance in TOLERANCES), *shares]:
        pictures, mask = adaptive(pipe, call, setting)
        if mask.sum(1).max() > tree.most:
            continue
        values = metrics.psnr(pictures, tree.reference)
        played = (mask[:, None] == masks[None]).all(2).argmax(1)
        numbers = mask.sum(1).tolist()
        gaps = np.array([oracle[k][i] for i, k in enumerate(numbers)]) - values
        rows.append(
            {
                "kind": "adaptive",
                "setting": label(setting),
                "computed": float(np.mean(numbers)),
                **_spread(values),
                "gap": round(float(gaps.mean()), 2) + 0.0,
                "gap_p95": round(float(np.percentile(gaps, 95)), 2),
                # The pipeline and the tree play one mask: what they differ by is rounding.
                "tree_apart": round(
                    float(np.abs(values - decibels[played, range(len(pairs))]).max()), 3
                ),
            }
        )
    return [{**shared, **row} for row in rows]


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "psnr": round(float(values.mean()), 2),
        "psnr_p5": round(float(np.percentile(values, 5)), 2),
    }


def main() -> None:
    """Parse the command line, measure, save and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", action="append", choices=list(CELLS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--most", type=int, help="computed steps of a mask; any number")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.report:
        pairs = prompts()[: options.samples]
        for pipeline in options.pipeline or CELLS:
            rows = measure(pipeline, pairs, options.steps, options.most)
            record.append("oracle", rows)
            for row in rows:
                print(json.dumps(row), flush=True)
    pareto_report.write(record.RESULTS, HERE.parent / "docs")


if __name__ == "__main__":
    main()
