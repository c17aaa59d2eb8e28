"""Builds every transformer and UNet class of diffusers small and checks each site on it.

python bench/coverage.py            all classes; writes docs/coverage.md
python bench/coverage.py Wan Flux   classes with these words in their names; prints only
python bench/coverage.py --check    fails if docs/coverage.md is not made from the results
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from typing import Any

import coverage_checks
import coverage_report
import denoisers
import record
import torch

from diffcache.sites.discovery import is_denoiser


def measure(name: str) -> dict[str, Any]:
    """The result of one class: its statuses and notes by site."""
    package = denoisers.classes()[name].__module__.split(".")[2]
    result: dict[str, Any] = {"class": name, "package": package, "sites": {}, "notes": {}}
    columns = coverage_checks.COLUMNS
    try:
        found = _verdicts(name)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        found = [coverage_checks.Verdict("not built", why)] * len(columns)
    for column, verdict in zip(columns, found, strict=True):
        result["sites"][column.name] = verdict.status
        if verdict.note:
            result["notes"][column.name] = verdict.note
    return result


def _verdicts(name: str) -> list[coverage_checks.Verdict]:
    columns, model, rows = coverage_checks.COLUMNS, denoisers.build(name), denoisers.rows(name)
    if not is_denoiser(model):
        why = "it takes no timestep, or helps another model"
        return [coverage_checks.Verdict("not applicable", why)] * len(columns)
    subject = coverage_checks.Subject(model, denoisers.caller(name, rows), rows)
    return [coverage_checks.check(subject, column) for column in columns]


def main() -> int:
    """Runs as the arguments say; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
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
    start = time.perf_counter()
    results = []
    with torch.no_grad():
        for name in names:
            results.append(measure(name))
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
