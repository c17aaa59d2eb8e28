"""One library in a process of its own; a job in JSON on stdin generates some pictures.

Answers each job with JSON: where the pictures are and seconds a picture, or, if asked to `count`,
FLOPs. A candidate that its library refuses is answered with the reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cells
import numpy as np
import peers
import torch
from candidates import Candidate
from cells import Cell
from torch.utils.flop_counter import FlopCounterMode

import diffcache
from diffcache.methods import find
from diffcache.sites import Output


class Session:
    """A candidate on a pipeline, for as many batches as are asked for.

    The pipeline is a fresh one, since some peers cannot be taken off.
    """

    def __init__(self, cell: Cell, candidate: Candidate) -> None:
        self.cell, self.candidate = cell, candidate
        own = replace(cell, dtype=candidate.dtype or cell.dtype)
        self.pipe = cells.load(own, candidate.scheduler)
        ours = candidate.library == "diffcache" and candidate.site is None
        self.skips_calls = ours and isinstance(find(candidate.method).site, Output)
        self._installed = ExitStack()
        self._installed.enter_context(peers.installed(self.pipe, cell, candidate))

    def close(self) -> None:
        """Takes the candidate off, as far as its library can."""
        self._installed.close()

    def generate(self, pairs: list[dict]) -> dict[str, Any]:
        """Pictures `[n, H, W, 3]`, seconds a picture of each call, and row-steps.

        Row-steps, computed and in all, are those of methods that skip whole calls.
        """
        pictures, seconds, computed, total = [], [], 0, 0
        for start in range(0, len(pairs), self.candidate.batch):
            some = pairs[start : start + self.candidate.batch]
            call = cells.arguments(self.cell, some, self.candidate.steps)
            began = time.perf_counter()
            pictures.append(self.pipe(**call).images)
            seconds.append((time.perf_counter() - began) / len(some))
            if self.skips_calls:
                report = diffcache.report(self.pipe)
                computed, total = computed + report.computed, total + report.total
        return {
            "pictures": np.concatenate(pictures).astype(np.float32),
            "seconds": seconds,
            "computed": computed,
            "total": total,
        }

    def count(self, pairs: list[dict]) -> dict[str, Any]:
        """FLOPs of the pipeline by torch's counter, and of the denoiser's part of it.

        Hooks and gates of peers may keep the counter from seeing whose part an operation is, so
        that the second figure means something on a plain pipeline only.
        """
        with FlopCounterMode(display=False) as counter:
            self.generate(pairs)
        kinds = counter.get_flop_counts()
        inside = kinds.get(type(cells.denoiser(self.pipe)).__name__, {})
        return {"flops": counter.get_total_flops(), "inside": sum(inside.values())}


class Worker:
    """Does jobs; the candidate of the last one stays installed until another's comes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.session: Session | None = None

    def answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """Does one job: a `cell`, a `candidate`, `pairs` of prompts and seeds, and `count`."""
        cell, candidate = Cell(**job["cell"]), Candidate(**job["candidate"])
        try:
            return self._do(cell, candidate, job["pairs"], job["count"])
        except Exception as error:
            return {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}

    def _do(
        self, cell: Cell, candidate: Candidate, pairs: list[dict], count: bool
    ) -> dict[str, Any]:
        open_now = self.session and (self.session.cell, self.session.candidate)
        if open_now != (cell, candidate):
            if self.session is not None:
                self.session.close()
            self.session = None
            self.session = Session(cell, candidate)
        if count:
            return self.session.count(pairs)
        found = self.session.generate(pairs)
        path = self.folder / "pictures.npy"
        np.save(path, found["pictures"])
        return {**found, "pictures": str(path)}


def main() -> None:
    """Serves until stdin closes; the argument is a number of threads."""
    torch.set_num_threads(int(sys.argv[1]))
    # Libraries write to stdout as they like; answers have their own way out.
    out, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=out, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(Path(folder))
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
