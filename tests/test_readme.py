"""README says what was measured, and its code runs as written."""

import importlib
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import diffcache
from diffcache import tiny

ROOT = Path(__file__).parents[1]
STEPS = {"num_inference_steps": 12}


def test_the_table_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    envelope, report = map(importlib.import_module, ("envelope", "pareto_report"))
    grouped = envelope.newest(ROOT / "bench" / "results" / "pareto.jsonl")
    assert report.summary(grouped) in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_code_runs_as_written(monkeypatch, tmp_path, denoiser_of):
    """On a tiny pipeline, with fewer steps, and in less time than ten minutes where it asks so."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    pipe = tiny.pipeline("dit")
    pipe.set_progress_bar_config(disable=True)
    plain = type(pipe).__call__
    monkeypatch.setattr(
        type(pipe), "__call__", lambda self, *a, **k: plain(self, *a, **{**STEPS, **k})
    )
    for name in ("compare", "tune", "calibrate"):
        monkeypatch.setattr(diffcache, name, partial(getattr(diffcache, name), **STEPS))
    other = tiny.pipeline("unet")
    model = denoiser_of(other)
    names = {
        "pipe": pipe,
        "prompts": list(tiny.prompts[:3]),
        "torch": torch,
        "model": model,
        "scheduler": other.scheduler,
        "sample": torch.randn(1, model.config.in_channels, 16, 16),
        "call": {"encoder_hidden_states": other.encode_prompt("a circle", "cpu", 1, False)[0]},
    }
    for block in blocks:
        # Ten minutes of comparing are for a real pipeline.
        exec(block.replace("minutes=10", "minutes=0.1"), names)
    assert (tmp_path / "tuned.json").exists()
    assert list((tmp_path / "out").iterdir())
