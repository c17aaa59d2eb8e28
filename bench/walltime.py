"""Wall time at half the compute: what a share of the denoiser's work saves in seconds.

    python bench/walltime.py                     # three cells, about a quarter of an hour
    python bench/walltime.py --cell dit-flow-28 --rounds 8

Each library runs in a live process of its own. In a round everything takes its turn, between two
full runs, so that what the machine does meanwhile it does to all. Settings are those that
`pareto.py` found best at half the compute. Results are appended to bench/results/walltime.jsonl.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import pareto_report
import record
import timing
import torch
from candidates import FULL, PEERS, Candidate, candidates
from cells import PLAIN, Cell, prompts
from envelope import FEWER, OURS, RIVALS, Families, chosen, newest, reached
from pareto import Process, running
from walltime_report import SHARE

CELLS = ("unet-ddim-28", "unet-dpm-28", "dit-flow-28")


def settings(families: Families) -> dict[str, float | str]:
    """By family, the setting that is timed: of every peer's method, and of each kind's best."""
    names = {OURS, FEWER, *(name for name in families if name.split()[0] in PEERS)}
    for rival in RIVALS:
        found = reached(families, rival, SHARE, "psnr")
        names |= {max(found, key=found.get)} if found else set()
    rows = {name: chosen(families[name], SHARE) for name in families if name in names}
    return {name: row["setting"] for name, row in rows.items() if row is not None}


class Turns:
    """The candidates of a cell, timed in turns."""

    def __init__(self, cell: Cell, processes: dict[str, Process], pairs: list[dict]) -> None:
        self.cell, self.processes, self.pairs = cell, processes, pairs
        self.ratios: dict[str, list[float]] = {}
        self.full: list[float] = []

    def seconds(self, candidate: Candidate) -> float:
        """Seconds a picture, one at a time, after one that is not counted.

        Some libraries check and set up in the first call.
        """
        process, alone = self.processes[candidate.library], replace(candidate, batch=1)
        for pairs in (self.pairs[:1], self.pairs):
            found = process.ask(self.cell, alone, pairs, count=False)
        if "refused" in found:
            raise RuntimeError(f"{candidate.family} in {self.cell.name}: {found['refused']}")
        return fmean(found["seconds"])

    def round(self, full: Candidate, timed: list[Candidate]) -> None:
        """Everything once, each between two full runs."""
        before = self.seconds(full)
        for candidate in timed:
            found, after = self.seconds(candidate), self.seconds(full)
            beside = (before + after) / 2
            self.ratios.setdefault(candidate.family, []).append(found / beside)
            self.full.append(beside)
            before = after

    def rows(self, settings: dict[str, float | str]) -> list[dict]:
        """What is saved."""
        return [
            {
                "cell": self.cell.name,
                "family": family,
                "setting": settings[family],
                "full_seconds": round(median(self.full), 4),
                **timing.quantiles("of_full", found),
            }
            for family, found in self.ratios.items()
        ]


def measure(options: argparse.Namespace) -> None:
    """Times and saves the cells that were asked for."""
    grouped = newest(record.RESULTS / "pareto.jsonl")
    pairs = prompts()[: options.prompts]
    for cell in (cell for cell in PLAIN if cell.name in (options.cell or CELLS)):
        wanted = settings(grouped[cell.name])
        everything = candidates(cell)
        timed = [c for c in everything if wanted.get(c.family) == c.setting]
        (full,) = (c for c in everything if c.family == FULL)
        with running((full, *timed), options.threads) as processes:
            turns = Turns(cell, processes, pairs)
            for _ in range(options.rounds):
                turns.round(full, timed)
        rows = turns.rows(wanted)
        record.append("walltime", rows)
        for row in rows:
            print(json.dumps(row), flush=True)


def main() -> None:
    """Parse the command line, measure, save and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", action="append", choices=[cell.name for cell in PLAIN])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=2, help="of a turn")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure(options)
    pareto_report.write(record.RESULTS, Path(__file__).parents[1] / "docs")


if __name__ == "__main__":
    main()
