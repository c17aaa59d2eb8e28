"""Layers whose weights torchao has quantised to eight bits."""

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import diffcache
from diffcache.calibration import weights_of

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


def test_a_draft_and_a_calibration_of_what_cannot_be_reshaped(unet, generate):
    quantize_(unet.unet, Int8WeightOnlyConfig())
    plain = generate(unet)
    diffcache.wrap(unet, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        draft = generate(unet)
    assert run.report.notes == [] and run.report.prefix > 0
    assert torch.equal(run.refine().images, plain) and not torch.equal(draft, plain)
    diffcache.unwrap(unet)
    prompt = {
        name: torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(0))
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    call = {"num_inference_steps": 10, "height": 16, "width": 16, "output_type": "latent"}
    calibration = diffcache.calibrate(unet, prompt, "smoothcache", **call)
    assert calibration.weights == weights_of([unet.unet])


def test_quantised_weights_are_told_from_others():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        layer = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False))
        quantize_(layer, Int8WeightOnlyConfig())
        found.append(weights_of([layer]))
    assert found[0] == found[1] != found[2]


def test_a_weight_that_cannot_be_read_is_no_error():
    layer = torch.nn.Linear(8, 8)
    layer.weight = torch.nn.Parameter(torch.eye(8).to_sparse())
    assert weights_of([layer])
