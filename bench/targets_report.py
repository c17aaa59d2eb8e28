"""`docs/targets.md` and its plot, from saved results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from rows import load, where

PARTS = ("compute", "tune", "same", "rows")
DEFAULT = 0.08
"""The tolerance that one is measured at."""

SURE = 0.9
NEAR = 0.05
DEARER = 1.2
BAND = 3.0
SKIPPED = 0.4
BEHIND = 1.0
APART = 0.13
"""Between methods in the plot, of the distance of two cells."""

SERVED = 8
"""Pictures a batch where `compute_rows` is measured."""

OURS = "adaptive"
HELD_AT = ("28", "50")
"""Steps at which one tolerance has to give one fidelity; it is reported at others."""

KEYS = ("part", "cell", "method", "asked", "tuned_on", "by", "rows")


def newest(path: Path) -> dict[str, list[dict]]:
    """Rows by part; a later row of the same thing replaces an earlier one."""
    latest = {}
    for row in load(path):
        latest[tuple(row.get(key) for key in KEYS)] = row
    grouped: dict[str, list[dict]] = {part: [] for part in PARTS}
    for row in latest.values():
        grouped[row["part"]].append(row)
    return grouped


def _verdict(holds: bool) -> str:
    return "holds" if holds else "**fails**"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _decibels(row: dict) -> str:
    return f"{row['psnr']:.1f} / {row['psnr_p5']:.1f}"


def share_table(rows: list[dict]) -> str:
    """Markdown: what `compute=` gave, of all pictures and of the farthest one."""
    found = []
    for row in rows:
        off = max((row[key] / row["asked"] - 1 for key in ("compute", "least", "most")), key=abs)
        computed = (f"{row[key]:.3f}" for key in ("compute", "least", "most"))
        found.append(
            [
                row["cell"],
                str(row["prompts"]),
                f"{row['asked']:.2f}",
                *computed,
                f"{off:+.1%}",
                _decibels(row),
                _verdict(abs(off) <= NEAR),
            ]
        )
    heads = ["cell", "pictures", "asked", "computed", "least", "most", "farthest off", "PSNR", ""]
    return _table(heads, found)


def tune_table(rows: list[dict]) -> str:
    """Markdown: how many unseen pictures reach a PSNR tuned for, and at what cost."""
    found = []
    for row in rows:
        times = row["compute"] / row["cheapest_compute"]
        found.append(
            [
                row["cell"],
                str(row["prompts"]),
                f"{row['asked']:g} dB",
                f"{row['tuned_on']} prompts, {row['tuned_pictures']} pictures",
                f"{row['tolerance']:.3f}",
                f"{row['met']:.0%}",
                f"{row['compute']:.3f}",
                f"{row['cheapest']:.3f}",
                f"{row['cheapest_compute']:.3f}",
                f"{times:.2f}",
                _verdict(row["met"] >= SURE and times <= DEARER),
            ]
        )
    heads = ["cell", "pictures", "asked", "tuned on", "tolerance found", "met", "compute"]
    return _table([*heads, "cheapest tolerance", "its compute", "times the cheapest", ""], found)


def spread(rows: list[dict], method: str, steps: tuple[str, ...] = HELD_AT) -> tuple[float, float]:
    """Half the span of a method's mean PSNR over the cells of these `steps`, and its middle."""
    values = [
        row["psnr"]
        for row in rows
        if row["method"] == method and row["cell"].rsplit("-", 1)[1] in steps
    ]
    return (max(values) - min(values)) / 2, (max(values) + min(values)) / 2


