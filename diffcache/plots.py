"""Grids of pictures with · without · difference · timeline, drawn by matplotlib."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .comparison import Comparison, Row, still
from .metrics import CAP, channels_last

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPUTED, SKIPPED = "#1f4e79", "#dfe6ee"
INK, MUTED = "#1b1f24", "#6b7480"
AMPLIFICATIONS = (1, 2, 5, 10, 20, 50, 100)
INCHES = 1.15
"""Side of a picture."""
TIMELINE_INCHES = 3.3
HEADER_INCHES = 1.05
MARGIN_INCHES = 0.3
TITLE_CHARACTERS = 58
"""What fits a panel's width in full size."""
SHOWN = 8


@dataclass(frozen=True, eq=False)
class Panel:
    """One method on one pipeline.

    Attributes:
        title: the headline.
        subtitle: one or two lines under it.
        prompts: one a row.
        remarks: one a row, below its timeline.
        pictures: `[n, H, W, C]` on [0, 1], with the method.
        reference: `[n, H, W, C]`, without.
        mask: `[steps, n]` bool, True = computed; None draws no timeline.
    """

    title: str
    subtitle: str
    prompts: list[str]
    remarks: list[str]
    pictures: np.ndarray
    reference: np.ndarray
    mask: np.ndarray | None

    @property
    def amplification(self) -> int:
        """How much differences are brightened, so that their strongest half per cent is white."""
        strongest = np.percentile(np.abs(self.pictures - self.reference), 99.5)
        fitting = [by for by in AMPLIFICATIONS if by * strongest <= 1]
        return max(fitting, default=1)


def panel(comparison: Comparison, row: Row, indices: list[int] | None = None) -> Panel:
    """The panel of a method's row; of its worst pictures, the worst first, without `indices`."""
    plain = comparison.plain
    worst = indices is None
    indices = row.worst(SHOWN) if worst else indices
    count = len(comparison.prompts)
    steps = f"{row.steps:.1f} of {plain.steps:g} steps computed, {1 - row.compute:.0%} saved"
    time = f"  ·  {1 - row.seconds / plain.seconds:.0%} of the time saved"
    if row.seconds > plain.seconds:
        time = f"  ·  {row.seconds / plain.seconds - 1:.0%} more time"
    if not comparison.timed:
        time = ""
    quality = f"{row.psnr.mean():.1f} dB PSNR on average"
    if row.fewer is not None:
        quality += f", {row.fewer} give {comparison[row.fewer].psnr.mean():.1f} dB"
    if worst and len(indices) < count:
        quality += f", the {len(indices)} worst of {count} pictures are shown"
    remarks = []
    for i in indices:
        capped = row.psnr[i] >= CAP
        remark = f"≥ {CAP:g} dB" if capped else f"{row.psnr[i]:.1f} dB"
        if row.mask is not None:
            remark = f"{row.mask[:, i].sum()} of {len(row.mask)} steps  ·  {remark}"
        remarks.append(remark)
    return Panel(
        title=f"{comparison.setting['pipeline']}  ·  {row.label}",
        subtitle=f"{steps}{time}\n{quality}",
        prompts=[comparison.prompts[i] for i in indices],
        remarks=remarks,
        pictures=channels_last(still(row.pictures[indices])),
        reference=channels_last(still(plain.pictures[indices])),
        mask=None if row.mask is None else row.mask[:, indices],
    )


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches that no window manager knows of.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'diffcache[demo]'") from error
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw(panels: list[Panel], path: str | Path, dpi: int = 110) -> None:
    """Draws panels side by side into a PNG, one row a prompt.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = max(len(panel.prompts) for panel in panels)
    width = 3 * INCHES + TIMELINE_INCHES
    total_width = len(panels) * width + (len(panels) + 1) * MARGIN_INCHES
    total_height = HEADER_INCHES + rows * INCHES + MARGIN_INCHES
    figure = new_figure(total_width, total_height)

    def place(x: float, y: float, w: float, h: float) -> Axes:
        box = (x / total_width, 1 - (y + h) / total_height, w / total_width, h / total_height)
        axes = figure.add_axes(box)
        axes.set_axis_off()
        return axes

    for number, each in enumerate(panels):
        left = MARGIN_INCHES + number * (width + MARGIN_INCHES)
        _header(place(left, 0, width, HEADER_INCHES), each, width)
        for i in range(len(each.prompts)):
            top = HEADER_INCHES + i * INCHES
            difference = np.abs(each.pictures[i] - each.reference[i]) * each.amplification
            for column, picture in enumerate((each.pictures[i], each.reference[i], difference)):
                gap = 0.04
                axes = place(
                    left + column * INCHES + gap, top + gap, INCHES - 2 * gap, INCHES - 2 * gap
                )
                _picture(axes, picture)
            _timeline(place(left + 3 * INCHES + 0.12, top, TIMELINE_INCHES - 0.12, INCHES), each, i)
    figure.savefig(path, dpi=dpi)


def _header(axes: Axes, panel: Panel, width: float) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(HEADER_INCHES, 0)
    title = textwrap.shorten(panel.title, 94, placeholder=" …")
    size = 13 * min(1, TITLE_CHARACTERS / max(1, len(title)))
    axes.text(0.04, 0.16, title, parse_math=False, size=size, weight="bold", color=INK, va="top")
    axes.text(
        0.04, 0.42, panel.subtitle, parse_math=False, size=9, color=MUTED, va="top", linespacing=1.4
    )
    names = ("with", "without", f"difference × {panel.amplification}")
    for column, name in enumerate(names):
        x = (column + 0.5) * INCHES
        axes.text(x, HEADER_INCHES - 0.05, name, size=8.5, color=INK, ha="center", va="bottom")
    if panel.mask is None:
        return
    x = 3 * INCHES + 0.12
    for name, colour in (("computed", COMPUTED), ("skipped", SKIPPED)):
        axes.scatter([x + 0.06], [HEADER_INCHES - 0.12], marker="s", s=34, color=colour)
        axes.text(x + 0.18, HEADER_INCHES - 0.05, name, size=8.5, color=INK, va="bottom")
        x += 0.95


def _picture(axes: Axes, picture: np.ndarray) -> None:
    picture = np.clip(np.nan_to_num(picture), 0, 1)
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1} if picture.shape[-1] == 1 else {}
    axes.imshow(picture.squeeze(-1) if grey else picture, interpolation="nearest", **grey)


def _timeline(axes: Axes, panel: Panel, row: int) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    prompt = textwrap.shorten(panel.prompts[row], 104, placeholder=" …")
    axes.text(
        0, 0.42, textwrap.fill(prompt, 52), parse_math=False, size=8.5, color=INK, va="bottom"
    )
    axes.text(0, 0.68, panel.remarks[row], parse_math=False, size=8, color=MUTED, va="top")
    if panel.mask is None:
        return
    steps = len(panel.mask)
    gap = 0.15 / steps
    for step, computed in enumerate(panel.mask[:, row]):
        axes.axvspan(
            step / steps + gap / 2,
            (step + 1) / steps - gap / 2,
            ymin=0.38,
            ymax=0.54,
            color=COMPUTED if computed else SKIPPED,
            linewidth=0,
        )
