"""Fidelity per compute on the tiny pipelines: the methods, and the same scheduler with fewer steps.

    python bench/pareto.py                     # every cell, 64 held-out prompts; prints and saves
    python bench/pareto.py --cell unet-ddim-50 --prompts 32
    python bench/pareto.py --report            # redo table and plot from the newest saved results

Results go to bench/results/pareto.jsonl, the table and the plot to docs/.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

import diffcache
from diffcache import metrics, tiny

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "tiny")]

import pareto_report  # noqa: E402  (found beside this file)
import record  # noqa: E402
import scenes  # noqa: E402

SCHEDULERS = {"ddim": None, "dpm": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}
GUIDANCE = {"unet": {"guidance_scale": 3.0}, "dit": {}}
TOLERANCES = (0.007, 0.015, 0.03, 0.06, 0.12, 0.24, 0.48)
DELTAS = (0.003, 0.01, 0.03)
INTERVALS = (2, 3, 4)
SHARES = (0.3, 1 / 3, 0.4, 0.5)
BATCH = 16


@dataclass(frozen=True)
class Cell:
    """One pipeline, scheduler and number of steps."""

    pipeline: str
    scheduler: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.pipeline}-{self.scheduler}-{self.steps}"


CELLS = [Cell("unet", name, steps) for steps in (50, 28) for name in SCHEDULERS] + [
    Cell("dit", "flow", steps) for steps in (50, 28)
]


@dataclass(frozen=True)
class Candidate:
    """A method with a setting, or None for the plain pipe, at a number of steps."""

    family: str
    setting: float
    steps: int
    method: str | None = None
    options: tuple[tuple[str, float], ...] = ()


def candidates(cell: Cell) -> list[Candidate]:
    """Everything that is measured in a cell, the full run first."""
    few = sorted({max(2, round(cell.steps * share)) for share in SHARES})
    return [
        Candidate("full", cell.steps, cell.steps),
        *(Candidate("fewer steps", n, n) for n in few),
        *(
            Candidate("adaptive", t, cell.steps, "adaptive", (("tolerance", t),))
            for t in TOLERANCES
        ),
        *(
            Candidate("adaptivediffusion", d, cell.steps, "adaptivediffusion", (("threshold", d),))
            for d in DELTAS
        ),
        *(Candidate("interval", n, cell.steps, "interval", (("every", n),)) for n in INTERVALS),
    ]


def load(cell: Cell):
    """The pipeline of a cell, silent."""
    pipe = tiny.pipeline(cell.pipeline)
    if (kind := SCHEDULERS.get(cell.scheduler)) is not None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, cell: Cell, candidate: Candidate, pairs: list[dict]) -> tuple:
    """Pictures `[n, H, W, 3]` in [0, 1] and the share of row-steps that was computed."""
    computed = total = 0
    pictures = []
    diffcache.unwrap(pipe)
    if candidate.method is not None:
        diffcache.wrap(pipe, candidate.method, **dict(candidate.options))
    # The released rule decides for a whole batch; its own results are for single prompts.
    batch = 1 if candidate.method == "adaptivediffusion" else BATCH
    for start in range(0, len(pairs), batch):
        some = pairs[start : start + batch]
        pictures.append(
            pipe(
                [pair["prompt"] for pair in some],
                generator=[torch.Generator().manual_seed(pair["seed"]) for pair in some],
                num_inference_steps=candidate.steps,
                output_type="np",
                **GUIDANCE[cell.pipeline],
            ).images
        )
        if candidate.method is not None:
            report = diffcache.report(pipe)
            computed, total = computed + report.computed, total + report.total
    diffcache.unwrap(pipe)
    share = computed / total if total else candidate.steps / cell.steps
    return np.concatenate(pictures), share


def measure(cell: Cell, pairs: list[dict], families: list[str] | None) -> list[dict]:
    """One row a candidate; of `families` only, beside the full run, if they are given."""
    pipe, rows, reference = load(cell), [], None
    for candidate in candidates(cell):
        if families and candidate.family not in ("full", *families):
            continue
        pictures, share = generate(pipe, cell, candidate, pairs)
        reference = pictures if reference is None else reference
        decibels = metrics.psnr(pictures, reference)
        whole = (pictures * 255 + 0.5).astype(np.uint8)
        matched = [scenes.matches(p, pair["prompt"]) for p, pair in zip(whole, pairs, strict=True)]
        rows.append(
            {
                "cell": cell.name,
                "family": candidate.family,
                "setting": candidate.setting,
                "prompts": len(pairs),
                "compute": round(share, 4),
                "psnr": round(float(decibels.mean()), 2),
                "psnr_p5": round(float(np.percentile(decibels, 5)), 2),
                "psnr_of_mean_error": round(float(metrics.mean_error_psnr(pictures, reference)), 2),
                "match": round(float(np.mean(matched)), 4),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Parse the command line, measure, save and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", action="append", choices=[cell.name for cell in CELLS])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--family", action="append", help="measure these families only")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.report:
        pairs = json.loads((HERE / "tiny" / "prompts.json").read_text())["prompts"]
        for cell in CELLS:
            if not options.cell or cell.name in options.cell:
                record.append("pareto", measure(cell, pairs[: options.prompts], options.family))
    pareto_report.write(record.RESULTS, HERE.parent / "docs")


if __name__ == "__main__":
    main()
