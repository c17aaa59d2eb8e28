"""What a comparison found: its rows, its table and its files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics
from .machine import machine
from .runtime.report import Report

HEADER = (
    "run",
    "steps",
    "row-steps",
    "compute",
    "s/picture",
    "speed-up",
    "PSNR",
    "p5",
    "mean error",
    "SSIM",
    "worst",
)
MISSING = "–"
_LEGEND = (
    f"PSNR in dB, of which a picture counts for {metrics.CAP:g} at most; mean error: PSNR of the "
    "squared error averaged over pictures"
)


# Times are alike within this factor.
_ALIKE = 1.15


@dataclass(frozen=True, eq=False)
class Row:
    """One way of generating all the pictures, held against the plain one.

    Attributes:
        label: "plain", a method's label, or "17 steps": the plain call with that many.
        steps: steps computed of a picture, on average.
        row_steps: denoiser rows computed of a picture over all steps, guidance branches included;
            None where a method gave no account.
        compute: row-steps over those of the plain pipeline.
        seconds: wall time of a picture, the median over batches.
        pictures: `[N, ...]` float, as the pipeline returned them; what does not fit [0, 1] is
            scaled to the plain results' range.
        psnr: `[N]` dB against the plain pictures; None for the plain row, as what follows.
        mean_error_psnr: PSNR in dB of the squared error averaged over pictures.
        ssim: `[N]`, None too for what is not a picture.
        mask: `[steps, N]` bool, True where a step was computed; None where steps are unknown.
        reports: one report a batch; none but for methods.
        fewer: label of the row with as many plain steps as the method computed, if that is fewer.
        as_fast: label of the row with as many plain steps as take its time, if that is fewer.
    """

    label: str
    steps: float
    row_steps: float | None
    compute: float
    seconds: float
    pictures: np.ndarray
    psnr: np.ndarray | None = None
    mean_error_psnr: float | None = None
    ssim: np.ndarray | None = None
    mask: np.ndarray | None = None
    reports: list[Report] = field(default_factory=list)
    fewer: str | None = None
    as_fast: str | None = None

    def worst(self, count: int = 3) -> list[int]:
        """Indices of the pictures with the lowest PSNR, the lowest first."""
        if self.psnr is None:
            return []
        # A picture of NaN is worse than any number of dB.
        return np.argsort(np.nan_to_num(self.psnr, nan=-np.inf), kind="stable")[:count].tolist()


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same prompts and seeds through the plain pipeline, methods, and fewer steps.

    Prints as a table. `comparison["adaptive"]` is the row of that label.

    Attributes:
        rows: the plain one first, every method followed by as many plain steps as it computed.
        prompts: what every picture was asked for.
        seeds: the seed of every picture's generator.
        setting: pipeline, scheduler, steps, batch size, device and dtype.
        notes: what the reports and the comparison have to say.
        floor: label of the row of another run as legitimate as the plain one, if there is one.
        recommended: the largest tolerance tried that was good enough, with its figures, if tried.
        timed: whether the times tell something; a note says why where they do not.
    """

    rows: list[Row]
    prompts: list[str]
    seeds: list[int]
    setting: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    floor: str | None = None
    recommended: dict[str, Any] | None = None
    timed: bool = True
    # Fixed at the start, because the files may be written much later.
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat("T", "seconds"))

    def __getitem__(self, label: str) -> Row:
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(f"no row {label!r}; rows are {', '.join(repr(r.label) for r in self.rows)}")

    @property
    def plain(self) -> Row:
        """The row that all others are measured against."""
        return self.rows[0]

    @property
    def methods(self) -> list[Row]:
        """The rows that a method generated."""
        return [row for row in self.rows if row.reports]

    @cached_property
    def _cells(self) -> list[tuple[str, ...]]:
        return [self._cells_of(row) for row in self.rows]

    def _cells_of(self, row: Row) -> tuple[str, ...]:
        cells = [
            " ".join(row.label.split()),
            f"{row.steps:.1f}".removesuffix(".0"),
            MISSING if row.row_steps is None else f"{row.row_steps:.1f}".removesuffix(".0"),
            f"{row.compute:.0%}",
            f"{row.seconds:.3g}",
            f"{self.plain.seconds / row.seconds:.2f}×",
        ]
        if row.psnr is None:
            return (*cells, *[MISSING] * 5)
        (worst,) = row.worst(1)
        return (
            *cells,
            f"{row.psnr.mean():.1f}",
            f"{np.percentile(row.psnr, 5):.1f}",
            f"{row.mean_error_psnr:.1f}",
            MISSING if row.ssim is None else f"{row.ssim.mean():.4f}",
            f"{row.psnr[worst]:.1f} (#{worst})",
        )

    def _title(self) -> str:
        named = self.setting["pipeline"], self.setting["scheduler"]
        return ", ".join(
            (
                *(name for name in named if name is not None),
                f"{len(self.prompts)} pictures in batches of {self.setting['batch_size']}",
                f"{self.setting['device']} {self.setting['dtype']}",
            )
        )

    def _remarks(self) -> list[str]:
        worst = [
            f"{row.label}, worst: "
            + "; ".join(
                f"#{i} {row.psnr[i]:.1f} dB, seed {self.seeds[i]}, {self.prompts[i]!r}"
                for i in row.worst()
            )
            for row in self.methods
        ]
        return [_LEGEND, *worst, *self._verdicts(), *(f"note: {note}" for note in self.notes)]

    def _verdicts(self) -> list[str]:
        """What the rows mean for a user, in words; nothing where plain pictures are not finite."""
        if not np.isfinite(self.plain.pictures).all():
            return []
        found = []
        for row in self.methods:
            for label, equal in ((row.fewer, "row-steps"), (row.as_fast, "time")):
                if label is None or (equal == "time" and not self.timed):
                    continue
                fewer = self[label]
                gain = row.psnr.mean() - fewer.psnr.mean()
                ratio = fewer.seconds / row.seconds
                # How long a count of steps takes was told from other counts.
                missed = equal == "time" and not 1 / _ALIKE <= ratio <= _ALIKE
                words = f"which took {ratio:.2f} of its time" if missed else f"at equal {equal}"
                found.append(f"{row.label}: {gain:+.1f} dB over {label}, {words}")
        if self.floor is not None:
            level = self[self.floor].psnr.mean()
            found.append(f"noise floor: {level:.1f} dB ({self.floor}); more is worth nothing")
        if self.recommended is not None:
            speed = ", {speed_up:.2f}×" if self.timed else ""
            found.append(
                "recommended: tolerance={tolerance:g} ({psnr:.1f} dB, p5 {psnr_p5:.1f}, "
                f"{{compute:.0%}} of the compute{speed})".format(**self.recommended)
            )
        return found

    def __str__(self) -> str:
        table = [HEADER, *self._cells]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in table
        ]
        lines.insert(1, "─" * max(map(len, lines)))
        return "\n".join([self._title(), *lines, *self._remarks()])

    def markdown(self) -> str:
        """The table and its remarks in Markdown."""
        table = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *self._cells]
        escaped = ([cell.replace("|", r"\|") for cell in cells] for cells in table)
        lines = [f"| {' | '.join(cells)} |" for cells in escaped]
        return "\n\n".join([self._title(), "\n".join(lines), *self._remarks()]) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON, with machine, versions and date."""
        return {
            "date": self.date,
            "machine": machine(),
            "setting": self.setting,
            "prompts": self.prompts,
            "seeds": self.seeds,
            "rows": [_row_dict(row) for row in self.rows],
            "notes": self.notes,
            "floor": self.floor,
            "recommended": self.recommended,
            "timed": self.timed,
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `comparison.md`, `comparison.json` and, for pictures, a grid a method.

        A grid shows the (at most eight) worst pictures: with · without · difference · timeline.

        Args:
            folder: made if it does not exist; files of those names are replaced.

        Returns:
            The files written.

        Raises:
            ImportError: matplotlib is not installed; the table has been written by then.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "comparison.md", folder / "comparison.json"]
        facts = "\n".join(f"- {key}: {value}" for key, value in machine().items())
        files[0].write_text(f"{self.markdown()}\n- date: {self.date}\n{facts}\n", encoding="utf-8")
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        files[1].write_text(text + "\n", encoding="utf-8")
        if metrics.channels_last(still(self.plain.pictures)) is not None:
            from .plots import draw, panel

            for number, row in enumerate(self.methods):
                files.append(folder / f"method-{number + 1}-{_file_name(row.label)}.png")
                draw([panel(self, row)], files[-1])
        return files


def still(samples: np.ndarray) -> np.ndarray:
    """The middle frame of videos `[N, F, H, W, C]`, or the samples themselves."""
    return samples[:, samples.shape[1] // 2] if samples.ndim == 5 else samples


def _row_dict(row: Row) -> dict[str, Any]:
    numbers = {
        "steps": row.steps,
        "row_steps": row.row_steps,
        "compute": row.compute,
        "seconds": row.seconds,
        "mean_error_psnr": _finite(row.mean_error_psnr),
    }
    per_picture = {
        name: None if values is None else [_finite(value) for value in values.tolist()]
        for name, values in (("psnr", row.psnr), ("ssim", row.ssim))
    }
    timelines = None
    if row.mask is not None:
        timelines = ["".join("█" if done else "·" for done in column) for column in row.mask.T]
    calls = sum(report.calls for report in row.reports) if row.reports else None
    more = {"fewer": row.fewer, "as_fast": row.as_fast, "calls": calls, "timelines": timelines}
    return {"label": row.label, **numbers, **per_picture, **more}


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and np.isfinite(value) else None


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.=" else "-" for c in label)
