"""Builds every transformer and UNet class of diffusers small and checks each site on it.

python bench/coverage.py                   all classes; writes docs/coverage.md
python bench/coverage.py Wan Flux          classes with these words in their names; prints only
python bench/coverage.py --site guidance   one site; the others keep their results
python bench/coverage.py --check           fails if docs/coverage.md is not made from the results
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import coverage_checks
import coverage_report
import denoisers
import record
import torch

from diffcache.sites.discovery import is_denoiser


def measure(
    name: str, columns: Sequence[coverage_checks.Column], known: dict[str, Any]
) -> dict[str, Any]:
    """The result of one class: statuses and notes by site, other sites' from what is `known`."""
    package = denoisers.classes()[name].__module__.split(".")[2]
    result: dict[str, Any] = {"class": name, "package": package, "sites": {}, "notes": {}}
    measured = [column.name for column in columns]
    for part in ("sites", "notes"):
        old = known.get(part, {})
        result[part] = {site: old[site] for site in old if site not in measured}
    try:
        found = _verdicts(name, columns)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        found = [coverage_checks.Verdict("not built", why)] * len(columns)
    for column, verdict in zip(columns, found, strict=True):
        result["sites"][column.name] = verdict.status
        if verdict.note:
            result["notes"][column.name] = verdict.note
    for part in ("sites", "notes"):
        # The table's columns stay where they are, whichever was measured last.
        order = [column.name for column in coverage_checks.COLUMNS if column.name in result[part]]
        result[part] = {site: result[part][site] for site in order}
    return result


def _verdicts(
    name: str, columns: Sequence[coverage_checks.Column]
) -> list[coverage_checks.Verdict]:
    model = denoisers.build(name)
    if not is_denoiser(model):
        why = "it takes no timestep, or helps another model"
        return [coverage_checks.Verdict("not applicable", why)] * len(columns)
    caller = partial(denoisers.caller, name)
    subject = coverage_checks.Subject(model, caller, denoisers.rows(name))
    return [coverage_checks.check(subject, column) for column in columns]


def main() -> int:
    """Runs as the arguments say; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    sites = [column.name for column in coverage_checks.COLUMNS]
    parser.add_argument("--site", choices=sites)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        return _check()
    # One thread sums in one order, so that equal work gives equal bits.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = [
        name
        for name in denoisers.classes()
        if not arguments.words or any(word in name for word in arguments.words)
    ]
    columns = [c for c in coverage_checks.COLUMNS if arguments.site in (None, c.name)]
    known = coverage_report.newest() if arguments.site else {}
    start = time.perf_counter()
    results = []
    with torch.no_grad():
        for name in names:
            results.append(measure(name, columns, known.get(name, {})))
            print(name, *results[-1]["sites"].values(), *results[-1]["notes"].values(), sep=" | ")
    print(f"{len(names)} classes in {time.perf_counter() - start:.0f} s")
    if not arguments.words:
        record.append("coverage", results)
        coverage_report.DOCUMENT.write_text(coverage_report.document())
        print(*coverage_report.shrunk(), sep="\n")
    return 0


def _check() -> int:
    current = coverage_report.DOCUMENT.read_text() == coverage_report.document()
    if not current:
        print("docs/coverage.md is not what the results give; run python bench/coverage.py")
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
