"""What needs a GPU, in at most ten minutes: `python bench/on_cuda.py [--seconds 590]`.

Each bench is a process of its own, so that one that fails, or leaves the device unusable, stops no
other. What it measures it appends at once to `bench/results`; one that is still running at its
limit is interrupted and keeps what it has. It needs what `pip install .[test]` brings, and no
network.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import record

HERE = Path(__file__).parent

# With `python -m pytest` the folder `kernels` of a checkout would pass for Hugging Face's package.
PYTEST = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
)

BENCHES = {
    "test_kernels.py -m gpu": 110.0,
    "test_sync.py -m gpu": 40.0,
    "test_batches.py": 30.0,
    "test_memory.py -m gpu": 70.0,
    "test_speedup.py -m gpu": 600.0,
    "../tests/test_offload.py -m gpu": 600.0,
}
"""Each bench with its options, and the most seconds it may take, of what is left."""

GRACE = 15.0
"""Seconds that an interrupted process has for its books."""


def run(commands: Mapping[str, tuple[Sequence[str], float]], seconds: float) -> dict[str, str]:
    """Runs commands, each with its limit in seconds, one after another within `seconds` in all.

    Returns how each ended: "done", "failed", "interrupted" or "no time left".
    """
    ends, deadline = {}, time.monotonic() + seconds
    for name, (command, limit) in commands.items():
        left = min(limit, deadline - time.monotonic() - GRACE)
        if left <= 0:
            ends[name] = "no time left"
            continue
        process = subprocess.Popen(command)
        try:
            ends[name] = "failed" if process.wait(left) else "done"
        except subprocess.TimeoutExpired:
            ends[name] = "interrupted"
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return ends


def main() -> int:
    """Runs all benches and writes the documents again; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=590.0)
    seconds = parser.parse_args().seconds
    commands = {}
    for bench, limit in BENCHES.items():
        file, *options = bench.split()
        command = [sys.executable, "-c", PYTEST, "-v", str(HERE / file), *options]
        commands[bench] = command, limit
    ends = run(commands, seconds)
    record.append("on_cuda", [{"bench": bench, "end": end} for bench, end in ends.items()])
    subprocess.run([sys.executable, str(HERE / "speed_report.py")])
    for bench, end in ends.items():
        print(f"{bench}: {end}")
    return 0 if set(ends.values()) == {"done"} else 1


if __name__ == "__main__":
    sys.exit(main())
