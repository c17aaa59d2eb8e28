"""The cheapest setting of each family that gives visibly the same pictures."""

from __future__ import annotations

from envelope import FLOOR, FULL, OURS, Families, Row, as_true, is_ours

LEAST = 35.0
"""Mean PSNR to the full run from which on pictures count as visibly the same, in dB."""


def cheapest(rows: list[Row]) -> Row | None:
    """The cheapest setting of a family at `LEAST` dB or more that is as true as the full run."""
    same = [row for row in rows if row["psnr"] >= LEAST and as_true(row)]
    return min(same, key=lambda row: row["compute"], default=None)


def table(grouped: dict[str, Families]) -> str:
    """Markdown: by cell, the least compute of the default method and of its three best rivals."""
    lines = [f"| cell | {OURS} | the cheapest others |", "|---|---|---|"]
    for cell, families in grouped.items():
        found = {
            name: row["compute"]
            for name, rows in families.items()
            if name not in (FULL, FLOOR) and (row := cheapest(rows)) is not None
        }
        ours = found.pop(OURS, None)
        others = sorted((name for name in found if not is_ours(name)), key=found.get)[:3]
        least = min([*(found[name] for name in others), 1.0])
        shown = "none" if ours is None else f"{ours:.2f}"
        if ours is not None and ours <= least:
            shown = f"**{shown}**"
        lines.append(f"| {cell} | {shown} | {', '.join(f'{n} {found[n]:.2f}' for n in others)} |")
    return "\n".join(lines)
