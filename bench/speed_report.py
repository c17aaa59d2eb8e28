"""`docs/speed.md` from saved results: kernels, realised speed-up, waiting, memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent.parent / "docs" / "speed.md"

UNMEASURED = "**unmeasured**"

ABOUT = """\
Made by `make speed-report` (`python bench/speed_report.py`) from JSON lines under `bench/results/`,
which carry the machine and the versions; never edited by hand. Fidelity per compute, and what a
cache that never skips costs a call, are in [benchmarks.md](benchmarks.md), what is given where a
share of the run or a PSNR is asked for in [targets.md](targets.md). Times are p20 / p50 / p80.
`make bench` measures what this machine can, `make bench-cuda` what needs a GPU, in at most ten
minutes."""

GPU_FIGURES: tuple[tuple[str, str, Callable[[dict[str, list[Row]]], bool]], ...] = (
    (
        "kernels at ≥ 256 MiB: ≥ 90 % of copy bandwidth",
        "bench/test_kernels.py",
        lambda results: bool(results["bandwidth"]),
    ),
    (
        "kernels at latent sizes: one launch, ≥ 3× eager, not slower than torch.compile",
        "bench/test_kernels.py",
        lambda results: any(row["device"] == "cuda" for row in results["kernels"]),
    ),
    (
        "realised speed-up at real size: ≥ 0.97 (output), ≥ 0.93 (block stack, UNet branch)",
        "bench/test_speedup.py",
        lambda results: any(row["gpu"] for row in results["speedup"]),
    ),
    (
        "peak memory on the device",
        "bench/test_memory.py",
        lambda results: any(row["how"] == "cuda" for row in results["memory"]),
    ),
)
"""What a GPU has to show: the figure, the file that measures it, and whether it was."""


def read(results: Path) -> dict[str, list[Row]]:
    """The rows of every file of speed in `results`; none where a file is missing."""
    names = ("kernels", "bandwidth", "speedup", "memory", "lagged")
    paths = {name: results / f"{name}.jsonl" for name in names}
    return {
        name: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for name, path in paths.items()
    }


def newest(rows: Iterable[Row], *keys: str) -> list[Row]:
    """The last row of each combination of `keys`, in the order that these first appear in."""
    return list({tuple(row.get(key) for key in keys): row for row in rows}.values())


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def quantiles(row: Row, name: str, form: str) -> str:
    """`p20 / p50 / p80` of a figure; empty where the row lacks it."""
    values = [row.get(f"{name}_p{q}") for q in (20, 50, 80)]
    return "" if None in values else " / ".join(format(value, form) for value in values)


def where(row: Row) -> str:
    """The machine and the versions of a result."""
    device = row["gpu"] or f"{row['cpu']}, {row['threads']} threads"
    return f"{device}, torch {row['torch']}, diffusers {row['diffusers']}, {row['date']}"


def unmeasured(results: dict[str, list[Row]]) -> str:
    """What a GPU has to show, and whether it has."""
    rows = [
        [figure, f"`pytest {file} -m gpu`", "measured" if seen(results) else UNMEASURED]
        for figure, file, seen in GPU_FIGURES
    ]
    waiting = "no host synchronisation under `torch.cuda.set_sync_debug_mode('error')`"
    rows.append([waiting, "`pytest bench/test_sync.py`", "a test; run by `make bench-cuda` alone"])
    return table(["figure", "command", "state"], rows)


def speedup(rows: list[Row]) -> list[str]:
    found = newest(rows, "model", "site", "library", "gpu")
    done = [row for row in found if "refused" not in row]
    refused = [row for row in found if "refused" in row]
    parts = [
        "## Realised speed-up",
        "`pytest bench/test_speedup.py`: full pipelines, random weights, every other step "
        "computed. The ideal is measured in the same rounds: the plain pipeline, in which the "
        "modules that a site bypasses give what they last gave, at once. Realised is the ideal's "
        "time over the library's, and a library that bypasses more than our site does may pass 1: "
        "MagCache also leaves out the first block. diffusers' FirstBlockCache is not here: nothing "
        "but its threshold decides, and no threshold computes every other step.",
    ]
    if not done:
        return [*parts, UNMEASURED]
    heads = ["model", "site", "library", "plain, s", "ideal, s", "seconds", "speed-up", "realised"]
    parts += [
        where(done[-1]) + ".",
        table(
            heads,
            [
                [
                    f"{row['model']} ({row['parameters'] / 1e6:.0f} M, {row['dtype']})",
                    row["site"],
                    row["library"],
                    format(row["plain_s_p50"], ".3f"),
                    format(row["ideal_s_p50"], ".3f"),
                    quantiles(row, "seconds", ".3f"),
                    quantiles(row, "speedup", ".2f"),
                    quantiles(row, "realised", ".3f"),
                ]
                for row in done
            ],
        ),
    ]
    refusals = [f"- {r['library']} on {r['model']}: {r['refused']}" for r in refused]
    return parts + (["Refused:", "\n".join(refusals)] if refusals else [])


def kernels(results: dict[str, list[Row]]) -> list[str]:
    found = newest(results["kernels"], "kernel", "latents", "device", "clock")
    parts = [
        "## Kernels",
        "`pytest bench/test_kernels.py`: bf16, microseconds a call. On the CPU the torch twins "
        "run, and nothing is asked of them but to be right. `wall` is a loop of calls, `device` "
        "the same calls captured in a graph. The relative change of two tensors is "
        "`latent_difference` of two.",
    ]
    if found:
        heads = ["kernel", "latents", "device", "clock", "ours", "eager", "compiled", "launches"]
        columns = ("ours_us", "eager_us", "compiled_us")
        parts += [
            where(found[-1]) + ".",
            table(
                heads,
                [
                    [row["kernel"], row["latents"], row["device"], row["clock"]]
                    + [quantiles(row, column, ".1f") for column in columns]
                    + [row.get("launches", "")]
                    for row in found
                ],
            ),
        ]
    if large := newest(results["bandwidth"], "kernel"):
        heads = ["kernel", "MiB moved", "GB/s", "copy, GB/s"]
        cells = [
            [
                row["kernel"],
                row["mib"],
                quantiles(row, "gb_s", ".0f"),
                quantiles(row, "copy_gb_s", ".0f"),
            ]
            for row in large
        ]
        parts.append(table(heads, cells))
    return parts


def lagged(rows: list[Row]) -> list[str]:
    parts = [
        "## Waiting for the device",
        "`report.host_reads` counts how often a generation waited for a value of the denoiser's "
        "device, on the CPU too. `tests/runtime/test_host_reads.py` holds it to one a denoiser "
        "call, and to none with a static mask or with `wrap(pipe, lagged=True)`. It does not count "
        "the timetable, which is read when the pipeline sets it, nor that a host two steps ahead "
        "of the device waits for the older one's evidence. Once in the life of a wrapped pipeline "
        "the first mixed step of a batch is computed twice and compared, which is one read; and a "
        "pipeline that makes a new timestep for each guidance branch (Flux with true guidance) has "
        "one read in the first step of each generation, static masks and lagged evidence included. "
        "Conditioning that a pipeline rebuilds in each step is compared by value, a read a tensor.",
        "`python bench/lagged.py`: `adaptive` on the tiny trained pipelines, held-out prompts in "
        "one batch. PSNR against the full run, mean / 5th percentile.",
    ]
    heads = ["cell", "tolerance", "evidence", "compute", "PSNR, dB", "reads"]
    cells = [
        [
            row["cell"],
            row["tolerance"],
            "lagged" if row["lagged"] else "exact",
            format(row["compute"], ".3f"),
            f"{row['psnr']:.1f} / {row['psnr_p5']:.1f}",
            row["host_reads"],
        ]
        for row in newest(rows, "cell", "tolerance", "lagged")
    ]
    return [*parts, table(heads, cells) if cells else UNMEASURED]


def memory(rows: list[Row]) -> list[str]:
    parts = [
        "## Memory",
        "`pytest bench/test_memory.py`: Flux.1-dev at 1024 × 1024, one branch; Wan 2.1 1.3B at 81 "
        "frames of 480 × 832 on the meta device and 33 on CUDA, two branches; bf16. `meta`: bytes "
        "of tensors alive after seven steps, at two depths of the model, extended to the published "
        "one. Where nothing was kept, the method did not come to skip in these steps or does not "
        "know the model. Peaks are taken on CUDA alone.",
    ]
    found = newest(rows, "model", "method", "how")
    kept = sorted(
        (row for row in found if "refused" not in row),
        key=lambda row: (row["model"], row["how"], row.get("cache_mib") or 0.0),
    )
    heads = ["model", "method", "how", "cache, MiB", "peak, MiB"]
    columns = ("model", "method", "how", "cache_mib", "peak_mib")
    shown = [row | {"cache_mib": "nothing"} if row.get("cache_mib") == 0 else row for row in kept]
    parts.append(table(heads, [[row.get(c, "") for c in columns] for row in shown]))
    refusals = [f"- {r['method']} on {r['model']}: {r['refused']}" for r in found if "refused" in r]
    return parts + (["Not measured:", "\n".join(refusals)] if refusals else [])


OVERHEAD = [
    "## What a computed call costs more",
    "The figures are in [benchmarks.md](benchmarks.md#what-a-cache-that-never-skips-costs), from "
    "`pytest bench/test_overhead.py`. What `adaptive` adds at tolerance 0 to a call of a small "
    "model on a CPU has three parts of about one size.",
    "- **torch operations**: a copy of the output and one of the guided prediction, the "
    "combination of three anchors, two sums of squares, and a handful of operations on one number "
    "a sample, which are the policy's. After a denoiser's call each of them takes several times "
    "what it takes in a loop, because its code has left the processor's cache; what is quicker in "
    "a loop is often no quicker here.\n"
    "- **Python**: the gate, the names of the arguments, which lane the call continues, guards, "
    "books. What is the same in every step is settled once a run, and the trace is made at the "
    "end.\n"
    "- **the denoiser itself**, slower after all this, for the same reason. As long a wait in a "
    "loop that touches nothing costs it nothing.",
    "On a block stack the same is colder still after a longer forward, and the first and the last "
    "bypassed block of each list have their part: what enters a list is subtracted from what "
    "leaves it. The difference is kept as it is, not copied. All other blocks have no gate while "
    "calls compute in full. A probe adds its own difference, its sums and one more decision.",
    "To be tried next: one copy for the lane and the evidence where guidance mixes no branches; a "
    "policy's state as numbers where there is one sample; evidence and decision in one compiled "
    "function.",
]


def write(results: Path, document: Path) -> None:
    """Writes the document from the files in `results`."""
    found = read(results)
    parts = [
        "# Speed and memory",
        ABOUT,
        "## What needs a GPU",
        unmeasured(found),
        *speedup(found["speedup"]),
        *kernels(found),
        *OVERHEAD,
        *lagged(found["lagged"]),
        *memory(found["memory"]),
    ]
    document.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    write(RESULTS, DOCUMENT)
