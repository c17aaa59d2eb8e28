"""What `docs/benchmarks.md` says of what must hold, from the rows of `pareto.py`."""

from __future__ import annotations

from envelope import (
    FIGURES,
    OURS,
    RIVALS,
    Families,
    at,
    by_mean,
    floor,
    holds,
    judged,
    margin,
    measured_at,
    true_enough,
)
from rows import shown


def table(grouped: dict[str, Families]) -> str:
    """Markdown: in each cell, what the default method is above its rivals, and if it is enough."""
    heads = [f"{rival.name} (≥ {rival.margin:g})" for rival in RIVALS]
    lines = [
        f"| cell | compute | {OURS} | noise floor | {' | '.join(heads)} | truth | verdict |",
        "|---" * (6 + len(heads)) + "|",
    ]
    for cell, target in judged(grouped):
        families = grouped[cell]
        margins = [[margin(families, r, target, f) for f in FIGURES] for r in RIVALS]
        ours = [shown(at(families.get(OURS, []), target, f), ".1f") for f in FIGURES]
        floors = [shown(floor(families, f), ".1f") for f in FIGURES]
        cells = [
            cell,
            f"{target:.2f}",
            " / ".join(ours) if ours[0] else "not reached",
            " / ".join(floors) if floors[0] else "",
            *map(_margins, margins),
            {True: "as full", False: "**worse**", None: ""}[true_enough(families, target)],
            {True: "holds", False: "**fails**", None: "not measured"}[holds(families, target)],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def count(grouped: dict[str, Families]) -> str:
    """In how many rows of the table it holds, and in which it would not with none interpolated."""
    rows = judged(grouped)
    found, alone, paired = (
        {row: holds(grouped[row[0]], row[1], read) for row in rows}
        for read in (at, measured_at, by_mean)
    )
    fewer = [row for row in rows if found[row] and alone[row] is False]
    more = [row for row in rows if alone[row] and found[row] is False]
    text = (
        f"It holds in {_held(found)} of {len(rows)} rows. With nothing interpolated, each figure "
        "that of a family's best setting at no more than the share, ours and rivals' alike, it "
        f"would hold in {_held(alone)}, and with both of its best by mean in {_held(paired)}."
    )
    text += f" With none interpolated, {_listed(fewer)} would fail too." if fewer else ""
    return text + (f" Of those that fail, {_listed(more)} would hold." if more else "")


def _held(verdicts: dict[tuple[str, float], bool | None]) -> int:
    return sum(verdict is True for verdict in verdicts.values())


def _listed(rows: list[tuple[str, float]]) -> str:
    return ", ".join(f"{cell} at {share:.2f}" for cell, share in rows)


def _margins(pair: list) -> str:
    """The margins in mean and 5th percentile, what is too little in bold, and over whom."""
    if pair[0].decibels is None:
        return ""
    decibels = [f"{m.decibels:+.1f}" if m.holds else f"**{m.decibels:+.1f}**" for m in pair]
    names = dict.fromkeys(m.best for m in pair)
    return f"{' / '.join(decibels)} ({', '.join(names)})"
