"""LoRA adapters of peft: before wrapping, and swapped or scaled between generations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig

import diffcache
from diffcache.sites.discovery import denoisers

# What peft says of a second adapter.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")

METHODS = {
    "unet": {"adaptive": {"tolerance": 0.0}, "deepcache": {"every": 1}, "fora": {"every": 1}},
    "dit": {"adaptive": {"tolerance": 0.0}, "fbcache": {"threshold": 0.0}, "fora": {"every": 1}},
}


def add(pipe: Any, name: str, seed: int) -> None:
    """Adds an adapter that changes what the denoiser predicts."""
    (module,) = denoisers(pipe).values()
    module.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]), name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in module.named_parameters():
            if name in path:
                weight.copy_(torch.randn(weight.shape, generator=generator))


def swap(pipe: Any) -> None:
    pipe.set_adapters("two", 1.0)


def rescale(pipe: Any) -> None:
    pipe.set_adapters("one", 0.25)


def disable(pipe: Any) -> None:
    pipe.disable_lora()


def enable(pipe: Any) -> None:
    pipe.enable_lora()


CHANGES: list[Callable[[Any], None]] = [swap, rescale, disable, enable]


CASES = [(kind, method) for kind in METHODS for method in METHODS[kind]]
MASK = [step % 2 == 0 for step in range(10)]


def adapted(make: Callable, kind: str) -> Any:
    """A pipeline with two adapters, of which the first is active."""
    pipe = make(kind)
    add(pipe, "one", 1)
    add(pipe, "two", 2)
    pipe.set_adapters("one", 1.0)
    return pipe


@pytest.mark.parametrize("kind, method", CASES)
def test_never_skipping_follows_the_adapters(make, generate, kind, method):
    pipe, twin = adapted(make, kind), adapted(make, kind)
    diffcache.wrap(pipe, method, **METHODS[kind][method])
    before = generate(twin, steps=10)
    assert torch.equal(generate(pipe, steps=10), before)
    for change in CHANGES:
        change(pipe)
        change(twin)
        plain = generate(twin, steps=10)
        assert torch.equal(generate(pipe, steps=10), plain) and not torch.equal(plain, before)
        before = plain


@pytest.mark.parametrize("kind, method", CASES)
def test_cache_starts_afresh_when_adapters_change(make, generate, kind, method):
    """A generation after a change is that of a pipeline that was wrapped after the change."""
    pipe, twin = adapted(make, kind), adapted(make, kind)
    diffcache.wrap(pipe, method, mask=MASK)
    generate(pipe, steps=10)
    for change in CHANGES:
        change(pipe)
        change(twin)
        diffcache.wrap(twin, method, mask=MASK)
        assert torch.equal(generate(pipe, steps=10), generate(twin, steps=10))
        assert diffcache.report(pipe).mask[:, 0].tolist() == MASK


def test_adapter_added_and_deleted_while_wrapped(unet, generate):
    plain = generate(unet, steps=10)
    diffcache.wrap(unet, "deepcache", every=1)
    add(unet, "late", 3)
    adapted = generate(unet, steps=10)
    assert not torch.equal(adapted, plain)
    unet.unet.delete_adapters("late")
    assert torch.equal(generate(unet, steps=10), plain)
    diffcache.unwrap(unet)
    assert torch.equal(generate(unet, steps=10), plain)


@pytest.mark.parametrize("kind", METHODS)
def test_an_adapter_merged_by_a_callback_is_noticed(make, generate, kind):
    pipe = adapted(make, kind)
    (name,) = denoisers(pipe)

    def merge(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if step == 4:
            pipe.fuse_lora(components=[name], adapter_names=["two"])
        return tensors

    diffcache.wrap(pipe, "interval", every=8)
    generate(pipe, steps=10, callback_on_step_end=merge)
    report = diffcache.report(pipe)
    assert report.mask[5].all() and not report.mask[6].any()
    assert any("adapters" in note and "afresh" in note for note in report.notes)


def process_otherwise(pipe: Any) -> None:
    pipe.unet.set_attn_processor(AttnProcessor())


def add_another(pipe: Any) -> None:
    add(pipe, "late", 3)


def free(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def free_otherwise(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)


@pytest.mark.parametrize("change", [add_another, free])
def test_what_comes_in_amid_a_loop_of_a_plain_denoiser_is_noticed(make, change):
    noticed(make("unet"), change)


@pytest.mark.parametrize("change", [swap, rescale, disable, process_otherwise, free_otherwise])
def test_a_switch_amid_a_loop_by_hand_is_noticed(make, change):
    pipe = adapted(make, "unet")
    free(pipe)
    noticed(pipe, change)


def noticed(pipe: Any, change: Callable[[Any], None]) -> None:
    """Asserts that a loop by hand computes the steps after a change amid it."""
    diffcache.wrap(pipe.unet, "interval", scheduler=pipe.scheduler, every=8)
    pipe.scheduler.set_timesteps(10)
    latents, texts = torch.ones(1, 4, 8, 8), torch.ones(1, 7, 32)
    for step, t in enumerate(pipe.scheduler.timesteps):
        if step == 5:
            change(pipe)
        with torch.no_grad():
            found = pipe.unet(latents, t, encoder_hidden_states=texts).sample
        latents = pipe.scheduler.step(found, t, latents).prev_sample
    report = diffcache.report(pipe.unet)
    assert report.timeline() == "███··█··██"
    assert any("adapters" in note and "afresh" in note for note in report.notes)
