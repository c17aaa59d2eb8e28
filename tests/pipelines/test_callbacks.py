"""Callbacks that edit latents, or ask the denoiser something of their own."""

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

import diffcache

STEPS = 20
MASK = [step < 2 or step % 4 == 0 for step in range(STEPS)]


def afresh(report: diffcache.Report) -> list[str]:
    return [note for note in report.notes if "latents were edited" in note]


class Replaced(PipelineCallback):
    """New noise after one step."""

    tensor_inputs = ("latents",)

    def callback_fn(self, pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if step == 9:
            generator = torch.Generator().manual_seed(step)
            noise = torch.randn(tensors["latents"].shape, generator=generator)
            return tensors | {"latents": noise}
        return tensors


def written(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
    if step == 9:
        tensors["latents"].neg_()
    return tensors


def legacy(step: int, timestep: Any, latents: torch.Tensor) -> None:
    if step == 9:
        latents.mul_(-1)


@pytest.mark.parametrize("edit", [Replaced(), MultiPipelineCallbacks([Replaced()]), written])
@pytest.mark.parametrize("method", ["interval", "adaptive"])
def test_what_stands_in_is_none_of_the_latents_before(pipe, generate, method, edit):
    options = {"every": 8} if method == "interval" else {"tolerance": 9.0}
    diffcache.wrap(pipe, method, **options)
    generate(pipe, steps=STEPS)
    untouched = diffcache.report(pipe)
    assert not untouched.mask[10].any() and not afresh(untouched)
    latents = generate(pipe, steps=STEPS, callback_on_step_end=edit)
    report = diffcache.report(pipe)
    assert report.mask[10].all() and not report.mask[11:].all()
    assert report.mask[:10].tolist() == untouched.mask[:10].tolist()
    assert afresh(report) == [
        "latents were edited before step 10, so the caches were started afresh"
    ]
    assert latents.isfinite().all()


def test_a_callback_of_the_old_kind(unet, generate, recwarn):
    diffcache.wrap(unet, "interval", every=8)
    generate(unet, steps=STEPS, callback=legacy, callback_steps=1)
    assert diffcache.report(unet).mask[10].all() and afresh(diffcache.report(unet))


@pytest.mark.parametrize("edit", ["none", "copies", "the same object"])
def test_latents_that_stay_as_they_are(pipe, generate, edit):
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if edit == "copies":
            return {"latents": tensors["latents"].clone()}
        return {} if edit == "none" else tensors

    diffcache.wrap(pipe, mask=MASK)
    wanted = generate(pipe, steps=STEPS)
    assert torch.equal(generate(pipe, steps=STEPS, callback_on_step_end=callback), wanted)
    assert not afresh(diffcache.report(pipe))


def test_edits_at_every_step_are_the_way_of_the_sampler(pipe, generate):
    def blend(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        return {"latents": tensors["latents"] * 0.99}

    diffcache.wrap(pipe, mask=MASK)
    generate(pipe, steps=STEPS, callback_on_step_end=blend)
    report = diffcache.report(pipe)
    assert report.mask[:, 0].tolist() == MASK
    assert len(afresh(report)) == 1


@pytest.mark.parametrize("kind", ["function", "object"])
def test_a_callbacks_own_calls_are_computed(pipe, generate, kind):
    """A preview of its own, with the very arguments of the run."""
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    last: dict[str, Any] = {}
    hook = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: last.setdefault("call", (args, kwargs)), with_kwargs=True
    )
    generate(pipe, steps=STEPS)
    hook.remove()
    args, kwargs = last["call"]
    answers: list[torch.Tensor] = []

    class Probe(PipelineCallback):
        tensor_inputs = ()

        def callback_fn(self, pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
            self.asked = step
            answers.append(denoiser(*args, **kwargs)[0])
            return tensors

    probe = Probe()

    def asking(*given: Any) -> dict:
        return probe.callback_fn(*given)

    diffcache.wrap(pipe, mask=MASK)
    wanted = generate(pipe, steps=STEPS)
    before = diffcache.report(pipe)
    found = generate(pipe, steps=STEPS, callback_on_step_end=probe if kind == "object" else asking)
    report = diffcache.report(pipe)
    assert torch.equal(found, wanted)
    assert (report.computed, report.total) == (before.computed, before.total)
    assert len(answers) == STEPS and all(torch.equal(answers[0], each) for each in answers)
    # What it remembers is on the user's own object.
    assert probe.asked == STEPS - 1


class Slotted:
    __slots__ = ("tensor_inputs",)

    def __call__(self, *given: Any) -> dict:
        return given[-1]


def marked(*given: Any) -> dict:
    return given[-1]


marked.tensor_inputs = ["latents"]


@pytest.mark.parametrize("callback", [Mock(side_effect=marked), marked, Slotted()])
def test_any_callable_may_be_a_callback(pipe, generate, callback):
    diffcache.wrap(pipe, mask=MASK)
    wanted = generate(pipe, steps=STEPS)
    assert torch.equal(generate(pipe, steps=STEPS, callback_on_step_end=callback), wanted)


def test_latents_that_were_not_asked_for_may_be_replaced(pipe, generate):
    noise = generate(pipe, steps=STEPS)

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        assert not tensors
        return {"latents": noise} if step == 9 else {}

    given = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": []}
    diffcache.wrap(pipe, "interval", every=8)
    generate(pipe, steps=STEPS, **given)
    assert diffcache.report(pipe).mask[10].all() and len(afresh(diffcache.report(pipe))) == 1


def test_edits_after_the_last_step_start_nothing(pipe, generate):
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        return {"latents": tensors["latents"] * (0.5 if step == STEPS - 1 else 1)}

    diffcache.wrap(pipe, mask=MASK)
    generate(pipe, steps=STEPS, callback_on_step_end=callback)
    assert not afresh(diffcache.report(pipe))
