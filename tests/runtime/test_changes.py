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
