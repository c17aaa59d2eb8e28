"""Where in the scheduler's timetable a run begins, and how long it is."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import (
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from diffusers import StableDiffusionPipeline as StableDiffusion

import diffcache
from diffcache.runtime import generation
from diffcache.runtime.guards import Guards
from diffcache.runtime.run import Run
from diffcache.runtime.timetable import Timetable


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every run that is begun."""
    begun: list[Run] = []

    def begin(*args: Any) -> Run:
        begun.append(Run(*args))
        return begun[-1]

    monkeypatch.setattr(generation, "Run", begin)
    return begun


@pytest.mark.parametrize("strength", [0.4, 0.75, 1.0])
@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_image_to_image_begins_in_the_middle(unet, runs, gate, strength, kind):
    pipe = StableDiffusionImg2ImgPipeline(**unet.components, requires_safety_checker=False)
    if kind == "euler":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    image = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8).repeat(2, 1, 1, 1)

    def run() -> torch.Tensor:
        seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        texts = torch.linspace(-1, 1, 2 * 7 * 32).reshape(2, 7, 32)
        return pipe(
            prompt_embeds=texts,
            negative_prompt_embeds=-texts,
            num_inference_steps=40,
            generator=seeds,
            output_type="latent",
            image=image,
            strength=strength,
        ).images

    plain = run()
    diffcache.wrap(pipe, tolerance=0)
    assert torch.equal(run(), plain)

    steps = round(40 * strength)
    diffcache.wrap(pipe, "interval", every=4)
    assert run().isfinite().all()
    report = diffcache.report(pipe)
    assert report.steps == steps == runs[-1].total
    assert runs[-1].timetable.begin == 40 - steps
    assert [event.timestep for event in report.trace] == pipe.scheduler.timesteps[-steps:].tolist()
    wanted = [i % 4 == 0 or i < 3 or i == steps - 1 for i in range(steps)]
    assert report.mask[:, 0].tolist() == wanted


@pytest.mark.parametrize(
    ("kind", "views"),
    [(HeunDiscreteScheduler, True), (HeunDiscreteScheduler, False), (PNDMScheduler, True)],
)
def test_a_loop_may_begin_at_the_second_of_two_equal_timesteps(unet, kind, views):
    scheduler = kind.from_config(unet.scheduler.config)
    diffcache.wrap(unet.unet, "interval", every=3, scheduler=scheduler)
    scheduler.set_timesteps(20)
    times = scheduler.timesteps
    begin = next(i for i in range(2, len(times)) if times[i] == times[i - 1])
    latents, texts = torch.ones(1, 4, 8, 8), torch.ones(1, 7, 32)
    with torch.no_grad():
        for time in times[begin:] if views else times[begin:].tolist():
            noise = unet.unet(latents, time, encoder_hidden_states=texts).sample
            latents = scheduler.step(noise, time, latents).prev_sample
    report = diffcache.report(unet.unet)
    assert [event.timestep for event in report.trace] == times[begin:].tolist()
    assert report.compute_fraction < 1


@pytest.mark.parametrize("steps", [5, 30])
def test_timesteps_count_from_1000(unet, dit, steps):
    for scheduler in (unet.scheduler, dit.scheduler):
        scheduler.set_timesteps(steps)
        table = Timetable(scheduler)
        assert table.scaled == table.timesteps == scheduler.timesteps.tolist()
    sigmas = EDMEulerScheduler()
    sigmas.set_timesteps(steps)
    table = Timetable(sigmas)
    assert table.timesteps == sigmas.timesteps.tolist()
    span = table.timesteps[0] - table.timesteps[-1]
    assert table.scaled == pytest.approx(
        [1000 * (time - table.timesteps[-1]) / span for time in table.timesteps]
    )
    assert [table.at(i)[1].timestep for i in range(steps)] == table.scaled
    assert [table.timestep(i) for i in range(steps)] == table.timesteps


