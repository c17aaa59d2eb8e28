"""Copies, pickles and conversions of a wrapped pipeline that has generated are plain ones."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)

import diffcache

CLASSES = {"unet": StableDiffusionPipeline, "dit": FluxPipeline}


@pytest.fixture(params=CLASSES)
def case(request: pytest.FixtureRequest, make: Any, generate: Any) -> Any:
    """A class, the latents of its plain pipeline, and a wrapped one that has generated."""
    pipe = make(request.param)
    latents = generate(pipe)
    diffcache.wrap(pipe, "interval", every=4)
    assert not torch.equal(generate(pipe), latents)
    return CLASSES[request.param], latents, pipe


def is_plain(pipe: Any, kind: type) -> bool:
    parts = [pipe.scheduler, getattr(pipe, "unet", None) or pipe.transformer]
    return type(pipe) is kind and not any("_diffcache_base" in vars(type(p)) for p in parts)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda pipe: pickle.loads(pickle.dumps(pipe))],
    ids=["deepcopy", "copy", "pickle"],
)
def test_copy_is_plain(case, generate, duplicate):
    kind, latents, pipe = case
    twin = duplicate(pipe)
    assert is_plain(twin, kind)
    assert torch.equal(generate(twin), latents)
    with pytest.raises(ValueError, match="is not wrapped"):
        diffcache.report(twin)
    generate(pipe)
    assert diffcache.report(pipe).compute_fraction < 1


def test_deepcopy_owns_its_weights(case, generate):
    _, _, pipe = case
    twin = copy.deepcopy(pipe)
    for parameter in (getattr(pipe, "unet", None) or pipe.transformer).parameters():
        parameter.data.zero_()
    assert generate(twin).abs().sum() > 0
    assert not torch.equal(generate(twin), generate(pipe))


def test_copies_made_inside_a_generation_are_plain(case, generate):
    kind, latents, pipe = case
    copies = []

    def callback(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 5:
            copies.extend([copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))])
        return tensors

    generate(pipe, callback_on_step_end=callback)
    for twin in copies:
        assert is_plain(twin, kind)
        assert torch.equal(generate(twin), latents)


def test_save_and_load(case, generate, tmp_path):
    kind, latents, pipe = case
    pipe.save_pretrained(tmp_path)
    absent = {name: None for name, part in pipe.components.items() if part is None}
    for loader in (kind, DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path, **absent)
        loaded.set_progress_bar_config(disable=True)
        assert is_plain(loaded, kind)
        assert torch.equal(generate(loaded), latents)


def test_from_pipe(case, generate):
    kind, latents, pipe = case
    conversions = {
        StableDiffusionPipeline: StableDiffusionImg2ImgPipeline,
        FluxPipeline: FluxImg2ImgPipeline,
    }
    for target in (kind, conversions[kind]):
        converted = target.from_pipe(pipe)
        converted.set_progress_bar_config(disable=True)
        assert is_plain(converted, target)
    assert torch.equal(generate(kind.from_pipe(pipe)), latents)
    generate(pipe)
    assert diffcache.report(pipe).compute_fraction < 1


def test_class_looks_right(case):
    kind, _, pipe = case
    assert isinstance(pipe, kind)
    assert isinstance(pipe, DiffusionPipeline)
    assert type(pipe).__name__ == kind.__name__
    assert type(pipe).__qualname__ == kind.__qualname__
    assert type(pipe).__module__ == kind.__module__
    assert inspect.signature(type(pipe).__call__) == inspect.signature(kind.__call__)
    assert repr(pipe).startswith(kind.__name__)
    assert pipe.config["_class_name"] == kind.__name__
    assert set(pipe.components) == set(inspect.signature(kind.__init__).parameters) - {
        "self",
        "requires_safety_checker",
    }


def test_pipeline_subclass_is_wrapped_as_what_it_is(make, generate):
    class Mine(StableDiffusionPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            return super().__call__(*args, **kwargs)

    pipe = make("unet")
    pipe.__class__ = Mine
    diffcache.wrap(pipe, "interval", every=4)
    generate(pipe)
    assert isinstance(pipe, Mine) and pipe.calls == 1
    assert diffcache.report(pipe).compute_fraction < 1
    assert type(diffcache.unwrap(pipe)) is Mine


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deep", "pickle"],
)
def test_a_copy_of_a_wrapped_denoiser_is_plain(unet, gate, copied):
    model = unet.unet
    diffcache.wrap(model, scheduler=unet.scheduler, mask=[True] + [False] * 15)
    twin = copied(model)
    unet.scheduler.set_timesteps(16)
    sample, text = torch.ones(1, 4, 8, 8), torch.ones(1, 7, 32)
    with torch.no_grad():
        found = [twin(sample * t, t, text).sample for t in unet.scheduler.timesteps[:3]]
        diffcache.unwrap(model)
        wanted = [model(sample * t, t, text).sample for t in unet.scheduler.timesteps[:3]]
    assert all(map(torch.equal, found, wanted))
    with pytest.raises(ValueError, match="is not wrapped"):
        diffcache.report(twin)
