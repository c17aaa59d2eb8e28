"""What saved rows of `pareto.py` say at a share of compute, and whether it is what must hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rows import load

from diffcache import metrics

Row = dict
Families = dict[str, list[Row]]

TARGETS = (0.25, 0.35, 0.50, 0.65)
OURS, FULL, FEWER, FLOOR = "adaptive", "full", "fewer steps", "noise floor"
CUT = ("calibrated",)
"""Methods that were measured and then cut; docs/design.md has what they gave."""

FIGURES = ("psnr", "psnr_p5")
ROUNDING = 0.005
"""By how much a share may be missed: shares are asked for in hundredths."""

FLOORS = {"fp32": "bf16", "bf16": "fp32"}
"""The full run that bounds what fidelity is worth, by the precision of a cell."""


Reader = Callable[[Iterable[Row], float, str], float | None]
"""What a family has of a figure at a share of compute; None where all its settings cost more."""


class Rival(NamedTuple):
    """Families that the default method must be above, by so many dB."""

    name: str
    families: tuple[str, ...]
    margin: float


RIVALS = (
    Rival(FEWER, (FEWER,), 6.0),
    Rival(
        "threshold rules",
        (
            "adaptivediffusion",
            "third_order",
            "dbcache",
            "easycache",
            "fbcache",
            "magcache",
            "teacache",
            "cache-dit DBCache",
            "cache-dit DBCache + TaylorSeer",
            "diffusers FirstBlockCache",
            "diffusers MagCache",
        ),
        6.0,
    ),
    Rival(
        "fixed schedules with a forecast",
        ("abcache", "hicache", "interval", "spectrum", "taylorseer", "diffusers TaylorSeer"),
        2.0,
    ),
    Rival("other", (), 0.0),
)
"""What must be beaten, and by how much; the last takes the families that no other has."""


def is_ours(family: str) -> bool:
    """Whether it is the default method, on whatever site."""
    return family == OURS or family.startswith(f"{OURS}, ")


def kind(family: str) -> Rival | None:
    """Whose families a family is one of; None for ours and for full runs."""
    if is_ours(family) or family in (FULL, FLOOR):
        return None
    return next((rival for rival in RIVALS if family in rival.families), RIVALS[-1])


def newest(path: Path) -> dict[str, Families]:
    """Rows by cell and family, by compute; a later row of one setting replaces an earlier one."""
    latest: dict[tuple, Row] = {}
    for row in load(path):
        if row["family"] in CUT:
            continue
        latest[row["cell"], row["family"], row["setting"]] = row
    grouped: dict[str, Families] = defaultdict(lambda: defaultdict(list))
    for row in latest.values():
        grouped[row["cell"]][row["family"]].append(row)
    for families in grouped.values():
        for rows in families.values():
            rows.sort(key=lambda row: row["compute"])
    return {name: grouped[name] for name in sorted(grouped, key=_order)}


def _order(cell: str) -> tuple:
    pipeline, scheduler, steps, *rest = cell.split("-")
    return rest, pipeline != "unet", scheduler, -int(steps)


def envelope(rows: Iterable[Row], figure: str) -> list[tuple[float, float]]:
    """The settings that no cheaper one equals in `figure`, as (compute, figure)."""
    points: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: (row["compute"], -row[figure])):
        if not points or row[figure] > points[-1][1]:
            points.append((row["compute"], row[figure]))
    return points


def at(rows: Iterable[Row], compute: float, figure: str) -> float | None:
    """The best `figure` at no more than a share of compute; None where all settings cost more.

    Between two settings of the envelope it is interpolated. A share that rounding puts under the
    cheapest setting counts as that setting.
    """
    points = envelope(rows, figure)
    if not points or compute < points[0][0] - ROUNDING:
        return None
    shares, values = zip(*points, strict=True)
    return float(np.interp(compute, shares, values))


def measured_at(rows: Iterable[Row], compute: float, figure: str) -> float | None:
    """As `at`, of settings as they were measured: nothing is interpolated."""
    return max((row[figure] for row in _affordable(rows, compute)), default=None)


def by_mean(rows: Iterable[Row], compute: float, figure: str) -> float | None:
    """As `measured_at`, both figures of the setting that is best by mean."""
    row = chosen(rows, compute)
    return None if row is None else row[figure]


def chosen(rows: Iterable[Row], compute: float) -> Row | None:
    """The setting of the best mean PSNR at no more than a share of compute."""
    return max(_affordable(rows, compute), key=lambda row: row["psnr"], default=None)


def _affordable(rows: Iterable[Row], compute: float) -> list[Row]:
    return [row for row in rows if row["compute"] <= compute + ROUNDING]


def floor(families: Families, figure: str) -> float | None:
    """`figure` of the full run that differs in nothing but rounding; None if not measured."""
    rows = {row["setting"]: row for row in families.get(FLOOR, [])}
    cell = families[FULL][0]["cell"] if families.get(FULL) else ""
    row = rows.get(FLOORS["bf16" if cell.endswith("bf16") else "fp32"])
    return None if row is None else row[figure]


class Margin(NamedTuple):
    """What the default method is above the best of a rival's families.

    Attributes:
        best: the family; None where none can be had at this compute.
        decibels: the margin; None likewise, or where ours cannot.
        holds: whether it is enough, or ours is above the noise floor.
    """

    best: str | None
    decibels: float | None
    holds: bool


def reached(
    families: Families, rival: Rival, compute: float, figure: str, read: Reader = at
) -> dict[str, float]:
    """What each family of a rival reaches at a share of compute; those that cost more left out."""
    found = {
        name: read(rows, compute, figure) for name, rows in families.items() if kind(name) is rival
    }
    return {name: value for name, value in found.items() if value is not None}


def margin(
    families: Families, rival: Rival, compute: float, figure: str, read: Reader = at
) -> Margin:
    """Ours against the best of a rival's families at a share of compute."""
    values = reached(families, rival, compute, figure, read)
    ours, bound = read(families.get(OURS, []), compute, figure), floor(families, figure)
    if ours is None:
        return Margin(max(values, key=values.get, default=None), None, False)
    if not values:
        return Margin(None, None, True)
    best = max(values, key=values.get)
    # Nothing can be above what counts at most.
    bound = metrics.CAP if bound is None else bound
    enough = ours - values[best] >= rival.margin or ours >= bound
    return Margin(best, ours - values[best], enough)


def judged(grouped: dict[str, Families]) -> list[tuple[str, float]]:
    """The cells, each with all shares of compute, in which it is judged what must hold."""
    return [
        (name, share) for name, found in grouped.items() if found.get(FEWER) for share in TARGETS
    ]


def holds(families: Families, compute: float, read: Reader = at) -> bool | None:
    """Whether ours is above all rivals and as true as the full run; None without fewer steps."""
    enough = all(
        margin(families, rival, compute, figure, read).holds
        for rival in RIVALS
        for figure in FIGURES
    )
    if not enough or true_enough(families, compute) is False:
        return False
    return None if read(families[FEWER], compute, FIGURES[0]) is None else True


def true_enough(families: Families, compute: float) -> bool | None:
    """Whether ours is as true to the data as the full run at a share of compute, if known."""
    row = chosen(families.get(OURS, []), compute)
    return None if row is None else as_true(row)


def as_true(row: Row) -> bool | None:
    """Whether a setting is as true to the data as the full run, within 95 %; None if not known.

    That is: it does not surely match fewer captions, nor is it surely farther from real scenes.
    """
    if "match_change_ci" not in row:
        return None
    return row["match_change_ci"][1] >= 0 and row["frechet_change_ci"][0] <= 0
