"""The table of saved results of `coverage.py`."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "coverage.jsonl"
DOCUMENT = Path(__file__).parent.parent / "docs" / "coverage.md"

RANKS = {
    "not built": 0,
    "failed": 0,
    "not applicable": 1,
    "computed": 2,
    "whole output": 3,
    "batch as one": 4,
    "in part": 5,
    "ok": 6,
}
"""What a site may come to on a class, the worst first."""

_ABOUT = """\
Made by `python bench/coverage.py` from `bench/results/coverage.jsonl`; never edited by hand. Every
transformer and UNet class of the installed diffusers is built small, with random weights, and
called in a loop with each site on it:

- a skipped step runs nothing that the site bypasses;
- placeholders filled with NaN, or with another number, change nothing in the output;
- never skipping gives the plain model's output, bit for bit;
- unwrapping gives the plain model back;
- in a step that computes some rows of a batch, these are the rows of a full run;
- for the guidance site, calls hold both branches, and the conditional rows are those of a full run.

`ok`: all of this holds. Where something cannot be done, the generation's report says so, and the
rest still holds: `batch as one`: samples are skipped together or not at all; `in part`: some of
what the site would bypass stays computed; `whole output`: the output is forecast in place of the
blocks; `computed`: nothing is skipped. `not applicable`: the site has nothing to bypass there, and
`wrap` says so. The sizes and inputs of each class are in `bench/denoisers.json`."""


def rows() -> list[dict[str, Any]]:
    """All saved results, the oldest first."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def newest() -> dict[str, dict[str, Any]]:
    """The newest result of each class."""
    return {row["class"]: row for row in rows()}


WITHDRAWN = {("StableCascadeUNet", "UNet branch")}
"""Of which older rows say "ok" though whole outputs were cached: the check could not tell."""


def shrunk() -> list[str]:
    """Where a newer result is worse than an older one that is not withdrawn."""
    best: dict[tuple[str, str], str] = {}
    found = []
    for row in rows():
        for site, status in row["sites"].items():
            if (row["class"], site) in WITHDRAWN:
                continue
            before = best.get((row["class"], site), status)
            if RANKS[status] < RANKS[before]:
                found.append(f"{row['class']}, {site}: {before} has become {status}")
            best[row["class"], site] = max(status, before, key=RANKS.get)
    return found


def document() -> str:
    """The text of `docs/coverage.md`."""
    results = newest()
    last = max(results.values(), key=lambda row: row["date"])
    footnotes: dict[str, int] = {}
    parts = ["# Coverage", _ABOUT, _machine(last), _totals(results)]
    for kind, members in _kinds(results).items():
        parts += [f"## {kind[0].upper()}{kind[1:]}", _table(members, footnotes)]
    parts += ["## Notes", "\n".join(f"{n}. {note}" for note, n in footnotes.items())]
    return "\n\n".join(parts) + "\n"


def _machine(row: dict[str, Any]) -> str:
    return (
        f"{row['cpu']}, {row['threads']} thread, torch {row['torch']}, diffusers "
        f"{row['diffusers']}, {row['date']}."
    )


def _kinds(results: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {"transformers": [], "UNets": []}
    for _, row in sorted(results.items()):
        kinds["transformers" if row["package"] == "transformers" else "UNets"].append(row)
    return kinds


def _totals(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| site | kind | classes | " + " | ".join(reversed(RANKS)) + " |"]
    lines.append("|---" * (3 + len(RANKS)) + "|")
    for site in next(reversed(results.values()))["sites"]:
        for kind, members in _kinds(results).items():
            counts = Counter(row["sites"].get(site, "not built") for row in members)
            cells = [str(counts[status] or "") for status in reversed(RANKS)]
            lines.append(f"| {site} | {kind} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _table(members: list[dict[str, Any]], footnotes: dict[str, int]) -> str:
    sites = list(members[0]["sites"])
    lines = [f"| class | {' | '.join(sites)} |", "|---" * (1 + len(sites)) + "|"]
    for row in members:
        cells = [_cell(row, site, footnotes) for site in sites]
        lines.append(f"| {row['class']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], site: str, footnotes: dict[str, int]) -> str:
    status, note = row["sites"].get(site, "not built"), row["notes"].get(site, "")
    if not note:
        return status
    # The sizes in an error's text differ from class to class; the results file has them.
    short = re.sub(r" \((\w+): .*\)", r" (\1)", note).replace(row["class"], "the model")
    return f"{status} [{footnotes.setdefault(short, len(footnotes) + 1)}]"
