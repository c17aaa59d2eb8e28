"""The section of `docs/benchmarks.md` on the oracle, and its plot."""

from __future__ import annotations

from pathlib import Path

from rows import load

ALLOWED, ASKED_OF = 2.0, 12
"""The mean gap in dB that is asked for, of runs of so many steps."""

KINDS = ("oracle", "best fixed mask", "adaptive")


def newest(path: Path) -> dict[tuple, list[dict]]:
    """Rows by pipeline and steps; a later row of one point replaces an earlier one.

    Bounds that were measured before corrections, beside no newer `adaptive`, are left out.
    """
    latest: dict[tuple, dict] = {}
    for row in load(path):
        point = row.get("setting") if row["kind"] == "adaptive" else row["computed"]
        if point is None:
            continue
        latest[row["pipeline"], row["steps"], row["kind"], point] = row
    grouped: dict[tuple, list[dict]] = {}
    for (pipeline, steps, _, _), row in latest.items():
        grouped.setdefault((pipeline, steps), []).append(row)
    return {key: rows for key, rows in grouped.items() if any("setting" in row for row in rows)}


def table(rows: list[dict], asked: bool) -> str:
    """Markdown: the bounds at each number of computed steps, then `adaptive` and its gaps."""
    oracle, fixed, ours = (
        sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["computed"])
        for kind in KINDS
    )
    lines = [
        "| computed steps | oracle | best fixed mask | adaptive | gap, mean / p95 | |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {a['computed']} | {_pair(a)} | {_pair(b)} | | | |"
        for a, b in zip(oracle, fixed, strict=True)
    ]
    for row in ours:
        verdict = "" if not asked else "holds" if row["gap"] <= ALLOWED else "**fails**"
        gap = f"{row['gap']:.1f} / {row['gap_p95']:.1f}"
        lines.append(f"| {row['computed']:.1f} | | | {_pair(row)} | {gap} | {verdict} |")
    return "\n".join(lines)


def _pair(row: dict) -> str:
    return f"{row['psnr']:.1f} / {row['psnr_p5']:.1f}"


def plot(grouped: dict[tuple, list[dict]], path: Path) -> None:
    """One panel a pipeline and number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(grouped), figsize=(5 * len(grouped), 3.6), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    styles = (("#444444", "-", 1.5), ("#7f9fc4", "--", 1.5), ("#c0261f", "-", 2.6))
    for axis, ((pipeline, steps), rows) in zip(axes.flat, grouped.items(), strict=True):
        for kind, (colour, dash, width) in zip(KINDS, styles, strict=True):
            points = sorted((r["computed"], r["psnr"]) for r in rows if r["kind"] == kind)
            axis.plot(
                *zip(*points, strict=True), ls=dash, marker="o", ms=4, color=colour, lw=width,
                label=kind,
            )  # fmt: skip
        axis.set(title=f"{pipeline}, {steps} steps", xlabel="computed steps")
        axis.grid(alpha=0.25)
        axis.legend()
    axes[0, 0].set_ylabel("PSNR, dB")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def section(path: Path, folder: Path) -> list[str]:
    """Paragraphs of Markdown; the plot goes into `folder`."""
    grouped = newest(path)
    plot(grouped, folder / "oracle.png")
    first = next(iter(grouped.values()))[0]
    parts = [
        "## How near the controller is to an oracle",
        f"`python bench/oracle.py`: every mask that computes the first step, on "
        f"{first['samples']} samples, {first['date']}, with the forecast of `adaptive` and "
        "without guards. The oracle is each sample's best mask with at most as many computed "
        "steps; the best fixed mask is one for all samples. PSNR to the full run in dB, mean / "
        "5th percentile over samples. The gap is that of each sample to the oracle at its own "
        f"number of computed steps, and its mean should be at most {ALLOWED:g} dB in runs of "
        f"{ASKED_OF} steps.",
        "![The oracle](oracle.png)",
    ]
    for (pipeline, steps), rows in grouped.items():
        parts += [f"### {pipeline}, {steps} steps", table(rows, steps == ASKED_OF)]
    return parts
