"""A denoiser that a callback changes in the middle of a generation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig

import diffcache
from diffcache.sites.discovery import denoisers

AT = 7


def at(step_of_change: int, change: Callable[[Any], None]) -> Callable:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == step_of_change:
            change(pipe)
        return tensors

    return callback


@torch.no_grad()
def weights(pipe: Any) -> None:
    (module,) = denoisers(pipe).values()
    next(module.parameters()).mul_(1.5)


def adapter(pipe: Any) -> None:
    (module,) = denoisers(pipe).values()
    module.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))


CHANGES = {"weights": weights, "adapter": adapter}


@pytest.mark.parametrize("change", CHANGES)
def test_caches_start_afresh(pipe, generate, change):
    diffcache.wrap(pipe, "interval", every=10**6, protect=(2, 1))
    generate(pipe, steps=16, callback_on_step_end=at(AT, CHANGES[change]))
    report = diffcache.report(pipe)
    computed = [step for step, row in enumerate(report.mask.tolist()) if row[0]]
    assert computed == [0, 1, AT + 1, 15]
    assert any("changed before step 8" in note for note in report.notes)


def test_adapter_scale_and_processor_are_seen(unet, generate):
    unet.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "one")

    def scale(pipe: Any) -> None:
        pipe.unet.set_adapters("one", 0.5)

    def processor(pipe: Any) -> None:
        pipe.unet.set_attn_processor(AttnProcessor())

    diffcache.wrap(unet, "interval", every=10**6, protect=(2, 1))
    for change in (scale, processor):
        generate(unet, steps=16, callback_on_step_end=at(AT, change))
        assert diffcache.report(unet).mask[AT + 1].all()


def test_a_callback_that_changes_nothing_costs_no_step(pipe, generate):
    diffcache.wrap(pipe, "interval", every=10**6, protect=(2, 1))
    generate(pipe, steps=16, callback_on_step_end=at(AT, lambda pipe: None))
    report = diffcache.report(pipe)
    assert [step for step, row in enumerate(report.mask.tolist()) if row[0]] == [0, 1, 15]
    assert not any("changed" in note for note in report.notes)


def first(count: int) -> Callable[..., dict[str, Any]]:
    """A callback that goes on with so many samples, those there are again where they are fewer."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step != AT:
            return tensors
        rows = torch.arange(count) % len(tensors["latents"])
        return {
            name: torch.cat([part[rows] for part in tensor.chunk(1 if name == "latents" else 2)])
            for name, tensor in tensors.items()
        }

    return callback


@pytest.mark.parametrize("count", [2, 3, 8], ids=["half", "fewer", "twice"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("adaptive", {}),
        ("adaptive", {"compute": 0.5}),
        ("adaptive", {"lagged": True}),
        ("third_order", {}),
        ("easycache", {}),
        ("pab", {}),
    ],
    ids=["adaptive", "compute", "lagged", "third_order", "easycache", "pab"],
)
def test_samples_that_come_or_go_start_the_caches_afresh(unet, generate, method, options, count):
    """Strict, so that no error inside of diffcache passes."""
    diffcache.wrap(unet, method, **options)
    latents = generate(
        unet,
        4,
        24,
        callback_on_step_end=first(count),
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert latents.isfinite().all()
    report = diffcache.report(unet)
    (note,) = (note for note in report.notes if "number of samples changed" in note)
    assert f"from 4 to {count} before step {AT + 1}" in note
    assert [len(event.rules) for event in report.trace] == [4] * (AT + 1) + [count] * (23 - AT)
    assert [set(event.rules) for event in report.trace[AT + 1 : AT + 3]] == [{"first"}] * 2
    assert report.mask.shape == (0, 0) and report.steps == 24
    assert report.total == 2 * (4 * (AT + 1) + count * (23 - AT))


def test_steps_are_skipped_again_after_samples_came(unet, generate):
    diffcache.wrap(unet, "interval", every=3, protect=(0, 0))
    generate(
        unet,
        4,
        24,
        callback_on_step_end=first(8),
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    computed = [event.step for event in diffcache.report(unet).trace if event.rules[0] != "skip"]
    assert computed == [0, 3, 6, AT + 1, 9, 12, 15, 18, 21]


@pytest.mark.parametrize("options", [{"compute": 0.5}, {"tolerance": 0.9}])
def test_latents_that_grow_in_a_loop(unet, options):
    model, scheduler = unet.unet, unet.scheduler
    diffcache.wrap(model, scheduler=scheduler, **options)
    scheduler.set_timesteps(24)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            if step == AT:
                latents = torch.nn.functional.interpolate(latents, scale_factor=2)
            latents = scheduler.step(model(latents, t, texts).sample, t, latents).prev_sample
    report = diffcache.report(model)
    assert latents.isfinite().all() and not any("given up" in note for note in report.notes)
    assert not report.mask[AT + 1 :].all()


def test_calls_in_inference_mode_and_steps_outside(unet):
    model, scheduler = unet.unet, unet.scheduler
    diffcache.wrap(model, scheduler=scheduler, mask=[[True, True], [True, False]] * 10)
    scheduler.set_timesteps(20)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    texts = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        with torch.inference_mode():
            found = model(latents, t, texts).sample
        latents = scheduler.step(found.clone(), t, latents).prev_sample
    report = diffcache.report(model)
    assert latents.isfinite().all() and report.compute_fraction == 0.75
