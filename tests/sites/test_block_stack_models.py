"""The block stack on several families of transformers, called in a hand-written loop."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

import diffcache
from diffcache import Guards, Method
from diffcache.policies import Interval
from diffcache.predictors import Reuse
from diffcache.runtime.rows import tensor_leaves
from diffcache.sites import BlockStack
from diffcache.sites.discovery import block_lists

STEPS = 9
ROWS = 3
FULL = [index for index in range(STEPS) if index % 4 == 0 or index < 2]


def method(head: int, tail: int) -> Method:
    return Method(
        site=BlockStack(head, tail),
        policy=Interval(4),
        predictor=Reuse(),
        guards=Guards(protect=(2, 0), max_consecutive_skips=None, few_steps=0),
    )


def outputs(model: Any, scheduler: Any, inputs: dict[str, Any], still: bool) -> list[torch.Tensor]:
    """What the denoiser gives at each step; in a `still` loop every call is the same call."""
    scheduler.set_timesteps(STEPS)
    latents = inputs["hidden_states"]
    found = []
    for index, t in enumerate(scheduler.timesteps):
        now = {**inputs, "timestep": torch.full((ROWS,), 1000.0 if still else float(t))}
        if not still:
            now["hidden_states"] = latents * (1 - 0.05 * index)
        prediction = tensor_leaves(model(**now))[0]
        scheduler.step(prediction, t, torch.zeros_like(prediction))
        found.append(prediction)
    return found


@pytest.mark.parametrize(("head", "tail"), [(1, 0), (0, 0), (1, 1), (2, 1)])
def test_family(denoiser, count_calls, placeholders, head, tail):
    model, inputs = denoiser
    scheduler = FlowMatchEulerDiscreteScheduler()
    ((_, blocks),) = block_lists(model)
    plain = outputs(model, scheduler, inputs, still=False)
    placeholders(float("nan"))

    diffcache.wrap(model, method(head, tail), scheduler=scheduler, every=1)
    for found, wanted in zip(outputs(model, scheduler, inputs, False), plain, strict=True):
        assert torch.equal(found, wanted)

    calls = count_calls(list(blocks))
    diffcache.wrap(model, method(head, tail), scheduler=scheduler)
    found = outputs(model, scheduler, inputs, still=False)
    computed = [len(FULL)] * len(blocks)
    computed[:head] = [STEPS] * head
    computed[len(blocks) - tail :] = [STEPS] * tail
    assert calls == computed
    assert diffcache.report(model).mask[:, 0].nonzero().flatten().tolist() == FULL
    for index in range(STEPS):
        assert found[index].isfinite().all()
        assert torch.equal(found[index], plain[index]) == (index in FULL)

    diffcache.unwrap(model)
    for found, wanted in zip(outputs(model, scheduler, inputs, False), plain, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("rows", ["together", "mixed"])
def test_bridge_is_exact_where_nothing_changes(denoiser, placeholders, rows):
    model, inputs = denoiser
    scheduler = FlowMatchEulerDiscreteScheduler()
    plain = outputs(model, scheduler, inputs, still=True)[0]
    placeholders(float("nan"))
    mask = [[step < 2, step < 2 or step % 2 == 0, rows == "mixed"] for step in range(STEPS)]
    mask[0] = mask[1] = [True] * ROWS
    if rows == "together":
        mask = [[step in FULL] * ROWS for step in range(STEPS)]
    diffcache.wrap(model, method(1, 0), scheduler=scheduler, mask=mask)
    for found in outputs(model, scheduler, inputs, still=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    assert diffcache.report(model).mask.tolist() == mask


@pytest.mark.parametrize("lagged", [False, True])
def test_probe_that_does_not_see_the_sample_is_moved(bench, count_calls, placeholders, lagged):
    """The first block of Lumina 2 refines the text alone."""
    denoisers, name = bench("denoisers"), "Lumina2Transformer2DModel"
    model, scheduler = denoisers.build(name), FlowMatchEulerDiscreteScheduler()
    inputs = denoisers.caller(name, ROWS)(0.0)
    plain = outputs(model, scheduler, inputs, still=False)
    text, noise, layers = model.context_refiner, model.noise_refiner, model.layers
    runs = {id(part): count_calls(list(part)) for part in (text, noise, layers)}
    placeholders(float("nan"))
    diffcache.wrap(model, "fbcache", scheduler=scheduler, threshold=1e9, lagged=lagged)
    found = outputs(model, scheduler, inputs, still=False)
    report = diffcache.report(model)
    computed = report.mask[:, 0].nonzero().flatten().tolist()
    assert any("moved past blocks" in note for note in report.notes)
    assert computed == list(range(len(computed))) and len(computed) < STEPS - 2
    assert runs[id(text)] == [STEPS] * len(text) and runs[id(noise)][0] == STEPS
    assert set(runs[id(layers)]) == {len(computed)}
    for index in range(STEPS):
        assert found[index].isfinite().all()
        assert torch.equal(found[index], plain[index]) == (index in computed)


def test_probe_that_does_not_see_the_sample_is_not_trusted(bench):
    """What the blocks of Cosmos 3 hand on first is the text."""
    denoisers, name = bench("denoisers"), "Cosmos3OmniTransformer"
    model, scheduler = denoisers.build(name), FlowMatchEulerDiscreteScheduler()
    arguments = denoisers.caller(name, denoisers.rows(name))

    def run() -> list[torch.Tensor]:
        scheduler.set_timesteps(STEPS)
        found = []
        for index, t in enumerate(scheduler.timesteps):
            found.append(tensor_leaves(model(**arguments(float(t), 1 - 0.05 * index)))[0])
            scheduler.step(found[-1], t, torch.zeros_like(found[-1]))
        return found

    plain = run()
    diffcache.wrap(model, "fbcache", scheduler=scheduler, threshold=1e9)
    assert all(map(torch.equal, run(), plain))
    notes = diffcache.report(model).notes
    assert any("gave the same at two steps" in note for note in notes)
    assert any("diffcache.wrap(pipe, 'adaptive') needs none" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("Lumina2Transformer2DModel", 2),
        ("Lumina2Transformer2DModel", 3),
        ("Kandinsky5Transformer3DModel", 3),
    ],
)
def test_head_that_ends_in_another_stream_than_it_begins_in(bench, name, head):
    denoisers, scheduler = bench("denoisers"), FlowMatchEulerDiscreteScheduler()
    model = denoisers.build(name)
    inputs = denoisers.caller(name, ROWS)(0.0)
    diffcache.wrap(model, "fbcache", scheduler=scheduler, threshold=1e9, head=head)
    for found in outputs(model, scheduler, inputs, still=False):
        assert found.isfinite().all()
    assert diffcache.report(model).compute_fraction < 0.5


def test_control_residuals_count_once(make, placeholders):
    """What a ControlNet adds between blocks is neither lost nor doubled on a skip."""
    model: FluxTransformer2DModel = make("dit").transformer
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(ROWS, 16, 16, generator=generator),
        "encoder_hidden_states": torch.randn(ROWS, 7, 32, generator=generator),
        "pooled_projections": torch.randn(ROWS, 32, generator=generator),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(7, 3),
    }
    control = {
        name: [torch.randn(ROWS, 16, 32, generator=generator) for _ in range(count)]
        for name, count in (("controlnet_block_samples", 2), ("controlnet_single_block_samples", 3))
    }
    scheduler = FlowMatchEulerDiscreteScheduler()
    with torch.no_grad():
        without = outputs(model, scheduler, inputs, still=True)[0]
        plain = outputs(model, scheduler, inputs | control, still=True)[0]
        assert (without - plain).norm() > 0.01 * plain.norm()
        placeholders(float("nan"))
        diffcache.wrap(model, method(1, 0), scheduler=scheduler)
        for found in outputs(model, scheduler, inputs | control, still=True):
            torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    assert diffcache.report(model).compute_fraction < 1


@pytest.mark.parametrize("head", [0, 1])
def test_control_hints_count_once(bench, placeholders, head):
    """WanVACE has a list of blocks for its hints, which others add to what they give."""
    denoisers, name = bench("denoisers"), "WanVACETransformer3DModel"
    model, scheduler = denoisers.build(name), FlowMatchEulerDiscreteScheduler()
    inputs = denoisers.caller(name, ROWS)(0.0)
    other = inputs | {"control_hidden_states": -inputs["control_hidden_states"]}
    plain = outputs(model, scheduler, inputs, still=True)[0]
    without = outputs(model, scheduler, other, still=True)[0]
    assert (without - plain).norm() > 0.01 * plain.norm()
    placeholders(float("nan"))
    mask = [[step in FULL, step < 2 or step % 2 == 0, True] for step in range(STEPS)]
    diffcache.wrap(model, method(head, 0), scheduler=scheduler, mask=mask)
    for found in outputs(model, scheduler, inputs, still=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    assert diffcache.report(model).mask.tolist() == mask


@pytest.mark.parametrize("tail", [0, 1])
def test_last_block_that_reads_an_early_one(bench, placeholders, tail):
    denoisers = bench("denoisers")
    model = denoisers.build("HunyuanDiT2DModel")
    inputs = denoisers.caller("HunyuanDiT2DModel", ROWS)(0.0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    plain = outputs(model, scheduler, inputs, still=False)
    placeholders(float("nan"))
    diffcache.wrap(model, method(0, tail), scheduler=scheduler)
    found = outputs(model, scheduler, inputs, still=False)
    report = diffcache.report(model)
    assert report.mask[:, 0].nonzero().flatten().tolist() == FULL
    assert any("at the end read" in note for note in report.notes) == bool(tail)
    for index in range(STEPS):
        assert found[index].isfinite().all()
        assert torch.equal(found[index], plain[index]) == (index in FULL)
