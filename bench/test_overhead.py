"""What a cache that never skips adds to a denoiser call, beside the peers in the same run.

Each library runs in a process of its own, which takes it off and puts it on again; the processes
take turns.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import record
import timing

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
ROUNDS = 12


class Worker:
    """A live process that runs some generations with and some without when asked."""

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
        while line and not line.startswith(("[{", "ready")):
            line = self.process.stdout.readline()
        assert line, f"the worker {self.process.args[-2:]!r} ended"
        return line

    def generations(self) -> list[dict[str, list[float]]]:
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
            for found in worker.generations():
                calls[cell].append(1e3 * found["with"][0])
                added[cell].append(1e3 * (sum(found["with"]) - sum(found["plain"])))
    rows = [
        {"library": library, "blocks": int(blocks)}
        | timing.quantiles("call_ms", calls[library, blocks])
        | timing.quantiles("added_ms", added[library, blocks])
        for library, blocks in CELLS
    ]
    record.append("overhead", rows)
    print()
    for row in rows:
        print(
            f"{row['library']:10} {row['blocks']:2} blocks: call {row['call_ms_p50']:.3f} ms, "
            f"added {row['added_ms_p50']:.3f} ({row['added_ms_p20']:.3f} to "
            f"{row['added_ms_p80']:.3f})"
        )
    return dict(zip(CELLS, rows, strict=True))


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
