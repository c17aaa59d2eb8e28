"""Envelopes against compute, one panel a cell."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from envelope import FEWER, FLOOR, OURS, RIVALS, Families, envelope, is_ours, kind

COLUMNS = 3
LABELS = {"psnr": "mean PSNR to the full run, dB", "psnr_p5": "5th percentile of PSNR, dB"}
KINDS = {
    FEWER: ("#444444", "--"),
    "threshold rules": ("#c9a26b", "-"),
    "fixed schedules with a forecast": ("#7f9fc4", "-"),
    "other": ("#b9b9b9", "-"),
}
"""Colour and dash of each kind of rival; its families differ in their markers."""

MARKERS = "osv^D<>Ph*Xd"
MUTED = {"lw": 1.2, "ms": 3.5}
FLOOR_DASHES = {"batch of 1": "-", "bf16": "--", "fp32": "--"}
STANDING_OUT = {"color": "#c0261f", "lw": 2.6, "ms": 5, "marker": "o", "zorder": 5}
ELSEWHERE = {"color": "#c0261f", "ls": "--", "marker": "o"}
"""Ours on another site."""


def _styles(families: set[str]) -> dict[str, dict]:
    """How each family is drawn, and ours where it does not stand out."""
    found = {family: ELSEWHERE for family in sorted(families) if is_ours(family)}
    for rival, (colour, dash) in zip(RIVALS, KINDS.values(), strict=True):
        own = sorted(family for family in families if kind(family) is rival)
        for family, marker in zip(own, cycle(MARKERS), strict=False):
            found[family] = {"color": colour, "ls": dash, "marker": marker}
    return found


def plot(grouped: dict[str, Families], figure: str, path: Path) -> None:
    """Writes the envelopes of `figure`, "psnr" or "psnr_p5", of all cells to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    styles = _styles({family for families in grouped.values() for family in families})
    rows = -(-len(grouped) // COLUMNS)
    sheet, axes = plt.subplots(
        rows, COLUMNS, figsize=(5 * COLUMNS, 3.6 * rows), squeeze=False, layout="constrained"
    )
    legend: dict = {}
    for axis in axes.flat[len(grouped) :]:
        axis.axis("off")
    for axis, (cell, families) in zip(axes.flat, grouped.items(), strict=False):
        for family, style in {**styles, OURS: STANDING_OUT}.items():
            if points := envelope(families.get(family, []), figure):
                (legend[family],) = axis.plot(*zip(*points, strict=True), **{**MUTED, **style})
        for row in families.get(FLOOR, []):
            dash = FLOOR_DASHES.get(row["setting"], ":")
            legend[f"{FLOOR}: {row['setting']}"] = axis.axhline(
                row[figure], color="#5b3f8c", lw=1, ls=dash, zorder=1
            )
        axis.set(title=cell, xlim=(0.15, 0.9), ylim=(15, 62), xlabel="share of FLOPs")
        axis.grid(alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel(LABELS[figure])
    sheet.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=5, fontsize=8)
    sheet.savefig(path, dpi=100)
    plt.close(sheet)
