"""The tables and the plots of saved results: `docs/benchmarks.md` and pictures beside it."""

from __future__ import annotations

from pathlib import Path

import asked
import oracle_report
import pareto_plot
import verdicts
import visibly
import walltime_report
from envelope import (
    FEWER,
    FIGURES,
    FLOOR,
    FULL,
    OURS,
    RIVALS,
    TARGETS,
    Families,
    Rival,
    at,
    chosen,
    newest,
    reached,
)
from rows import load, read, shown, where

TRUTH_AT = 0.50
SHOWN = ("unet-ddim-28", "unet-dpm-28", "unet-euler-28", "dit-flow-28")
SHOWN_AT = (0.35, 0.50)
"""What README shows of it."""


def _truth(row: dict | None) -> list[str]:
    """Captions matched, Fréchet distance with intervals where it has them, SSIM, mean error."""
    if row is None:
        return [""] * 4
    match = f"{row['match']:.0%}"
    if "match_ci" in row:
        match += " ({:.0%} to {:.0%})".format(*row["match_ci"])
    far = ""
    if "frechet" in row:
        far = "{:.2f} ({:.2f} to {:.2f})".format(row["frechet"], *row["frechet_ci"])
    apart = [shown(row.get("ssim"), ".3f"), shown(row.get("psnr_of_mean_error"), ".1f")]
    return [match, far, *apart]


def cell_table(families: Families) -> str:
    """Markdown: the envelope of each family of a cell, the best at half the compute first."""
    heads = [f"{target:.2f}" for target in TARGETS]
    measures = ("captions", "Fréchet", "SSIM", "PSNR of the mean error")
    truth = [f"{measure} at {TRUTH_AT:.2f}" for measure in measures]
    lines = [
        f"| | {' | '.join(heads + truth)} |",
        "|---" * (1 + len(heads) + len(truth)) + "|",
        f"| full | {' | '.join([''] * len(heads) + _truth(families[FULL][0]))} |",
    ]
    for row in families.get(FLOOR, []):
        values = f"{row['psnr']:.1f} / {row['psnr_p5']:.1f}"
        cells = [values] * len(heads) + _truth(row)
        lines.append(f"| noise floor: {row['setting']} | {' | '.join(cells)} |")
    names = [name for name in families if name not in (FULL, FLOOR)]
    names.sort(key=lambda name: -(at(families[name], TRUTH_AT, "psnr") or 0))
    for name in names:
        found = [[at(families[name], target, figure) for figure in FIGURES] for target in TARGETS]
        cells = ["" if None in pair else "{:.1f} / {:.1f}".format(*pair) for pair in found]
        if any(cells):
            cells += _truth(chosen(families[name], TRUTH_AT))
            title = f"**{name}**" if name == OURS else name
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(grouped: dict[str, Families]) -> str:
    """Markdown: README's table, the default beside the best of each kind of rival."""
    names = {"unet": "UNet", "dit": "DiT"}
    schedulers = {"ddim": "DDIM", "dpm": "DPM++ 2M", "euler": "Euler", "flow": "flow matching"}
    lines = [
        f"| | compute | {' | '.join(rival.name for rival in RIVALS[:-1])} | `{OURS}` |",
        "|---" * (2 + len(RIVALS)) + "|",
    ]
    for cell in SHOWN:
        pipeline, scheduler, steps = cell.split("-")
        for target in SHOWN_AT:
            cells = [_best(grouped[cell], rival, target) for rival in RIVALS[:-1]]
            ours = [at(grouped[cell][OURS], target, figure) for figure in FIGURES]
            title = f"{names[pipeline]}, {schedulers[scheduler]}, {steps} steps"
            line = [title, f"{target:.2f}", *cells, "**{:.1f} / {:.1f}**".format(*ours)]
            lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def _best(families: Families, rival: Rival, target: float) -> str:
    """The family of a rival with the best mean at a share of compute, both figures of it."""
    found = reached(families, rival, target, FIGURES[0])
    name = max(found, key=found.get, default=None)
    if name is None:
        return "costs more"
    values = "{:.1f} / {:.1f}".format(*(at(families[name], target, f) for f in FIGURES))
    return values if name == FEWER else f"{values} ({name})"


def overhead_table(path: Path) -> str:
    """Markdown: the newest row of each library and model in the overhead bench."""
    rows = [row for row in load(path) if "blocks" in row]
    latest = {(row["library"], row["blocks"]): row for row in rows}
    lines = [
        "| | blocks | denoiser call, ms (p20 / p50 / p80) | added to plain call and step, ms |",
        "|---|---|---|---|",
    ]
    for (library, blocks), row in latest.items():
        call = " / ".join(f"{row[f'call_ms_p{q}']:.3f}" for q in (20, 50, 80))
        added = " / ".join(f"{row[f'added_ms_p{q}']:+.3f}" for q in (20, 50, 80))
        lines.append(f"| {library} | {blocks} | {call} | {added} |")
    return "\n".join(lines)