class StepsACopy(StableDiffusion):
    """Some pipelines step a copy of their scheduler."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mine = self.scheduler
        set_timesteps = mine.set_timesteps

        def set_and_copy(*inner: Any, **options: Any) -> Any:
            set_timesteps(*inner, **options)
            twin = copy.deepcopy(mine)
            mine.__dict__["step"] = twin.step

        mine.__dict__["set_timesteps"] = set_and_copy
        try:
            return super().__call__(*args, **kwargs)
        finally:
            del mine.__dict__["set_timesteps"], mine.__dict__["step"]


def test_copied_scheduler_computes_everything_with_a_note(unet, generate, runs):
    plain = generate(unet)
    unet.__class__ = StepsACopy
    assert torch.equal(generate(unet), plain)
    diffcache.wrap(unet, "interval", every=4)
    assert torch.equal(generate(unet), plain)
    report = diffcache.report(unet)
    assert any("no scheduler step was observed" in note for note in report.notes)
    assert report.compute_fraction == 1
    assert report.calls == 12
    assert runs[-1].lanes.count <= 1


@pytest.mark.parametrize("steps", [9, 17])
def test_total_is_the_pipelines_own(pipe, generate, runs, steps):
    diffcache.wrap(pipe, "interval", every=4)
    generate(pipe, steps=steps)
    assert (runs[-1].timetable.begin, runs[-1].total) == (0, steps)
    assert pipe.num_timesteps == steps


@pytest.mark.parametrize(("first", "count", "total"), [(0, 36, 12), (0, 11, 11), (8, 36, 4)])
def test_no_run_is_longer_than_its_timetable(dit, first, count, total):
    """AnyFlow FAR counts the steps of all chunks, each of which has the whole timetable."""
    dit.scheduler.set_timesteps(12)
    timetable = Timetable(dit.scheduler)
    timetable.locate(dit.scheduler.timesteps[first], count, Guards.none())
    assert (timetable.begin, timetable.total) == (first, total)


def test_step_count_of_the_last_call_does_not_linger(pipe, generate, runs):
    diffcache.wrap(pipe, "interval", every=4)
    generate(pipe, steps=20)
    generate(pipe, steps=10)
    assert [run.total for run in runs] == [20, 10]


def test_coordinates_rise(pipe, generate, runs):
    diffcache.wrap(pipe)
    generate(pipe)
    coordinates = runs[-1].timetable.coordinates
    assert len(coordinates) == 12
    assert all(a < b for a, b in pairwise(coordinates))


def test_a_denoiser_with_a_timestep_of_its_own_does_not_mislead_the_clock(dit):
    """Lumina2 and Mochi hand the denoiser a reversed timestep, Wan 5B one a token."""
    dit.scheduler.set_timesteps(20)
    run = Run(diffcache.Method(), dit.scheduler, "FlowMatchEulerDiscreteScheduler")
    assert run.timetable.opens(0.0)
    latents = torch.zeros(1, 4)
    arguments = {"model_output": latents, "timestep": dit.scheduler.timesteps[0]}
    run.stepped(arguments, latents, lambda _: None)
    assert (run.timetable.begin, run.total, run.decisions.full) == (0, 20, None)


@pytest.mark.parametrize("made", [8, 12])
def test_a_run_that_ends_early_says_what_was_counted_on(unet, made):
    scheduler = unet.scheduler
    diffcache.wrap(unet.unet, scheduler=scheduler, compute=0.5)
    scheduler.set_timesteps(12)
    latents, texts = torch.ones(1, 4, 8, 8), torch.ones(1, 7, 32)
    with torch.no_grad():
        for time in scheduler.timesteps[:made]:
            noise = unet.unet(latents, time, encoder_hidden_states=texts).sample
            latents = scheduler.step(noise, time, latents).prev_sample
    scheduler.set_timesteps(12)
    said = any("of 12 steps ended after 8" in note for note in diffcache.report(unet.unet).notes)
    assert said == (made == 8)
