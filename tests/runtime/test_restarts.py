"""Whatever the last generation was, the next one is that of a freshly wrapped pipeline."""

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

import diffcache
from diffcache.runtime.history import History

TOLERANCE = 0.9
METHODS = {
    "adaptive": lambda pipe: diffcache.wrap(pipe, tolerance=TOLERANCE),
    "interval": lambda pipe: diffcache.wrap(pipe, "interval", every=3),
    "third_order": lambda pipe: diffcache.wrap(pipe, "third_order", threshold=0.3),
}


def other_scheduler(pipe: Any) -> None:
    flow, config = hasattr(pipe, "transformer"), pipe.scheduler.config
    if flow:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, shift=3.0)
    else:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)


class Stop(Exception):
    """What the user's callback raises."""


def stopping(error: BaseException, at: int) -> Any:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            raise error
        return tensors

    return callback


def interrupt(pipe: Any, generate: Any, error: BaseException, at: int = 7) -> None:
    raised = None
    try:
        generate(pipe, steps=16, callback_on_step_end=stopping(error, at))
    except (Stop, KeyboardInterrupt) as found:
        raised = type(found)
    assert raised is type(error)


BEFORE = {
    "nothing": lambda pipe, generate: None,
    "same call": lambda pipe, generate: generate(pipe, steps=16),
    "other prompts": lambda pipe, generate: generate(pipe, [5, 6], steps=16),
    "one step": lambda pipe, generate: generate(pipe, steps=1),
    "fewer steps": lambda pipe, generate: generate(pipe, steps=11),
    "larger": lambda pipe, generate: generate(pipe, steps=16, size=32),
    "larger batch": lambda pipe, generate: generate(pipe, 3, steps=16),
    "no guidance": lambda pipe, generate: generate(pipe, steps=16, cfg=False),
    "exception in a callback": lambda pipe, generate: interrupt(pipe, generate, Stop()),
    "interrupt": lambda pipe, generate: interrupt(pipe, generate, KeyboardInterrupt()),
    "interrupt at once": lambda pipe, generate: interrupt(pipe, generate, KeyboardInterrupt(), 0),
}


@pytest.mark.parametrize("method", ["adaptive", "interval"])
@pytest.mark.parametrize("before", BEFORE)
def test_next_generation_starts_afresh(pipe, make, generate, method, before):
    fresh = METHODS[method](make("unet" if hasattr(pipe, "unet") else "dit"))
    METHODS[method](pipe)
    BEFORE[before](pipe, generate)
    wanted, latents = generate(fresh, steps=16), generate(pipe, steps=16)
    assert torch.equal(latents, wanted)
    report, other = diffcache.report(pipe), diffcache.report(fresh)
    assert report.mask.tolist() == other.mask.tolist()
    assert report.trace == other.trace
    assert report.compute_fraction == other.compute_fraction < 1


def test_another_scheduler_is_observed(pipe, make, generate):
    fresh = make("unet" if hasattr(pipe, "unet") else "dit")
    diffcache.wrap(pipe, tolerance=TOLERANCE)
    old = pipe.scheduler
    generate(pipe, steps=16)
    for each in (pipe, fresh):
        other_scheduler(each)
    diffcache.wrap(fresh, tolerance=TOLERANCE)
    assert torch.equal(generate(pipe, steps=16), generate(fresh, steps=16))
    assert diffcache.report(pipe).mask.tolist() == diffcache.report(fresh).mask.tolist()
    assert diffcache.report(pipe).steps == len(pipe.scheduler.timesteps)
    assert diffcache.report(pipe).compute_fraction < 1
    assert "_diffcache_base" not in vars(type(old))


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """Weak references to every tensor that a history ever held."""
    found: list[weakref.ref] = []
    plain = History.append

    def append(self: History, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        found.extend(weakref.ref(leaf) for slot in self.slots for leaf in slot)

    monkeypatch.setattr(History, "append", append)
    return found


@pytest.mark.parametrize("before", ["same call", "exception in a callback", "interrupt"])
@pytest.mark.parametrize("method", METHODS)
def test_memory_goes_with_the_generation(pipe, generate, cached, method, before):
    METHODS[method](pipe)
    gc.collect()
    gc.disable()
    try:
        BEFORE[before](pipe, generate)
        alive = [reference for reference in cached if reference() is not None]
    finally:
        gc.enable()
    assert cached
    assert diffcache.report(pipe).cache_bytes > 0
    assert alive == []


def test_report_of_an_interrupted_generation_tells_how_far_it_came(pipe, generate):
    diffcache.wrap(pipe, tolerance=TOLERANCE)
    interrupt(pipe, generate, Stop(), at=7)
    report = diffcache.report(pipe)
    assert report.steps == len(report.trace) == len(report.mask) == 8


def test_wrapped_pipeline_is_freed(make, generate):
    pipe = diffcache.wrap(make("unet"), tolerance=TOLERANCE)
    generate(pipe, steps=10)
    references = [weakref.ref(pipe), weakref.ref(pipe.unet), weakref.ref(pipe.scheduler)]
    del pipe
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]
