"""What a cache that never skips adds to a denoiser call, beside the peers in the same run.

Each library runs in a process of its own; generations of all of them take turns.
"""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
LIBRARIES = ("plain", "adaptive", "fbcache", "skip", "diffusers", "cache-dit")
ROUNDS = 25


def load(name: str):
    spec = spec_from_file_location(f"bench_{name}", HERE / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Worker:
    """A live process that runs a generation when asked."""

    def __init__(self, library: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "overhead_worker.py"), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self) -> str:
        line = self.process.stdout.readline()
        while line and not line.startswith(("{", "ready")):
            line = self.process.stdout.readline()
        assert line, f"the worker {self.process.args[-1]!r} ended"
        return line

    def generation(self) -> dict[str, float]:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self.answer())


@pytest.fixture(scope="module")
def workers():
    running = {library: Worker(library) for library in LIBRARIES}
    for worker in running.values():
        worker.answer()
        worker.generation()
    yield running
    for worker in running.values():
        worker.process.stdin.close()
        worker.process.wait()
        worker.process.stdout.close()


@pytest.fixture(scope="module")
def milliseconds(workers):
    """Per library, rows of milliseconds added to the plain call and step of the same round."""
    added = {library: [] for library in LIBRARIES}
    calls = {library: [] for library in LIBRARIES}
    for _ in range(ROUNDS):
        found = {library: worker.generation() for library, worker in workers.items()}
        plain = found["plain"]["call"] + found["plain"]["step"]
        for library, seconds in found.items():
            added[library].append(1e3 * (seconds["call"] + seconds["step"] - plain))
            calls[library].append(1e3 * seconds["call"])
    rows = [
        {
            "library": library,
            **{
                f"call_ms_p{q}": round(float(np.percentile(calls[library], q)), 4)
                for q in QUANTILES
            },
            **{
                f"added_ms_p{q}": round(float(np.percentile(added[library], q)), 4)
                for q in QUANTILES
            },
        }
        for library in LIBRARIES
    ]
    load("record").append("overhead", rows)
    print()
    for row in rows:
        print(
            f"{row['library']:10} call {row['call_ms_p50']:.3f} ms, added {row['added_ms_p50']:.3f}"
        )
    return {row["library"]: row for row in rows}


QUANTILES = (20, 50, 80)


@pytest.mark.parametrize("library", LIBRARIES)
def test_generation(benchmark, workers, library):
    benchmark.pedantic(workers[library].generation, rounds=5, warmup_rounds=1)


def test_never_skipping_adds_at_most_0_15_ms(milliseconds):
    assert milliseconds["adaptive"]["added_ms_p50"] <= 0.15


def test_a_skipped_call_takes_at_most_0_3_ms(milliseconds):
    assert milliseconds["skip"]["call_ms_p50"] <= 0.3


def test_adaptive_adds_less_than_the_peers(milliseconds):
    for peer in ("diffusers", "cache-dit"):
        assert milliseconds["adaptive"]["added_ms_p50"] < milliseconds[peer]["added_ms_p50"]
