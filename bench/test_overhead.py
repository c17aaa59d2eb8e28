"""What a cache that never skips adds to a denoiser call, beside the peers in the same run.

Each library runs in a process of its own, which takes it off and puts it on again; the processes
take turns.
"""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
# Library, and blocks of the model. A skip is one of the whole output.
CELLS = (
    ("adaptive", "4"),
    ("fbcache", "4"),
    ("skip", "4"),
    ("diffusers", "4"),
    ("cache-dit", "4"),
    ("stack", "57"),
    ("fbcache", "57"),
    ("diffusers", "57"),
    ("cache-dit", "57"),
)
ROUNDS = 10
QUANTILES = (20, 50, 80)


def load(name: str):
    spec = spec_from_file_location(f"bench_{name}", HERE / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Worker:
    """A live process that runs a generation with and one without when asked."""

    def __init__(self, library: str, blocks: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "overhead_worker.py"), library, blocks],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self) -> str:
        line = self.process.stdout.readline()
        while line and not line.startswith(("{", "ready")):
            line = self.process.stdout.readline()
        assert line, f"the worker {self.process.args[-2:]!r} ended"
        return line

    def generations(self) -> dict[str, list[float]]:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self.answer())


@pytest.fixture(scope="module")
def workers():
    running = {cell: Worker(*cell) for cell in CELLS}
    for worker in running.values():
        worker.answer()
        worker.generations()
    yield running
    for worker in running.values():
        worker.process.stdin.close()
        worker.process.wait()
        worker.process.stdout.close()


@pytest.fixture(scope="module")
def milliseconds(workers):
    """Per cell, quantiles of a call's milliseconds and of those added to a plain call and step."""
    calls, added = {cell: [] for cell in CELLS}, {cell: [] for cell in CELLS}
    for _ in range(ROUNDS):
        for cell, worker in workers.items():
            found = worker.generations()
            calls[cell].append(1e3 * found["with"][0])
            added[cell].append(1e3 * (sum(found["with"]) - sum(found["plain"])))
    rows = [
        {"library": library, "blocks": int(blocks)}
        | {f"call_ms_p{q}": quantile(calls[library, blocks], q) for q in QUANTILES}
        | {f"added_ms_p{q}": quantile(added[library, blocks], q) for q in QUANTILES}
        for library, blocks in CELLS
    ]
    load("record").append("overhead", rows)
    print()
    for row in rows:
        print(
            f"{row['library']:10} {row['blocks']:2} blocks: call {row['call_ms_p50']:.3f} ms, "
            f"added {row['added_ms_p50']:.3f} ({row['added_ms_p20']:.3f} to "
            f"{row['added_ms_p80']:.3f})"
        )
    return dict(zip(CELLS, rows, strict=True))


def quantile(values: list[float], q: int) -> float:
    return round(float(np.percentile(values, q)), 4)


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_generation(benchmark, workers, cell):
    benchmark.pedantic(workers[cell].generations, rounds=5, warmup_rounds=1)


def test_never_skipping_adds_at_most_0_15_ms(milliseconds):
    assert milliseconds["adaptive", "4"]["added_ms_p50"] <= 0.15


def test_never_skipping_adds_at_most_0_10_ms(milliseconds):
    assert milliseconds["adaptive", "4"]["added_ms_p50"] <= 0.10


def test_never_skipping_57_blocks_adds_at_most_0_25_ms(milliseconds):
    assert milliseconds["stack", "57"]["added_ms_p50"] <= 0.25


def test_a_skipped_call_takes_at_most_0_3_ms(milliseconds):
    assert milliseconds["skip", "4"]["call_ms_p50"] <= 0.3
