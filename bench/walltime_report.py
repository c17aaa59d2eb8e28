"""The table of wall time in `docs/benchmarks.md`."""

from __future__ import annotations

from pathlib import Path

from envelope import OURS, Families, chosen
from rows import load, newest, quantiles, table, where

SHARE = 0.5


def section(path: Path, grouped: dict[str, Families]) -> list[str]:
    """Markdown: seconds beside the compute and the fidelity of the same settings."""
    rows = newest(load(path), "cell", "family")
    last = rows[-1]
    return [
        "## Wall time at half the compute",
        "`python bench/walltime.py`: the settings that are best at half the compute, one picture a "
        f"call, from prompt to picture; {where(last)}. Each is timed between two full runs, and "
        "what it takes of their time is given. Text encoder, VAE and scheduler are in it, and on "
        "models as small as these so is what a library does around a denoiser call of some "
        "milliseconds. PSNR is that of `pareto.py`. Speed-up at real sizes is in "
        "[speed.md](speed.md).",
        *_overtaken(rows, grouped),
        table(
            ("cell", "", "setting", "compute", "time of a full run (p20 / p50 / p80)", "PSNR"),
            (_cells(row, grouped) for row in sorted(rows, key=_order)),
        ),
    ]


def _overtaken(rows: list[dict], grouped: dict[str, Families]) -> list[str]:
    """Which rows were timed at a setting that is the best no more, in words."""
    found = []
    for row in sorted(rows, key=_order):
        best = chosen(grouped[row["cell"]][row["family"]], SHARE)
        if best is not None and best["setting"] != row["setting"]:
            found.append(f"{row['family']} on {row['cell']} ({best['setting']})")
    return [f"Measured since, and best now: {', '.join(found)}."] if found else []


def _order(row: dict) -> tuple:
    return row["cell"], row["of_full_p50"]


def _cells(row: dict, grouped: dict[str, Families]) -> list[str]:
    found = {each["setting"]: each for each in grouped[row["cell"]][row["family"]]}
    saved = found[row["setting"]]
    name = f"**{row['family']}**" if row["family"] == OURS else row["family"]
    psnr = f"{saved['psnr']:.1f} / {saved['psnr_p5']:.1f}"
    shown = [row["cell"], name, str(row["setting"]), f"{saved['compute']:.2f}"]
    return [*shown, quantiles(row, "of_full", ".2f"), psnr]
