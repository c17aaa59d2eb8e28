"""Appends results to JSON lines under bench/results, with the machine and the versions."""

from __future__ import annotations

import json
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "diffcache")},
    }


def append(name: str, rows: list[dict[str, Any]]) -> Path:
    """Appends `rows` to `bench/results/{name}.jsonl`, each with the machine; returns the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    here = machine()
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps({**row, **here}) + "\n")
    return path


def said(error: Exception) -> str:
    """The first line of what an error says, for a row of what could not be measured."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
