"""A denoiser in a hand-written loop."""

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
)

import diffcache

STEPS = 16
TOLERANCE = 0.9
OPTIONS = {"tolerance": TOLERANCE}


@pytest.fixture
def loop() -> Any:
    """The loop of Stable Diffusion by hand."""

    def run(pipe: StableDiffusionPipeline, stop: int | None = None, **options: Any) -> torch.Tensor:
        unet, scheduler = pipe.unet, pipe.scheduler
        if options.pop("timetable", True):
            scheduler.set_timesteps(STEPS)
        noise, texts = inputs()
        latents = noise * scheduler.init_noise_sigma
        with torch.no_grad():
            for t in scheduler.timesteps[:stop]:
                model_input = scheduler.scale_model_input(torch.cat([latents] * 2), t)
                uncond, cond = unet(model_input, t, encoder_hidden_states=texts).sample.chunk(2)
                prediction = uncond + 5.0 * (cond - uncond)
                latents = scheduler.step(prediction, t, latents).prev_sample
        return latents

    return run


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and texts with the unconditional ones first."""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=each) for each in generators])
    texts = [
        torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(s)) for s in (9, 9, 0, 1)
    ]
    return noise, torch.cat(texts)


@pytest.fixture
def bare(unet: StableDiffusionPipeline) -> StableDiffusionPipeline:
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, **OPTIONS)
    return unet


def test_equals_the_pipeline(make, loop, gate):
    pipe = make("unet")
    diffcache.wrap(pipe, **OPTIONS)
    noise, texts = inputs()
    wanted = pipe(
        prompt_embeds=texts[2:],
        negative_prompt_embeds=texts[:2],
        guidance_scale=5.0,
        latents=noise,
        num_inference_steps=STEPS,
        output_type="latent",
    ).images
    mask = diffcache.report(pipe).mask
    diffcache.unwrap(pipe)
    diffcache.wrap(pipe.unet, scheduler=pipe.scheduler, **OPTIONS)
    assert torch.equal(loop(pipe), wanted)
    assert diffcache.report(pipe.unet).mask.tolist() == mask.tolist()
    assert not mask.all()


def test_never_skipping_and_unwrap(unet, loop, gate):
    plain = loop(unet)
    before = set(vars(unet.unet))
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, tolerance=0)
    assert torch.equal(loop(unet), plain)
    diffcache.unwrap(unet.unet)
    assert type(unet.scheduler) is DDIMScheduler
    assert set(vars(unet.unet)) == before
    assert torch.equal(loop(unet), plain)


@pytest.mark.parametrize("timetable", [True, False], ids=["set_timesteps", "rising timestep"])
@pytest.mark.parametrize("stop", [None, 7], ids=["finished", "abandoned"])
def test_second_loop_starts_afresh(bare, loop, gate, stop, timetable):
    wanted = loop(bare)
    mask = diffcache.report(bare.unet).mask.tolist()
    loop(bare, stop=stop)
    assert torch.equal(loop(bare, timetable=timetable), wanted)
    report = diffcache.report(bare.unet)
    assert report.mask.tolist() == mask
    assert report.steps == STEPS
    assert report.compute_fraction < 1


def test_exception_in_the_loop(bare, loop):
    wanted = loop(bare)
    hook = bare.unet.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop(bare)
    hook.remove()
    assert torch.equal(loop(bare), wanted)


def test_loop_that_gave_up_has_a_report(unet, loop):
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, max_cache_bytes=1, **OPTIONS)
    loop(unet)
    report = diffcache.report(unet.unet)
    assert report.compute_fraction == 1
    assert any("max_cache_bytes=1" in note for note in report.notes)


def test_loop_whose_scheduler_steps_a_list_has_a_report(unet):
    class Listed(DDIMScheduler):
        def step(self, model_output: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            return super().step(torch.stack(model_output), *args, **kwargs)

    scheduler = Listed.from_config(unet.scheduler.config)
    diffcache.wrap(unet.unet, scheduler=scheduler, **OPTIONS)
    scheduler.set_timesteps(STEPS)
    latents, texts = inputs()
    with torch.no_grad():
        for t in scheduler.timesteps:
            found = unet.unet(latents, t, encoder_hidden_states=texts[2:]).sample
            latents = scheduler.step(list(found), t, latents).prev_sample
    report = diffcache.report(unet.unet)
    assert report.compute_fraction == 1
    assert any("not one tensor" in note for note in report.notes)


def test_request_reaches_the_loop(bare, loop):
    with diffcache.request(tolerance=None) as request:
        loop(bare)
    assert request.report.compute_fraction == 1
    loop(bare)
    assert diffcache.report(bare.unet).compute_fraction < 1


def test_wrapped_restores_a_bare_denoiser(bare, loop):
    loop(bare)
    mask = diffcache.report(bare.unet).mask.tolist()
    with diffcache.wrapped(bare.unet, "interval", every=3, scheduler=bare.scheduler):
        loop(bare)
        assert diffcache.report(bare.unet).timeline() == "████··█··█··█··█"
    loop(bare)
    assert diffcache.report(bare.unet).mask.tolist() == mask


def test_finished_loop_holds_no_memory(bare, loop):
    seen: list[Any] = []
    bare.unet.register_forward_hook(
        lambda module, args, output: seen.append(weakref.ref(output.sample))
    )
    loop(bare)
    gc.collect()
    assert seen and not any(reference() is not None for reference in seen)
    assert diffcache.report(bare.unet).cache_bytes > 0


def test_wrapped_denoiser_and_scheduler_are_freed(unet, loop):
    denoiser, scheduler = unet.unet, unet.scheduler
    diffcache.wrap(denoiser, scheduler=scheduler, **OPTIONS)
    loop(unet)
    references = [weakref.ref(denoiser), weakref.ref(scheduler)]
    unet.register_modules(unet=None, scheduler=None)
    del denoiser, scheduler
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("kind", ["rising", "inverting"])
def test_time_may_rise(unet, kind):
    class Rising(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = unet.unet

        def forward(self, sample: Any, timestep: Any, texts: Any) -> Any:
            return self.model(sample, 1000 - timestep, encoder_hidden_states=texts).sample

    config = unet.scheduler.config
    rising = kind == "rising"
    scheduler = (DDIMScheduler if rising else DDIMInverseScheduler).from_config(config)
    model = Rising()
    diffcache.wrap(model, scheduler=scheduler, **OPTIONS)

    @torch.no_grad()
    def loop(stop: int | None = None) -> None:
        latents, texts = inputs()
        for t in scheduler.timesteps[:stop]:
            found = model(latents, 1000 - t if rising else t, texts[2:])
            latents = scheduler.step(found, t, latents).prev_sample

    scheduler.set_timesteps(STEPS)
    loop()
    report = diffcache.report(model)
    assert report.steps == STEPS and report.compute_fraction < 1
    mask = report.mask.tolist()
    loop(stop=7)
    loop()
    assert diffcache.report(model).mask.tolist() == mask


@pytest.mark.parametrize("sampler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_only_the_denoiser_may_be_in_inference_mode(unet, sampler):
    model = unet.unet
    scheduler = sampler.from_config(unet.scheduler.config)
    diffcache.wrap(model, scheduler=scheduler, **OPTIONS)

    def loop(mode: Any) -> torch.Tensor:
        scheduler.set_timesteps(STEPS)
        latents, texts = inputs()
        with torch.no_grad():
            for t in scheduler.timesteps:
                with mode():
                    found = model(latents, t, encoder_hidden_states=texts[2:]).sample
                latents = scheduler.step(found, t, latents).prev_sample
        return latents

    wanted = loop(torch.no_grad)
    mask = diffcache.report(model).mask.tolist()
    assert torch.equal(loop(torch.inference_mode), wanted)
    assert diffcache.report(model).mask.tolist() == mask


def test_the_last_step_alone_may_be_gone_back_through(unet):
    """As DRaFT trains, where the sample of the last step asks for no gradient."""
    model, scheduler = unet.unet.requires_grad_(True), unet.scheduler
    diffcache.wrap(model, scheduler=scheduler, mask=[True, True, *[False] * (STEPS - 2)])
    scheduler.set_timesteps(STEPS)
    latents, texts = inputs()
    for t in scheduler.timesteps:
        with torch.set_grad_enabled(bool(t == scheduler.timesteps[-1])):
            found = model(latents, t, encoder_hidden_states=texts[2:]).sample
            latents = scheduler.step(found, t, latents).prev_sample
    latents.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    report = diffcache.report(model)
    assert report.timeline() == "██" + "·" * (STEPS - 3) + "█"
    assert any("gradients flow" in note for note in report.notes)


@pytest.mark.parametrize("asked", ["sample", "sample, from the middle", "weights"])
def test_gradients_flow(unet, asked):
    model, scheduler = unet.unet, unet.scheduler
    model.requires_grad_(asked == "weights")
    weight = model.conv_out.weight

    def guided() -> tuple[torch.Tensor, list[torch.Tensor]]:
        scheduler.set_timesteps(STEPS)
        latents, texts = inputs()
        gradients = []
        for step, t in enumerate(scheduler.timesteps):
            latents = latents.detach()
            if asked == "sample" or (asked != "weights" and step >= 6):
                latents.requires_grad_()
            found = model(latents, t, encoder_hidden_states=texts[2:]).sample
            if found.requires_grad:
                source = weight if asked == "weights" else latents
                gradients += torch.autograd.grad(found.square().mean(), source)
            latents = scheduler.step(found.detach(), t, latents.detach()).prev_sample
        return latents, gradients

    plain, wanted = guided()
    diffcache.wrap(model, scheduler=scheduler, **OPTIONS)
    latents, gradients = guided()
    report = diffcache.report(model)
    assert len(gradients) == len(wanted) == (10 if "middle" in asked else STEPS)
    assert any("gradients flow through the denoiser" in note for note in report.notes)
    if "middle" in asked:
        assert report.mask[6:].all() and not report.mask[:6].all()
        assert all(gradient.isfinite().all() for gradient in gradients)
    else:
        assert report.compute_fraction == 1 and torch.equal(latents, plain)
        assert all(map(torch.equal, gradients, wanted))
