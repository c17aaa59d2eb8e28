"""Rows of saved results, and what the documents of speed show of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Results = dict[str, list[Row]]

FILES = (
    "kernels",
    "bandwidth",
    "lagged",
    "overhead",
    "overhead_parts",
    "speedup",
    "batches",
    "memory",
    "on_cuda",
)


def read(folder: Path) -> Results:
    """The rows of every file of speed in `folder`; none where a file is missing."""
    paths = {name: folder / f"{name}.jsonl" for name in FILES}
    return {name: load(path) if path.exists() else [] for name, path in paths.items()}


def load(path: Path) -> list[Row]:
    """The rows of one file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def newest(rows: Iterable[Row], *keys: str) -> list[Row]:
    """The last row of each combination of `keys`, in the order that these first appear in."""
    return list({tuple(row.get(key) for key in keys): row for row in rows}.values())


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def quantiles(row: Row, name: str, form: str) -> str:
    """`p20 / p50 / p80` of a figure; empty where the row lacks it."""
    values = [row.get(f"{name}_p{q}") for q in (20, 50, 80)]
    return "" if None in values else " / ".join(format(value, form) for value in values)


def shown(value: float | None, form: str) -> str:
    """A figure; empty where there is none."""
    return "" if value is None else format(value, form)


def where(row: Row) -> str:
    """The machine and the versions of a result."""
    threads = f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}"
    device = row.get("gpu") or f"{row['cpu']}, {threads}"
    return f"{device}, torch {row['torch']}, diffusers {row['diffusers']}, {row['date']}"
