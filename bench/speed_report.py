"""`docs/speed.md` from saved results: kernels, realised speed-up, waiting, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import asked
from rows import Results, Row, newest, quantiles, read, table, where

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"

UNMEASURED = "**unmeasured**"
ROUNDS = 3
"""Of rows that were saved before they said how many rounds they are of."""

ABOUT = """\
Made by `make speed-report` (`python bench/speed_report.py`) from JSON lines under `bench/results/`,
which carry the machine and the versions; never edited by hand. What is asked, figure by figure,
with what is unmeasured for want of a GPU, is in
[benchmarks.md](benchmarks.md#speed-and-memory-what-must-hold), as is fidelity per compute; what is
given where a share of the run or a PSNR is asked for is in [targets.md](targets.md). Times are
p20 / p50 / p80.

`make bench` measures what this machine can, `make bench-cuda` what needs a GPU. The latter is
reckoned to take nine minutes on an H200, with the denoisers at 350 TFLOP/s (a generation of
Flux.1-dev then takes 6 s, of Wan 2.1 1.3B 12 s), and is stopped after ten; what was measured by
then is kept. Without a network, install from wheels and run `python bench/on_cuda.py`."""

OVERHEAD = """\
`python bench/overhead_parts.py`: what diffcache itself takes of a step that it measures and does
not skip, in the loop of `bench/test_overhead.py`; each part's own processor time, without that of
the parts it calls. What a step costs more in all is in
[benchmarks.md](benchmarks.md#what-a-cache-that-never-skips-costs). It is not the sum: clocks cost
time too, others may use the machine (the shares suffer less), and once our code has run, the
model's own is no longer in the processor's caches. Needed are the torch calls that copy the value
and take two norms; diffusers, which costs less, compares one block's residual and measures no
output. On the stack most goes to the blocks at the ends of the lists, of which the first and last
tell what the list has added.

A wait as long as our code takes, in a loop that touches nothing, does not slow the model, and what
is quicker in a loop is often no quicker after a forward, where its code has left the caches.

The policy reckons with numbers: tensors of one entry a sample cost more than their arithmetic. What
the model itself calls is still warm: squares are summed by a product and a sum and not by `vecdot`.
Python calls were taken out of the path until what is left does something. The values of a history
in one buffer, so that a forecast is one torch call in place of three, are hardly quicker after a
forward, and numpy is slower there. Next to try: one copy for the lane and the evidence where
guidance mixes no branches; evidence and decision in one compiled function."""


def by_machine(heads: list[str], rows: list[Row], cells: Callable[[Row], list]) -> list[str]:
    """A table of `rows` for each machine that measured some, under its name."""
    machines: dict[str | None, list[Row]] = {}
    for row in rows:
        machines.setdefault(row["gpu"], []).append(row)
    parts = []
    for each in machines.values():
        parts += [where(each[-1]) + ".", table(heads, map(cells, each))]
    return parts


def _rounds(row: Row) -> int:
    return row.get("rounds", ROUNDS)


def speedup(rows: list[Row]) -> list[str]:
    found = newest(rows, "model", "site", "library", "gpu")
    done = [row for row in found if "refused" not in row]
    refused = [row for row in found if "refused" in row]
    heads = ["model", "site", "library", "plain, s", "ideal, s", "seconds", "speed-up", "realised"]

    def cells(row: Row) -> list:
        return [
            f"{row['model']} ({row['parameters'] / 1e6:.0f} M, {row['dtype']})",
            row["site"],
            row["library"],
            format(row["plain_s_p50"], ".3f"),
            format(row["ideal_s_p50"], ".3f"),
            quantiles(row, "seconds", ".3f"),
            quantiles(row, "speedup", ".2f"),
            quantiles(row, "realised", ".3f"),
            _rounds(row),
        ]

    here = sorted({_rounds(row) for row in done if not row["gpu"]})
    on_cpu = f"{' or '.join(map(str, here))} on a CPU, " if here else ""
    parts = [
        "## Realised speed-up",
        "`pytest bench/test_speedup.py`: full pipelines, random weights, every other step "
        "computed. The ideal is measured in the same rounds: the plain pipeline, in which the "
        "modules that a site bypasses give what they last gave, at once. Realised is the ideal's "
        "time over the library's, and a library that bypasses more than our site does may pass 1: "
        "MagCache also leaves out the first block. diffusers' FirstBlockCache is not here: nothing "
        "but its threshold decides, and no threshold computes every other step. Quantiles are over "
        f"rounds, in which all take turns: {on_cpu}2 to 7 on a GPU as time allows.",
        *by_machine([*heads, "rounds"], done, cells),
    ]
    refusals = [f"- {r['library']} on {r['model']}: {r['refused']}" for r in refused]
    return parts + (["Refused:", "\n".join(refusals)] if refusals else [])


def costs(results: Results) -> list[str]:
    """Where the time of a call at tolerance 0 goes, and what to try next."""
    parts = ["## What a call at tolerance 0 costs", OVERHEAD]
    if rows := newest(results["overhead_parts"], "model", "part"):
        total: dict[str, float] = {}
        for row in rows:
            total[row["model"]] = total.get(row["model"], 0.0) + row["us_p50"]
        heads = ["model", "part", "microseconds a step", "share"]

        def cells(row: Row) -> list:
            share = row["us_p50"] / total[row["model"]]
            return [row["model"], row["part"], quantiles(row, "us", ".1f"), f"{share:.0%}"]

        parts += by_machine(heads, rows, cells)
    return parts


def kernels(results: Results) -> list[str]:
    found = newest(results["kernels"], "kernel", "latents", "device", "clock")
    heads = ["kernel", "latents", "device", "clock", "ours", "eager", "compiled", "launches"]

    def cells(row: Row) -> list:
        columns = ("ours_us", "eager_us", "compiled_us")
        named = [row["kernel"], row["latents"], row["device"], row["clock"]]
        figures = [quantiles(row, column, ".1f") for column in columns]
        return [*named, *figures, row.get("launches") or ""]

    parts = [
        "## Kernels",
        "`pytest bench/test_kernels.py`: bf16, microseconds a call. On the CPU the torch twins "
        "run, and nothing is asked of them but to be right. `wall` is a loop of calls, `device` "
        "the same calls queued ahead of the device. The relative change of two tensors is "
        "`latent_difference` of two.",
        *by_machine(heads, found, cells),
    ]
    if large := newest(results["bandwidth"], "kernel"):
        heads = ["kernel", "MiB moved", "GB/s", "copy, GB/s"]
        speeds = [
            [row["kernel"], row["mib"]]
            + [quantiles(row, name, ".0f") for name in ("gb_s", "copy_gb_s")]
            for row in large
        ]
        parts.append(table(heads, speeds))
    return parts


def lagged(rows: list[Row]) -> list[str]:
    parts = [
        "## Waiting for the device",
        "`report.host_reads` counts how often a generation waited for a value of the denoiser's "
        "device, on the CPU too. `tests/runtime/test_host_reads.py` holds it to one a denoiser "
        "call, and to none with a static mask or with `wrap(pipe, lagged=True)`. It does not count "
        "the timetable, which is read when the pipeline sets it, nor that a host two steps ahead "
        "of the device waits for the older one's evidence. Once in the life of a wrapped pipeline "
        "the first mixed step of a batch is computed in full as well, and compared, which is one "
        "read, or two with guidance branches in the batch; and a pipeline that makes a new "
        "timestep for each guidance branch (Flux with true guidance) has one read in the first "
        "step of each generation, static masks and lagged evidence included; "
        "a loop of one's own that makes a new timestep for each call has one a call. "
        "Conditioning that a pipeline rebuilds in each step is compared by value, a read a tensor.",
        "`python bench/lagged.py`: `adaptive` on the tiny trained pipelines, the 32 tuning prompts "
        "in one batch. PSNR against the full run, mean / 5th percentile.",
    ]
    heads = ["cell", "tolerance", "evidence", "compute", "PSNR, dB", "reads"]

    def cells(row: Row) -> list:
        return [
            row["cell"],
            row["tolerance"],
            "lagged" if row["lagged"] else "exact",
            format(row["compute"], ".3f"),
            f"{row['psnr']:.1f} / {row['psnr_p5']:.1f}",
            row["host_reads"],
        ]

    found = newest(rows, "cell", "tolerance", "lagged")
    return [*parts, *(by_machine(heads, found, cells) or [UNMEASURED])]


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
    parts += by_machine(heads, shown, lambda row: [row.get(c, "") for c in columns])
    refusals = [f"- {r['method']} on {r['model']}: {r['refused']}" for r in found if "refused" in r]
    return parts + (["Not measured:", "\n".join(refusals)] if refusals else [])


def document(results: Results) -> str:
    """The text of `docs/speed.md`."""
    parts = [
        "# Speed and memory",
        ABOUT,
        *speedup(results["speedup"]),
        *costs(results),
        *kernels(results),
        *lagged(results["lagged"]),
        *memory(results["memory"]),
    ]
    return "\n\n".join(parts) + "\n"


def write(folder: Path, docs: Path) -> None:
    """Writes `speed.md`, and what is asked of speed in `benchmarks.md`, from files in `folder`."""
    results = read(folder)
    (docs / "speed.md").write_text(document(results))
    asked.put_into(docs / "benchmarks.md", results)


if __name__ == "__main__":
    write(RESULTS, DOCS)
