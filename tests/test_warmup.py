"""What `warmup` does where there is nothing to compile."""

from typing import Any

import pytest
import torch

import diffcache
from diffcache.runtime.run import Run


def broken(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a bug of ours")


def test_warmup_of_a_generation_that_gives_up(dit, generate, monkeypatch):
    monkeypatch.delenv("DIFFCACHE_STRICT")
    diffcache.wrap(dit)
    monkeypatch.setattr(Run, "stepped", broken)
    call = {
        "prompt_embeds": torch.randn(1, 7, 32),
        "pooled_prompt_embeds": torch.randn(1, 32),
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    diffcache.warmup(dit, [call])
    assert generate(dit, 1, 2).isfinite().all()


def test_warmup_needs_a_wrapped_pipeline(dit):
    with pytest.raises(ValueError, match=r"warmup\(diffcache.wrap\(pipe\)"):
        diffcache.warmup(dit, [{}])
