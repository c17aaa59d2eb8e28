"""The table and the plot of saved results of `pareto.py`."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

TARGETS = {50: (1 / 2, 1 / 3), 28: (1 / 2, 0.4)}
FAMILIES = ("fewer steps", "adaptivediffusion", "interval", "adaptive")
COLOURS = {
    "fewer steps": "#888888",
    "adaptivediffusion": "#d08a2e",
    "interval": "#4a7fb5",
    "adaptive": "#b5302a",
}


def newest(path: Path) -> dict[str, dict[str, list[dict]]]:
    """Rows by cell and family; a later row of one setting replaces an earlier one."""
    latest: dict[tuple, dict] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        latest[row["cell"], row["family"], row["setting"]] = row
    grouped: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in latest.values():
        grouped[row["cell"]][row["family"]].append(row)
    for families in grouped.values():
        for rows in families.values():
            rows.sort(key=lambda row: row["compute"])
    return grouped


def at(rows: list[dict], compute: float, figure: str) -> float | None:
    """`figure` at a share of compute, linear between measured settings; None outside of them."""
    shares = [row["compute"] for row in rows]
    if not rows or not min(shares) <= compute + 0.005 or not compute - 0.005 <= max(shares):
        return None
    return float(np.interp(compute, shares, [row[figure] for row in rows]))


def table(grouped: dict) -> str:
    """Markdown: at each target, each family's figures in each cell."""
    lines = [
        "| cell | compute | method | PSNR mean | PSNR p5 | PSNR of mean error | captions matched |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell, families in grouped.items():
        full = families["full"][0]
        lines.append(f"| {cell} | 1.00 | full | | | | {full['match']:.0%} |")
        for target in TARGETS[int(cell.rsplit("-", 1)[1])]:
            for family in FAMILIES:
                figures = [
                    at(families[family], target, name)
                    for name in ("psnr", "psnr_p5", "psnr_of_mean_error", "match")
                ]
                if figures[0] is not None:
                    shown = " | ".join(f"{value:.1f}" for value in figures[:3])
                    lines.append(
                        f"| {cell} | {target:.2f} | {family} | {shown} | {figures[3]:.0%} |"
                    )
    return "\n".join(lines)


def plot(grouped: dict, path: Path) -> None:
    """One panel a cell: mean PSNR as a line, the 5th percentile dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 4
    rows = -(-len(grouped) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.3 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(grouped) :]:
        axis.axis("off")
    for axis, (cell, families) in zip(axes.flat, grouped.items(), strict=False):
        for family in FAMILIES:
            found = families[family]
            shares = [row["compute"] for row in found]
            colour = COLOURS[family]
            axis.plot(
                shares, [row["psnr"] for row in found], "o-", ms=3, color=colour, label=family
            )
            axis.plot(shares, [row["psnr_p5"] for row in found], "--", lw=1, color=colour)
        axis.set(title=cell, xlim=(0.18, 0.8), xlabel="share of row-steps computed")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("PSNR to the full run, dB")
    axes.flat[0].legend(fontsize=8, title="mean (dashed: 5th percentile)", title_fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def overhead_table(path: Path) -> str:
    """Markdown: the newest row of each library in the overhead bench."""
    latest = {row["library"]: row for row in map(json.loads, path.read_text().splitlines())}
    lines = [
        "| | denoiser call, ms (p20 / p50 / p80) | added to plain call and step, ms |",
        "|---|---|---|",
    ]
    for library, row in latest.items():
        call = " / ".join(f"{row[f'call_ms_p{q}']:.3f}" for q in (20, 50, 80))
        added = " / ".join(f"{row[f'added_ms_p{q}']:+.3f}" for q in (20, 50, 80))
        lines.append(f"| {library} | {call} | {added} |")
    return "\n".join(lines)


def where(row: dict) -> str:
    """The machine and the versions of a result."""
    return (
        f"{row['cpu']}, {row['threads']} threads, torch {row['torch']}, diffusers "
        f"{row['diffusers']}, {row['date']}"
    )


def write(results: Path, folder: Path) -> None:
    """Prints the table, and writes `benchmarks.md` and the plot into `folder`."""
    grouped = newest(results / "pareto.jsonl")
    text = table(grouped)
    print(text)
    sample = next(iter(next(iter(grouped.values())).values()))[0]
    parts = [
        "# Measurements",
        "Everything here is made from files under `bench/results/`, which carry the machine and "
        "the versions.",
        "## Fidelity per compute on the tiny trained pipelines",
        f"`python bench/pareto.py`: {sample['prompts']} held-out prompts, {where(sample)}. PSNR in "
        "float against the full run, capped at 60 dB a picture; figures between measured settings "
        "are interpolated linearly, and a family without a row never reached that share of "
        "compute. `adaptivediffusion` decides for single prompts, as published.",
        "![PSNR against compute](pareto.png)",
        text,
    ]
    overhead = results / "overhead.jsonl"
    if overhead.exists():
        last = json.loads(overhead.read_text().splitlines()[-1])
        parts += [
            "## What a cache that never skips costs",
            "`pytest bench/test_overhead.py`: a FluxTransformer2DModel of 2 + 2 blocks, each "
            f"library in a live process of its own, generations taking turns; {where(last)}. "
            "`skip` is a call that diffcache forecasts.",
            overhead_table(overhead),
        ]
    (folder / "benchmarks.md").write_text("\n\n".join(parts) + "\n")
    plot(grouped, folder / "pareto.png")