def same_table(rows: list[dict]) -> str:
    """Markdown: a line a cell, a column a method at its default."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    by = {(row["cell"], row["method"]): row for row in rows}
    found = []
    for cell in cells:
        line = [cell]
        for method in methods:
            row = by.get((cell, method))
            line.append("" if row is None else f"{_decibels(row)} at {row['compute']:.2f}")
        found.append(line)
    last = [f"**middle and half the span, {' and '.join(HELD_AT)} steps**"]
    for method in methods:
        half, middle = spread(rows, method)
        last.append(f"{middle:.1f} ± {half:.1f}")
    return _table(["cell", *methods], [*found, last])


def rows_table(rows: list[dict]) -> str:
    """Markdown: `compute_rows` beside decisions that are free for each picture."""
    found = []
    for row in (row for row in rows if row["rows"] is not None):
        free = sorted(
            (r["compute"], r["psnr"])
            for r in rows
            if r["rows"] is None and (r["cell"], r["by"]) == (row["cell"], row["by"])
        )
        expected = float(np.interp(row["compute"], *zip(*free, strict=True)))
        behind = expected - row["psnr"]
        met = row["by"] == "tolerance" or row["compute"] <= (1 + NEAR) * row["asked"]
        shapes = set(row["sizes"]) <= {0, row["rows"], SERVED}
        found.append(
            [
                row["cell"],
                str(row["prompts"]),
                f"{row['by']}={row['asked']:g}",
                str(row["rows"]),
                ", ".join(map(str, row["sizes"])),
                f"{row['compute']:.3f}",
                _decibels(row),
                f"{expected:.1f}",
                f"{behind:+.1f}",
                _verdict(shapes and met and behind <= BEHIND),
            ]
        )
    heads = ["cell", "pictures", "asked", "K", "computed at once", "compute", "PSNR"]
    return _table([*heads, "PSNR, free", "behind", ""], found)


def plot(rows: list[dict], path: Path) -> None:
    """Mean PSNR of each method at its default over the cells, by steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def place(row: dict) -> tuple[int, str]:
        kind, steps = row["cell"].rsplit("-", 1)
        return int(steps), kind

    cells = sorted({place(row) for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(2, 1, figsize=(10, 6), sharex=True, layout="constrained")
    palette = ["#c0261f", "#7f9fc4", "#444444", "#8fb58a", "#c9a24b"]
    styles = dict(zip(methods, zip(palette, "osD^v", strict=True), strict=False))
    for axis, key in zip(axes, ("psnr", "compute"), strict=True):
        for number, (method, (colour, marker)) in enumerate(styles.items()):
            # Beside each other, as some give the same; no lines, as not all were run in each cell.
            aside = APART * (number - (len(styles) - 1) / 2)
            points = [
                (cells.index(place(row)) + aside, row[key])
                for row in rows
                if row["method"] == method
            ]
            axis.plot(
                *zip(*points, strict=True), ls="", marker=marker, ms=7 if method == OURS else 5,
                color=colour, label=method,
            )  # fmt: skip
        axis.grid(alpha=0.25)
    middle, asked = spread(rows, OURS)[1], f"{OURS} at {' and '.join(HELD_AT)} steps"
    axes[0].axhspan(middle - BAND, middle + BAND, color="#c0261f", alpha=0.1, lw=0)
    axes[0].set_title(f"shaded: asked of {asked}, ±{BAND:g} dB", fontsize=8, loc="right")
    axes[0].set(ylabel="mean PSNR, dB")
    figure.suptitle("One setting everywhere", fontsize=12)
    axes[1].axhline(1 - SKIPPED, color="#444444", ls="--", lw=1)
    axes[1].set_title(f"dashed: asked of {asked}, at most {1 - SKIPPED:g}", fontsize=8, loc="right")
    axes[1].set(ylabel="share computed", ylim=(0, 1.05))
    axes[1].set_xticks(range(len(cells)), [f"{kind}\n{steps}" for steps, kind in cells], fontsize=7)
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, ncol=5, loc="outside lower center"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _shares(rows: list[dict], folder: Path) -> list[str]:
    return [
        "## A share of the run",
        f"`wrap(pipe, compute=…)`: the share of row-steps computed is to be within {NEAR:.0%} of "
        "what was asked, in the mean and for each picture.",
        share_table(rows),
    ]


def _tuned(rows: list[dict], folder: Path) -> list[str]:
    return [
        "## A PSNR",
        "`tune(pipe, prompts, psnr=…)` on tuning prompts, a `tolerance` for pictures one by one: "
        f"{SURE:.0%} of the unseen ones are to reach the PSNR, at no more than {DEARER:g} times "
        "the row-steps of the cheapest setting with which they do, which a search among "
        "tolerances finds on the unseen pictures themselves.",
        tune_table(rows),
    ]


def _range(counts: set[int]) -> str:
    return " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "none"


def _same(rows: list[dict], folder: Path) -> list[str]:
    plot(rows, folder / "targets.png")
    half, middle = spread(rows, OURS)
    worst = max(
        row["compute"]
        for row in rows
        if row["method"] == OURS and row["cell"].rsplit("-", 1)[1] in HELD_AT
    )
    said = "holds" if half <= BAND and worst <= 1 - SKIPPED else "**does not hold**"
    counts = {row["prompts"] for row in rows if row["method"] == OURS}
    theirs = {row["prompts"] for row in rows if row["method"] != OURS}
    return [
        "## One tolerance everywhere",
        f"`wrap(pipe)` at its default tolerance of {DEFAULT:g}, {_range(counts)} pictures, is to "
        f"give a mean PSNR within ±{BAND:g} dB over all schedulers and both pipelines, from 28 to "
        f"50 steps, and to skip {SKIPPED:.0%}. It {said}: {middle:.1f} ± {half:.1f} dB, the middle "
        f"of these cells' means and half their span, skipping at least {1 - worst:.0%}. Beside it, "
        f"threshold rules at their published defaults on {_range(theirs)} of the prompts. PSNR at "
        "the share of the steps that was computed (a skipped step still computes a first block in "
        "`fbcache`); few skips meet the cap.",
        "![One setting everywhere](targets.png)",
        same_table(rows),
    ]


def _sized(rows: list[dict], folder: Path) -> list[str]:
    return [
        "## A fixed number of rows",
        f"`wrap(pipe, compute_rows=K)` in batches of {SERVED}: no number of pictures but 0, K and "
        f"{SERVED}; with `compute=` no more than what was asked for by {NEAR:.0%}; a mean PSNR at "
        f"most {BEHIND:g} dB under decisions that are free for each picture, at equal compute "
        "(interpolated between tolerances). With `compute=` a step costs every picture the same "
        "part of what is left, so that nearly always all of a batch are computed, or none.",
        rows_table(rows),
    ]


_SECTIONS: dict[str, Callable[[list[dict], Path], list[str]]] = {
    "compute": _shares,
    "tune": _tuned,
    "same": _same,
    "rows": _sized,
}


def write(results: Path, folder: Path) -> None:
    """Writes `targets.md` and its plot into `folder`, from the parts that were measured."""
    grouped = newest(results / "targets.jsonl")
    last = next(rows[-1] for rows in grouped.values() if rows)
    parts = [
        "# What is asked for, and what is given",
        f"`python bench/targets.py`: {where(last)}, on prompts that nothing was tuned on, one a "
        "picture. PSNR is mean / 5th percentile, capped at 60 dB a picture. "
        "Fidelity per compute beside other methods is in [benchmarks.md](benchmarks.md).",
    ]
    for part, rows in grouped.items():
        if rows:
            parts += _SECTIONS[part](rows, folder)
    (folder / "targets.md").write_text("\n\n".join(parts) + "\n")
