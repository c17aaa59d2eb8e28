"""What is asked of speed and memory, figure by figure, beside what was measured.

The section of `docs/benchmarks.md` that `make speed-report` writes again. Figures that a test holds
are the suite's; the others come from rows under `bench/results/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from measured import (
    Finder,
    bandwidth,
    beside,
    ended,
    fidelity,
    half_batches,
    kept,
    launches,
    overhead,
    peak,
    reads,
    realised,
)
from rows import Results, table

HEADING = "## Speed and memory: what must hold"
UNMEASURED = "**unmeasured: needs CUDA**"


@dataclass(frozen=True)
class Figure:
    """A figure that is asked for.

    Attributes:
        what: the figure and what it is to be.
        command: what measures it, or the test that holds it.
        found: what was measured, None if nothing; the test alone where there is no such function.
        why: where it is explained, should it be missed.
    """

    item: int
    what: str
    command: str
    found: Finder | None = None
    why: str = ""

    def row(self, results: Results) -> tuple[str, ...]:
        """The cells of the table."""
        if self.found is None:
            measured, state = "", "holds: a test"
        elif (found := self.found(results)) is None:
            measured, state = "", UNMEASURED
        else:
            measured = found.text
            missed = f"**missed** ([why](speed.md#{self.why}))"
            state = {True: "holds", False: missed, None: "shown"}[found.holds]
        return str(self.item), self.what, measured, state, f"`{self.command}`"


KERNELS = "pytest bench/test_kernels.py -m gpu"
OVERHEAD = "pytest bench/test_overhead.py"
SPEEDUP = "pytest bench/test_speedup.py"
MEMORY = "pytest bench/test_memory.py"
READS = "pytest tests/runtime/test_host_reads.py"
COMPILE = "pytest tests/test_compile.py"
WHY_OVERHEAD = "what-a-call-at-tolerance-0-costs"

FIGURES = (
    Figure(
        2, "kernels at ≥ 256 MiB, share of copy bandwidth ≥ 0.9", f"{KERNELS} -k large", bandwidth
    ),
    Figure(2, "kernels at latent sizes: one launch", f"{KERNELS} -k launch", launches),
    Figure(2, "the same, times faster than eager ≥ 3", f"{KERNELS} -k launch", beside("eager", 3)),
    Figure(
        2,
        "the same, not slower than torch.compile (two clocks agree to 5 %)",
        f"{KERNELS} -k launch",
        beside("compiled", 0.95),
    ),
    Figure(2, "same input, same bits: interpreter", "pytest tests/kernels -k same_bits"),
    Figure(2, "same input, same bits: CUDA", f"{KERNELS} -k bits", ended("test_kernels.py -m gpu")),
    Figure(3, "waits for the device ≤ 1 a denoiser call", "python bench/lagged.py", reads),
    Figure(3, "the same, for every kind of evidence", f"{READS} -k at_most_one"),
    Figure(3, "no wait with a static mask", f"{READS} -k static"),
    Figure(3, "no wait in lagged mode", f"{READS} -k lags"),
    Figure(
        3,
        "CUDA raises nowhere under `set_sync_debug_mode('error')`",
        "pytest bench/test_sync.py",
        ended("test_sync.py -m gpu"),
    ),
    Figure(
        3, "lagged evidence beside exact, at equal tolerance", "python bench/lagged.py", fidelity
    ),
    Figure(
        4,
        "`adaptive` at tolerance 0 adds ≤ 0.10 ms a call",
        OVERHEAD,
        overhead("adaptive", 4, "added_ms", 0.1, "cache-dit", "diffusers"),
        WHY_OVERHEAD,
    ),
    Figure(
        4,
        "the same on a stack of 57 blocks ≤ 0.25 ms",
        OVERHEAD,
        overhead("stack", 57, "added_ms", 0.25, "cache-dit", "diffusers"),
        WHY_OVERHEAD,
    ),
    Figure(4, "a skipped call takes ≤ 0.3 ms", OVERHEAD, overhead("skip", 4, "call_ms", 0.3)),
    *(
        Figure(
            5,
            f"real sizes, bf16, half the steps, {site}: ≥ {bound} of the ideal",
            f"{SPEEDUP} -m gpu",
            realised(site, bound, cuda=True),
            "realised-speed-up",
        )
        for site, bound in (("output", 0.97), ("block stack", 0.93), ("UNet branch", 0.93))
    ),
    *(
        Figure(
            5,
            f"≥ 100 M parameters on a CPU, {site}: ≥ 0.95 of the ideal",
            SPEEDUP,
            realised(site, 0.95, cuda=False),
            "realised-speed-up",
        )
        for site in ("output", "block stack", "UNet branch")
    ),
    Figure(
        6,
        "half of a batch of 8, of the speed of its plain forward ≥ 0.9",
        "pytest bench/test_batches.py",
        half_batches,
    ),
    Figure(
        6,
        "nothing is compiled after `warmup`, whatever rows a step computes",
        f"{COMPILE} -k warmup",
    ),
    Figure(
        7,
        "compiled as uncompiled, at every site; no graph break; at most two graphs a site; "
        "none a step",
        f"{COMPILE} -k test_sites",
    ),
    Figure(7, "the same with inductor", f"DIFFCACHE_INDUCTOR=1 {COMPILE} -k inductor"),
    Figure(
        8,
        "a skip moves no weights of what it bypasses, but for prefetched ones",
        "pytest tests/test_offload.py",
    ),
    Figure(
        8,
        "the same on CUDA",
        "pytest tests/test_offload.py -m gpu",
        ended("../tests/test_offload.py -m gpu"),
    ),
    Figure(
        9,
        "Flux.1-dev: `adaptive` keeps less than TaylorSeer on modules",
        MEMORY,
        kept("flux-1-dev"),
    ),
    Figure(9, "Wan 2.1 1.3B: the same", MEMORY, kept("wan-2.1-1.3b")),
    Figure(9, "peak on the device with `adaptive`, over plain ≤ 64 MiB", f"{MEMORY} -m gpu", peak),
)


def section(results: Results) -> str:
    """The section, with its heading."""
    heads = ["item", "asked", "measured (p50)", "", "command"]
    about = (
        "Items of issue 5, beside the newest rows under `bench/results/`; written by `make "
        "speed-report`. What needs CUDA is measured by `make bench-cuda`, in at most ten minutes. "
        "All figures, quantiles and machines are in [speed.md](speed.md)."
    )
    return "\n\n".join([HEADING, about, table(heads, (f.row(results) for f in FIGURES))]) + "\n"


def put_into(document: Path, results: Results) -> None:
    """Writes the section again, in place or at the document's end."""
    text = document.read_text()
    before, heading, rest = text.partition(HEADING)
    after = rest[rest.index("\n## ") :] if heading and "\n## " in rest else ""
    document.write_text(f"{before.rstrip()}\n\n{section(results)}{after}")
