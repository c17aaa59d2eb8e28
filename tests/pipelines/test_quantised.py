"""Layers whose weights torchao has quantised to eight bits."""

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import diffcache

METHODS = {
    "unet": {"adaptive": {"tolerance": 0.0}, "deepcache": {"every": 1}, "fora": {"every": 1}},
    "dit": {"adaptive": {"tolerance": 0.0}, "fbcache": {"threshold": 0.0}, "fora": {"every": 1}},
}


@pytest.mark.parametrize("kind", METHODS)
def test_int8_weights(make, generate, kind):
    pipe = make(kind)
    before = generate(pipe, steps=10)
    quantize_(pipe.unet if kind == "unet" else pipe.transformer, Int8WeightOnlyConfig())
    plain = generate(pipe, steps=10)
    assert not torch.equal(plain, before)
    mask = [step % 2 == 0 for step in range(10)]
    mixed = [[True, step % 2 == 0] for step in range(10)]
    for method, never in METHODS[kind].items():
        diffcache.wrap(pipe, method, **never)
        assert torch.equal(generate(pipe, steps=10), plain)
        diffcache.wrap(pipe, method, mask=mask)
        skipped = generate(pipe, steps=10)
        report = diffcache.report(pipe)
        assert skipped.isfinite().all() and report.compute_fraction == 0.5
        assert torch.equal(generate(pipe, steps=10), skipped)
        diffcache.wrap(pipe, method, mask=mixed)
        apart = generate(pipe, steps=10)
        torch.testing.assert_close(apart[0], plain[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(apart[1], skipped[1], rtol=1e-4, atol=1e-4)
    diffcache.unwrap(pipe)
    assert torch.equal(generate(pipe, steps=10), plain)