def _pareto(grouped: dict[str, Families]) -> list[str]:
    last = max((f[FULL][0] for f in grouped.values()), key=lambda row: row["date"])
    parts = [
        "## Fidelity and truth per compute on the tiny trained pipelines",
        f"`python bench/pareto.py`: {last['prompts']} held-out prompts, {where(last)}. Compute is "
        "the share of the full run's FLOPs in the denoiser, by torch's counter. PSNR is taken in "
        "float against the full run and capped at 60 dB a picture: mean / 5th percentile over "
        "pictures. A family is shown by its envelope: the best of its settings at no more than "
        "that compute, interpolated between settings; blank where all of them cost more, or it was "
        "not measured there. Mean and 5th percentile are each of an envelope of their own, so that "
        "a pair need not be that of one setting; README names the family that is best by mean. "
        "Peers are their own packages; AdaptiveDiffusion has none, and "
        "`adaptivediffusion` is its released rule, tested against the algorithm written out. Rules "
        "that decide for a whole batch generate one picture at a time. Captions: the share of "
        "pictures that show what their prompt says; Fréchet: distance to scenes really drawn from "
        "the prompts, in counted objects and colours (`bench/figures.py`), to be compared with "
        "the full run's; both, with SSIM and the PSNR of the squared error averaged over pictures, "
        "of the best setting at no more than half the compute, with 95 % bootstrap intervals over "
        "prompts. Wall time is a table of its own, further down: rows of these were measured at "
        "different hours, on a host whose speed changes twofold.",
        "The noise floor is PSNR between full runs that nobody would tell apart: other batch, "
        "bf16 autocast, 250 steps in place of the cell's (for the 1000 of a long run, at a "
        "quarter of the cost). Fidelity beyond it is worth nothing.",
        "![Mean PSNR against compute](pareto.png)",
        "![5th percentile of PSNR against compute](pareto_p5.png)",
        "### What must hold",
        "`adaptive` above its rivals in dB, mean / 5th percentile, over the best of each kind, "
        "which is named: the best by mean, then the best by 5th percentile if that is another. It "
        "fails (bold) where the margin is smaller than asked and `adaptive` is "
        "below the noise floor (bf16 against fp32; the cap where that is not measured), or where "
        "it surely (95 % bootstrap interval of the difference, over prompts) matches fewer "
        "captions than the full run, or is farther from real scenes. Why, and what was tried, is "
        "in [design.md](design.md#a-quarter-of-the-run).",
        verdicts.table(grouped),
        verdicts.count(grouped),
        "### Visibly the same",
        f"The least compute at which a family has a setting of {visibly.LEAST:g} dB or more in the "
        "mean that surely matches no fewer captions than the full run, nor is farther from real "
        "scenes (as above). The default tolerance of `wrap(pipe)` asks for more "
        "([targets.md](targets.md)), since a mean of 35 leaves pictures that turn out others.",
        visibly.table(grouped),
    ]
    for cell, families in grouped.items():
        parts += [f"### {cell}", cell_table(families)]
    return parts


def _overhead(path: Path) -> list[str]:
    rows = load(path)
    last, small = rows[-1], [row for row in rows if row.get("blocks") == 4]
    ours, theirs = (
        [f"{row['added_ms_p50']:.3f}" for row in small if row["library"] == name]
        for name in ("adaptive", "cache-dit")
    )
    runs = [" and ".join(run) for run in zip(ours, theirs, strict=True)]
    return [
        "## What a cache that never skips costs",
        "`pytest bench/test_overhead.py`: a narrow FluxTransformer2DModel of 2 + 2 or 19 + 38 "
        "blocks, each library in a process of its own, in turns of four generations (off, "
        f"on, on, off), processes taking turns at a second of them; {where(last)}. `adaptive` is "
        "on the output site and `stack` the same on the block stack, both at tolerance 0; `skip` "
        "is a call that diffcache forecasts. "
        "Issues ask for 0.10 ms, 0.25 ms and, for the skipped call, 0.3 ms. Quantiles far apart "
        "come from a machine that others used at the time, and so do runs that are: `adaptive` and "
        f"cache-dit on 4 blocks in the last four of them, the newest last: {'; '.join(runs[-4:])} "
        "ms.",
        overhead_table(path),
    ]


def _batches(path: Path) -> list[str]:
    rows = load(path)
    latest = {(row["site"], row["gpu"]): row for row in rows}
    lines = [
        "| site | mixed call, ms | plain forward of the half, ms | speed (p20 / p50 / p80) |",
        "|---|---|---|---|",
    ]
    for (site, gpu), row in latest.items():
        site = f"{site}, {gpu}" if gpu else site
        speed = " / ".join(f"{row[f'speed_p{q}']:.2f}" for q in (20, 50, 80))
        lines.append(f"| {site} | {row['mixed_ms']} | {row['gathered_ms']} | {speed} |")
    last = next(reversed(latest.values()))
    return [
        "## What half of a batch costs",
        f"`pytest bench/test_batches.py`: calls that compute half of a batch of {last['batch']}, "
        f"each followed by a plain forward of that half; {where(last)}. The speed is to be 0.9.",
        "\n".join(lines),
    ]


def write(results: Path, folder: Path) -> None:
    """Prints the verdicts, and writes `benchmarks.md` and the plots into `folder`."""
    grouped = {c: f for c, f in newest(results / "pareto.jsonl").items() if f.get(FULL)}
    print(verdicts.table(grouped))
    parts = [
        "# Measurements",
        "Everything here is made from files under `bench/results/`, which carry the machine and "
        "the versions. What is given where a share of the run, a PSNR or a number of rows is asked "
        "for is in [targets.md](targets.md); kernels, realised speed-up, waiting for the device "
        "and memory are in [speed.md](speed.md).",
        asked.section(read(results)).rstrip(),
        *_pareto(grouped),
    ]
    if (walltime := results / "walltime.jsonl").exists():
        parts += walltime_report.section(walltime, grouped)
    if (oracle := results / "oracle.jsonl").exists():
        parts += oracle_report.section(oracle, folder)
    if (overhead := results / "overhead.jsonl").exists():
        parts += _overhead(overhead)
    if (batches := results / "batches.jsonl").exists():
        parts += _batches(batches)
    (folder / "benchmarks.md").write_text("\n\n".join(parts) + "\n")
    pareto_plot.plot(grouped, "psnr", folder / "pareto.png")
    pareto_plot.plot(grouped, "psnr_p5", folder / "pareto_p5.png")
