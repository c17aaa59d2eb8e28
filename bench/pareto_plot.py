"""Envelopes against compute, one panel a cell."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from envelope import FEWER, FLOOR, OURS, RIVALS, Families, envelope, kind

COLUMNS = 3
LABELS = {"psnr": "mean PSNR to the full run, dB", "psnr_p5": "5th percentile of PSNR, dB"}
KINDS = {
    FEWER: {"color": "#444444", "marker": "s"},
    "threshold rules": {"color": "#c98a2b", "marker": "^"},
    "fixed schedules with a forecast": {"color": "#4f7fb8", "marker": "D"},
    "other": {"color": "#5f9e6e", "marker": "v"},
}
"""How the best of each kind of rival is drawn."""

SINGLE = {"lw": 0.7, "ms": 3, "alpha": 0.45, "marker": ".", "zorder": 1}
"""One family of a kind: there to be seen, and not to be told from the others."""

RED = "#c0261f"
OURS_ON = {
    OURS: {"color": RED, "lw": 2.6, "ms": 5, "marker": "o", "zorder": 5},
    f"{OURS}, block stack": {"color": RED, "ls": "--", "marker": "P", "zorder": 4},
    f"{OURS}, UNet branch": {"color": RED, "ls": ":", "marker": "X", "zorder": 4},
}
FLOOR_DASHES = {"batch of 1": "-", "bf16": "--", "fp32": "--"}
KEY = (
    "Thick: the settings that no cheaper one of their kind equals, joined. "
    "Thin: the same of each family."
)


def _drawn(families: Families, figure: str) -> list[tuple[str | None, list[tuple], dict]]:
    """The lines of a panel: their names, None of single families, points and styles."""
    found = []
    for rival in RIVALS:
        own, style = [rows for f, rows in families.items() if kind(f) is rival], KINDS[rival.name]
        if len(own) > 1:
            thin = {**SINGLE, "color": style["color"]}
            found += [(None, envelope(rows, figure), thin) for rows in own]
        found.append((rival.name, envelope(chain.from_iterable(own), figure), style))
    for family, style in OURS_ON.items():
        found.append((family, envelope(families.get(family, []), figure), style))
    return [line for line in found if line[1]]


def plot(grouped: dict[str, Families], figure: str, path: Path) -> None:
    """Writes the envelopes of `figure`, "psnr" or "psnr_p5", of all cells to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(grouped) // COLUMNS)
    sheet, axes = plt.subplots(
        rows, COLUMNS, figsize=(5 * COLUMNS, 3.8 * rows), squeeze=False, layout="constrained"
    )
    sheet.get_layout_engine().set(h_pad=0.12)
    legend: dict = {}
    for axis in axes.flat[len(grouped) :]:
        axis.axis("off")
    for axis, (cell, families) in zip(axes.flat, grouped.items(), strict=False):
        for name, points, style in _drawn(families, figure):
            (line,) = axis.plot(*zip(*points, strict=True), **{"lw": 1.6, "ms": 4, **style})
            if name is not None:
                legend[name] = line
        for row in families.get(FLOOR, []):
            dash = FLOOR_DASHES.get(row["setting"], ":")
            legend[f"{FLOOR}: {row['setting']}"] = axis.axhline(
                row[figure], color="#7b5fb0", lw=1, ls=dash, zorder=1
            )
        axis.set(title=cell, xlim=(0.05, 1.02), ylim=(12, 62), xlabel="share of FLOPs")
        axis.grid(alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel(LABELS[figure])
    order = [*OURS_ON, *KINDS]
    names = sorted(legend, key=lambda name: order.index(name) if name in order else len(order))
    sheet.legend(
        [legend[name] for name in names], names, title=KEY, loc="outside lower center", ncols=4
    )  # fmt: skip
    sheet.savefig(path, dpi=100)
    plt.close(sheet)
