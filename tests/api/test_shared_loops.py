"""Bare denoisers that share a scheduler, and loops that end early or change what they hold."""

import copy
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

import diffcache

STEPS = 16
TEXTS = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(5))
MASK = [step < 2 or step % 4 == 0 for step in range(STEPS)]


class Counted(torch.nn.Module):
    """A denoiser that counts what it computes."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.count = 0

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        self.count += 1
        return self.model(sample, timestep, encoder_hidden_states=encoder_hidden_states).sample


@torch.no_grad()
def run(
    scheduler: Any,
    *models: Any,
    texts: torch.Tensor = TEXTS,
    given: Callable[[torch.Tensor], torch.Tensor] | None = None,
    stop: int = STEPS,
) -> torch.Tensor:
    """A loop whose denoisers take an equal share of the steps each, one after the other."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(STEPS)
    for step, t in enumerate(scheduler.timesteps[:stop]):
        model = models[step * len(models) // STEPS]
        prompt = texts if given is None else given(texts)
        latents = scheduler.step(model(latents, t, prompt), t, latents).prev_sample
    return latents


@pytest.fixture
def models(unet):
    return Counted(unet.unet), Counted(unet.unet)


def test_unwrapping_one_of_two_leaves_it_plain(unet, models):
    scheduler, (one, other) = unet.scheduler, models
    plain = run(scheduler, other)
    for model in models:
        diffcache.wrap(model, "interval", scheduler=scheduler, every=4)
    diffcache.unwrap(other)
    other.count = 0
    assert torch.equal(run(scheduler, other), plain)
    assert other.count == STEPS
    run(scheduler, one)
    assert diffcache.report(one).compute_fraction < 1
    diffcache.unwrap(one)
    assert type(scheduler) is DDIMScheduler


def test_both_of_two_are_served(unet, models):
    """As Wan 2.2 has one denoiser for the noisy steps and one for the others."""
    scheduler = unet.scheduler
    run(scheduler, *models)
    for model in models:
        model.count = 0
        diffcache.wrap(model, "interval", scheduler=scheduler, every=4, force=True)
    for _ in range(2):
        found = run(scheduler, *models)
        reports = [diffcache.report(model) for model in models]
        assert [report.steps for report in reports] == [STEPS // 2] * 2
        assert all(report.compute_fraction < 1 for report in reports)
        assert [model.count for model in models] == [report.calls for report in reports]
        assert found.isfinite().all()
        for model in models:
            model.count = 0
    run(scheduler, models[0])
    assert diffcache.report(models[0]).steps == STEPS


def whole(texts: torch.Tensor) -> torch.Tensor:
    return texts


def view(texts: torch.Tensor) -> torch.Tensor:
    return texts[:1]


@pytest.mark.parametrize("given", [whole, view])
@pytest.mark.parametrize("when", [1, 6])
def test_a_prompt_written_over_is_computed_with(unet, models, when, given):
    scheduler, (model, _) = unet.scheduler, models
    diffcache.wrap(model, mask=[True] + [False] * (STEPS - 1), scheduler=scheduler)
    run(scheduler, model)
    assert diffcache.report(model).mask.sum() == 1
    texts = TEXTS.clone()

    class Rewriting(DDIMScheduler):
        def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
            if timestep == self.timesteps[when - 1]:
                texts.neg_()
            return super().step(model_output, timestep, sample, **kwargs)

    scheduler = Rewriting.from_config(scheduler.config)
    diffcache.wrap(model, mask=[True] + [False] * (STEPS - 1), scheduler=scheduler)
    run(scheduler, model, texts=texts, given=given)
    assert diffcache.report(model).mask[:, 0].nonzero().flatten().tolist() == [0, when]


def test_a_buffer_that_is_filled_with_the_same_again(unet, models):
    scheduler, (model, _) = unet.scheduler, models
    buffer = TEXTS.clone()
    diffcache.wrap(model, mask=MASK, scheduler=scheduler)
    run(scheduler, model, given=lambda texts: buffer.copy_(texts))
    assert diffcache.report(model).mask[:, 0].tolist() == MASK


def test_a_loop_that_stops_early_is_freed(unet, models):
    scheduler, model = copy.deepcopy(unet.scheduler), copy.deepcopy(models[0])
    diffcache.wrap(model, scheduler=scheduler)
    run(scheduler, model, stop=7)
    references = [weakref.ref(model), weakref.ref(scheduler)]
    del model, scheduler
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_denoiser_that_is_gone_is_told_nothing(unet, models):
    scheduler, other = unet.scheduler, models[1]
    model = copy.deepcopy(models[0])
    diffcache.wrap(model, scheduler=scheduler)
    run(scheduler, model, stop=7)
    del model
    gc.collect()
    assert type(scheduler).__dict__.get("_diffcache_base") is None
    diffcache.wrap(other, "interval", scheduler=scheduler, every=4)
    run(scheduler, other)
    assert diffcache.report(other).steps == STEPS
    diffcache.unwrap(other)
    assert type(scheduler) is DDIMScheduler


def test_a_request_has_the_loops_that_began_in_it(unet, models):
    scheduler, (model, _) = unet.scheduler, models
    diffcache.wrap(model, "interval", scheduler=scheduler, every=4)
    run(scheduler, model, stop=7)
    with diffcache.request(every=2) as request:
        run(scheduler, model)
        run(scheduler, model, stop=9)
    assert [report.steps for report in request.reports] == [STEPS, 9]
    assert request.report.timeline() == diffcache.report(model).timeline() == "███·█·█·█"
    run(scheduler, model)
    assert len(request.reports) == 2 and diffcache.report(model).steps == STEPS


@torch.no_grad()
def test_a_timetable_may_be_set_before_the_request_opens(unet, models):
    scheduler, (model, _) = unet.scheduler, models
    diffcache.wrap(model, "interval", scheduler=scheduler, every=4)
    latents = torch.ones(1, 4, 8, 8)
    with diffcache.request(every=3) as outer:
        scheduler.set_timesteps(STEPS)
        with diffcache.request(every=2) as request:
            for t in scheduler.timesteps:
                latents = scheduler.step(model(latents, t, TEXTS), t, latents).prev_sample
    assert outer.reports == []
    assert [report.steps for report in request.reports] == [STEPS]
    assert request.report.timeline().startswith("███·█·█·█")


def test_a_thread_that_calls_the_model_belongs_to_the_loop_s_request(unet, models):
    scheduler, (model, _) = unet.scheduler, models
    diffcache.wrap(model, "interval", scheduler=scheduler, every=4)
    with ThreadPoolExecutor(1) as threads, diffcache.request(every=2) as request:
        latents = torch.ones(1, 4, 8, 8)
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            found = threads.submit(torch.no_grad()(model), latents, t, TEXTS).result()
            latents = scheduler.step(found, t, latents).prev_sample
    assert [report.steps for report in request.reports] == [STEPS]
    assert request.report.timeline().startswith("███·█·█·█")


def test_a_timetable_without_a_loop_leaves_the_report(unet, models):
    scheduler, (model, _) = unet.scheduler, models
    diffcache.wrap(model, scheduler=scheduler)
    run(scheduler, model)
    for _ in range(2):
        scheduler.set_timesteps(STEPS)
    assert diffcache.report(model).steps == STEPS
    with diffcache.request() as request:
        scheduler.set_timesteps(STEPS)
    assert diffcache.report(model).steps == STEPS and request.reports == []


def test_a_request_holds_no_loop_that_has_ended(unet):
    scheduler, model = copy.deepcopy(unet.scheduler), Counted(unet.unet)
    diffcache.wrap(model, scheduler=scheduler)
    with diffcache.request() as request:
        run(scheduler, model)
        reference = weakref.ref(model)
        del model
        gc.collect()
        assert reference() is None
        assert not request._loops
    assert len(request.reports) == 1


def test_a_request_inside_of_a_loop_leaves_it_open(unet, models):
    scheduler, (model, _) = unet.scheduler, models
    diffcache.wrap(model, mask=MASK, scheduler=scheduler)

    def asking(texts: torch.Tensor) -> torch.Tensor:
        with diffcache.request(every=3):
            return texts

    run(scheduler, model, given=asking)
    assert diffcache.report(model).mask[:, 0].tolist() == MASK


def test_a_request_that_opens_in_the_middle_of_a_loop_is_not_its_own(unet, models):
    scheduler, (model, _) = unet.scheduler, models
    diffcache.wrap(model, mask=MASK, scheduler=scheduler)
    with ExitStack() as later:
        asked = []

        def asking(texts: torch.Tensor) -> torch.Tensor:
            asked.append(texts)
            if len(asked) == 2:
                later.enter_context(diffcache.request(every=3))
            return texts

        run(scheduler, model, given=asking)
    assert diffcache.report(model).mask[:, 0].tolist() == MASK


@pytest.mark.parametrize("method", ["adaptive", "deepcache"])
def test_a_denoiser_compiled_in_an_open_loop_keeps_no_gates(unet, method):
    model, scheduler = unet.unet, unet.scheduler
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    diffcache.wrap(model, method, scheduler=scheduler)
    latents = torch.ones(1, 4, 8, 8)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            if step == 4:
                # What `module.compile()` sets; dynamo itself would leave tensors of its own alive.
                model._compiled_call_impl = partial(type(model)._call_impl, model)
            found = model(latents, t, encoder_hidden_states=TEXTS).sample
            latents = scheduler.step(found, t, latents).prev_sample
    assert diffcache.report(model).steps == 4
    diffcache.unwrap(model)
    model._compiled_call_impl = None
    for name, module in model.named_modules():
        assert set(vars(module)) - before[name] <= {"_compiled_call_impl"}
        assert vars(module).get("_compiled_call_impl") is None


class Nameless:
    """A sampler that keeps its times under a name of its own."""

    def set_timesteps(self, steps: int) -> None:
        self.times = torch.linspace(999, 0, steps)

    def step(self, prediction: torch.Tensor, timestep: Any, sample: torch.Tensor) -> tuple:
        return (sample - prediction / len(self.times),)


def test_a_scheduler_without_timesteps_loses_no_loop(unet, models, monkeypatch):
    monkeypatch.delenv("DIFFCACHE_STRICT")
    scheduler, (model, _) = Nameless(), models

    @torch.no_grad()
    def loop() -> torch.Tensor:
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        scheduler.set_timesteps(STEPS)
        for t in scheduler.times:
            (latents,) = scheduler.step(model(latents, t, TEXTS), t, latents)
        return latents

    plain = loop()
    diffcache.wrap(model, scheduler=scheduler)
    assert torch.equal(loop(), plain)
    loop()
    assert diffcache.report(model).compute_fraction == 1
