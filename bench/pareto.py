"""Fidelity and truth per compute: every method, every peer, and the same with fewer steps.

    python bench/pareto.py                       # every plain cell, 64 held-out prompts
    python bench/pareto.py --cell unet-ddim-50 --prompts 32 --family adaptive
    python bench/pareto.py --cell unet-ddim-28 --guidance 8 --dtype bf16
    python bench/pareto.py --report              # redo tables and plot from the newest results

Each library runs in a live process of its own, and their batches take turns. Results are appended
to bench/results/pareto.jsonl; tables and plot go to docs/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import figures
import numpy as np
import pareto_report
import record
import torch
from candidates import BATCH, FULL, Candidate, candidates
from cells import DTYPES, PLAIN, Cell, prompts

HERE = Path(__file__).parent
COUNTED = BATCH
"""How many prompts FLOPs are counted on."""


class Process:
    """A live worker process of one library."""

    def __init__(self, threads: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "pareto_worker.py"), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._line()

    def _line(self) -> str:
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"a worker ended with exit status {self.process.wait()}")
        return line

    def ask(self, cell: Cell, candidate: Candidate, pairs: list[dict], count: bool) -> dict:
        """The worker's answer to a job."""
        job = {"cell": asdict(cell), "candidate": asdict(candidate), "pairs": pairs, "count": count}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def close(self) -> None:
        """Lets the worker end."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def running(selection: Iterable[Candidate], threads: int) -> Iterator[dict[str, Process]]:
    """A live process of each library that the candidates are of."""
    with ExitStack() as stack:
        libraries = dict.fromkeys(candidate.library for candidate in selection)
        yield {name: stack.enter_context(closing(Process(threads))) for name in libraries}


class Trial:
    """A candidate under way in a cell: what its worker has answered so far."""

    def __init__(self, process: Process, cell: Cell, candidate: Candidate) -> None:
        self.process, self.cell, self.candidate = process, cell, candidate
        self.pictures: list[np.ndarray] = []
        self.seconds: list[float] = []
        self.computed = self.total = 0
        self.counted: dict[str, Any] = {}
        self.refused: str | None = None

    def work(self, pairs: list[dict]) -> Iterator[None]:
        """Generates a batch each time it is advanced, and counts at the end."""
        for start in range(0, len(pairs), BATCH):
            found = self._ask(pairs[start : start + BATCH], count=False)
            if self.refused is None:
                self.pictures.append(np.load(found["pictures"]))
                self.seconds += found["seconds"]
                self.computed += found["computed"]
                self.total += found["total"]
            yield
        if self.candidate.family == FULL or self.row_steps is None:
            # Last, so that what a library checks once is not counted.
            self.counted = self._ask(pairs[:COUNTED], count=True)

    def _ask(self, pairs: list[dict], count: bool) -> dict[str, Any]:
        if self.refused is None:
            found = self.process.ask(self.cell, self.candidate, pairs, count)
            self.refused = found.get("refused")
            return found
        return {}

    @property
    def row_steps(self) -> float | None:
        """Share of the full run's row-steps, where whole calls are skipped or there are fewer."""
        if self.candidate.library == "plain":
            return self.candidate.steps / self.cell.steps
        return self.computed / self.total if self.total else None

    def compute(self, full: Trial) -> float:
        """Share of the full run's FLOPs in the denoiser, counted on one batch.

        All row-steps cost the same (tests/test_bench.py counts them), so that their share, which
        is known for all batches, is that of the FLOPs.
        """
        if self.row_steps is not None:
            return self.row_steps
        outside = full.counted["flops"] - full.counted["inside"]
        return (self.counted["flops"] - outside) / full.counted["inside"]

    def row(self, full: Trial, pairs: list[dict]) -> dict[str, Any]:
        """What is saved."""
        candidate, row_steps = self.candidate, self.row_steps
        pictures, reference = np.concatenate(self.pictures), np.concatenate(full.pictures)
        return {
            "cell": self.cell.name,
            "family": candidate.family,
            "setting": candidate.setting,
            "prompts": len(pairs),
            "batch": candidate.batch,
            "compute": round(self.compute(full), 4),
            "row_steps": None if row_steps is None else round(row_steps, 4),
            "seconds": round(median(self.seconds), 5),
            **figures.measured(pictures, reference, [pair["prompt"] for pair in pairs]),
        }


def selected(cell: Cell, families: list[str] | None) -> list[Candidate]:
    """The candidates of a cell; of `families` only, beside the full run, if they are given."""
    return [c for c in candidates(cell) if not families or c.family in (FULL, *families)]


def measure(
    cell: Cell, pairs: list[dict], families: list[str] | None, processes: dict[str, Process]
) -> Iterator[dict]:
    """Rows of the selected candidates of a cell."""
    wanted = selected(cell, families)
    trials = [Trial(processes[candidate.library], cell, candidate) for candidate in wanted]
    full = trials[0]
    for _ in full.work(pairs):
        pass
    if full.refused is not None:
        raise RuntimeError(f"the full run of {cell.name} failed: {full.refused}")
    yield full.row(full, pairs)
    queues = [[t for t in trials[1:] if t.process is process] for process in processes.values()]
    told = set()
    for turn in zip_longest(*queues):
        running = [trial for trial in turn if trial is not None]
        for _ in zip_longest(*(trial.work(pairs) for trial in running)):
            pass
        for trial in running:
            if trial.refused is None:
                yield trial.row(full, pairs)
                trial.pictures.clear()
            elif (said := (trial.candidate.family, trial.refused)) not in told:
                told.add(said)
                print(f"{cell.name}: {said[0]} left out: {said[1]}", flush=True)


def asked_for(options: argparse.Namespace) -> list[Cell]:
    """The cells that the command line names, in the guidance and precision that it asks for."""
    return [
        replace(cell, guidance=options.guidance, dtype=options.dtype)
        for cell in PLAIN
        if not options.cell or cell.name in options.cell
    ]


def run(options: argparse.Namespace) -> None:
    """Measures and saves, row by row."""
    pairs, wanted = prompts()[: options.prompts], asked_for(options)
    selection = [c for cell in wanted for c in selected(cell, options.family)]
    with running(selection, options.threads) as processes:
        for cell in wanted:
            for row in measure(cell, pairs, options.family, processes):
                record.append("pareto", [row])
                print(json.dumps(row), flush=True)


def main() -> None:
    """Parse the command line, measure, save and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", action="append", choices=[cell.name for cell in PLAIN])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--family", action="append", help="measure these families only")
    parser.add_argument("--guidance", type=float, help="in place of each pipeline's own")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.report:
        run(options)
    pareto_report.write(record.RESULTS, HERE.parent / "docs")


if __name__ == "__main__":
    main()
