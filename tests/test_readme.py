"""README says what was measured."""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    envelope, report = map(importlib.import_module, ("envelope", "pareto_report"))
    grouped = envelope.newest(ROOT / "bench" / "results" / "pareto.jsonl")
    assert report.summary(grouped) in (ROOT / "README.md").read_text()
