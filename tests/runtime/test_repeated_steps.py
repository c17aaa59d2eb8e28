"""Loops that step their scheduler several times at each timestep, of which the last step counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLCosmos,
    CosmosTextToWorldPipeline,
    EDMEulerScheduler,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
)
from torch import Tensor

import diffcache

STEPS = 20
ALTERNATING = [step % 2 == 0 for step in range(STEPS)]
PROMPTS = torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Unguarded:
    """Finds nothing that must not be shown."""

    def to(self, device: Any) -> "Unguarded":
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True


@pytest.fixture
def cosmos(bench: Callable) -> CosmosTextToWorldPipeline:
    torch.manual_seed(0)
    pipe = CosmosTextToWorldPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=bench("denoisers").build("CosmosTransformer3DModel"),
        vae=AutoencoderKLCosmos(
            latent_channels=4,
            encoder_block_out_channels=(8,) * 4,
            decode_block_out_channels=(8,) * 4,
            num_layers=1,
            attention_resolutions=(8,),
            resolution=64,
        ),
        scheduler=EDMEulerScheduler(final_sigmas_type="sigma_min"),
        safety_checker=Unguarded(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe: CosmosTextToWorldPipeline, guidance: float, samples: int = 1) -> Tensor:
    return pipe(
        prompt_embeds=PROMPTS[:samples, :, :16],
        negative_prompt_embeds=PROMPTS[2 : 2 + samples, :, :16],
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in range(samples)],
        output_type="latent",
    ).frames


@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["plain", "guided"])
@pytest.mark.parametrize("samples", [1, 2])
def test_cosmos_skips(cosmos, guidance, samples):
    """It has the scheduler predict the clean sample of both branches, and then makes the step."""
    plain = video(cosmos, guidance, samples)
    diffcache.wrap(cosmos, tolerance=0)
    assert torch.equal(video(cosmos, guidance, samples), plain)
    rows = samples * (1 + (guidance > 1))
    diffcache.wrap(cosmos, compute=0.5)
    skipped = video(cosmos, guidance, samples)
    report = diffcache.report(cosmos)
    assert report.mask.shape == (STEPS, samples) and report.steps == STEPS and not report.notes
    assert (report.rows, report.computed, report.total) == (rows, 10 * rows, STEPS * rows)
    assert skipped.isfinite().all() and not torch.equal(skipped, plain)
    diffcache.wrap(cosmos, mask=report.mask)
    assert torch.equal(video(cosmos, guidance, samples), skipped)
    assert not diffcache.report(cosmos).notes


def test_cosmos_by_sample(cosmos):
    diffcache.wrap(cosmos, tolerance=0.2)
    video(cosmos, 3.0, 2)
    alike = diffcache.report(cosmos).mask
    with diffcache.request(tolerance=[0.2, None]) as run:
        video(cosmos, 3.0, 2)
    assert not alike[:, 0].all()
    assert run.report.mask[:, 0].tolist() == alike[:, 0].tolist() and run.report.mask[:, 1].all()


def looped(pipe: StableDiffusionPipeline, way: str) -> Tensor:
    scheduler, latents = pipe.scheduler, NOISE
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            both = pipe.unet(torch.cat([latents] * 2), t, encoder_hidden_states=PROMPTS)[0]
            uncond, cond = both.chunk(2)
            guided = uncond + 5.0 * (cond - uncond)
            if way == "looks first":
                scheduler.step(both, t, torch.cat([latents] * 2))
            elif way == "looks twice":
                scheduler.step(uncond, t, latents)
                scheduler.step(cond, t, latents)
            latents = scheduler.step(guided, t, latents).prev_sample
    return latents


def test_a_look_ahead_at_the_first_step_alone(unet):
    """Where another step was expected at each timestep."""

    def looking(ahead: bool) -> Tensor:
        scheduler, latents = unet.scheduler, NOISE
        scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for step, t in enumerate(scheduler.timesteps):
                found = unet.unet(latents, t, encoder_hidden_states=PROMPTS[:2])[0]
                if ahead and not step:
                    scheduler.step(0.5 * found, t, latents)
                latents = scheduler.step(found, t, latents).prev_sample
        return latents

    diffcache.wrap(unet.unet, scheduler=unet.scheduler, mask=ALTERNATING, corrects=False)
    wanted = looking(ahead=False)
    assert torch.equal(looking(ahead=True), wanted)
    report = diffcache.report(unet.unet)
    assert report.mask[:, 0].tolist() == ALTERNATING and report.notes == []
    assert (report.steps, report.computed, report.total) == (STEPS, 20, 40)


@pytest.mark.parametrize("options", [{"compute": 0.5}, {"tolerance": 0.9}, {"mask": ALTERNATING}])
@pytest.mark.parametrize("way", ["looks first", "looks twice"])
def test_a_look_ahead_changes_nothing(unet, way, options):

    diffcache.wrap(unet.unet, scheduler=unet.scheduler, **options)
    looped(unet, "steps")
    # The first generation made sure that rows are independent.
    wanted = looped(unet, "steps")
    plain = diffcache.report(unet.unet)
    assert 0 < plain.compute_fraction < 1
    assert torch.equal(looped(unet, way), wanted)
    report = diffcache.report(unet.unet)
    assert torch.equal(report.mask, plain.mask) and report.steps == STEPS
    assert (report.computed, report.total, report.notes) == (
        plain.computed,
        plain.total,
        plain.notes,
    )


def test_samples_that_are_stepped_one_by_one_are_computed(unet):
    def one_by_one() -> Tensor:
        scheduler, latents = unet.scheduler, NOISE
        scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for t in scheduler.timesteps:
                found = unet.unet(latents, t, encoder_hidden_states=PROMPTS[:2])[0]
                pairs = zip(found.split(1), latents.split(1), strict=True)
                latents = torch.cat([scheduler.step(a, t, b).prev_sample for a, b in pairs])
        return latents

    plain = one_by_one()
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, compute=0.5)
    assert torch.equal(one_by_one(), plain)
    notes = diffcache.report(unet.unet).notes
    assert any("computed in full" in note for note in notes)


@pytest.mark.parametrize("every", [1, 5, 19])
def test_a_look_ahead_now_and_then(unet, every):
    """With the very prediction that the step is then made with."""

    def looking(every: int) -> Tensor:
        scheduler, latents = unet.scheduler, NOISE
        scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for step, t in enumerate(scheduler.timesteps):
                found = unet.unet(latents, t, encoder_hidden_states=PROMPTS[:2])[0]
                if step and step % every == 0:
                    scheduler.step(found, t, latents)
                latents = scheduler.step(found, t, latents).prev_sample
        return latents

    plain = looking(every)
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, tolerance=0)
    assert torch.equal(looking(every), plain)
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, mask=ALTERNATING)
    latents, report = looking(every), diffcache.report(unet.unet)
    assert latents.isfinite().all()
    assert report.mask[:, 0].tolist() == ALTERNATING and report.notes == []
    assert (report.computed, report.total) == (20, 40)
    # What the look ahead sees is corrected as the step itself.
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, mask=ALTERNATING)
    assert torch.equal(looking(STEPS + 1), latents)


@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["plain", "guided"])
@pytest.mark.parametrize("samples", [1, 2])
def test_videos_whose_frames_are_stepped(bench, unet, samples, guidance):
    """The old text to video steps a frame a row, which the denoiser is given as a further axis."""
    torch.manual_seed(0)
    pipe = TextToVideoSDPipeline(
        vae=unet.vae,
        text_encoder=None,
        tokenizer=None,
        unet=bench("denoisers").build("UNet3DConditionModel"),
        scheduler=unet.scheduler,
    )
    pipe.set_progress_bar_config(disable=True)

    def frames() -> Tensor:
        return pipe(
            prompt_embeds=PROMPTS[:samples, :, :8],
            negative_prompt_embeds=PROMPTS[2 : 2 + samples, :, :8],
            height=16,
            width=16,
            num_frames=4,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in range(samples)],
            output_type="latent",
        ).frames

    plain = frames()
    diffcache.wrap(pipe, tolerance=0)
    assert torch.equal(frames(), plain)
    rows = samples * (1 + (guidance > 1))
    for options in ({"compute": 0.5}, {"mask": ALTERNATING}):
        diffcache.wrap(pipe, **options)
        assert frames().isfinite().all()
        report = diffcache.report(pipe)
        assert (report.rows, report.computed, report.total) == (rows, 10 * rows, STEPS * rows)
        assert report.mask.shape == (STEPS, 1)
        assert report.notes == [
            "the scheduler steps more rows than the denoiser is given, so all are decided on "
            "together"
        ]


def test_a_batch_that_is_denoised_in_parts(unet):
    def in_parts() -> Tensor:
        scheduler, latents = unet.scheduler, torch.cat([NOISE] * 2)
        scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for t in scheduler.timesteps:
                parts = [
                    unet.unet(part, t, encoder_hidden_states=prompts)[0]
                    for part, prompts in zip(latents.split(2), PROMPTS.split(2), strict=True)
                ]
                latents = scheduler.step(torch.cat(parts), t, latents).prev_sample
        return latents

    plain = in_parts()
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, tolerance=0)
    assert torch.equal(in_parts(), plain)
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, compute=0.5)
    assert in_parts().isfinite().all()
    report = diffcache.report(unet.unet)
    assert (report.rows, report.computed, report.total) == (4, 40, 80)


def test_steps_before_the_first_call_are_not_of_frames(unet):
    """As where another denoiser makes the first steps."""
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, compute=0.5)
    scheduler, latents = unet.scheduler, NOISE
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            found = 0.1 * latents
            if step > 2:
                found = unet.unet(latents, t, encoder_hidden_states=PROMPTS[:2])[0]
            latents = scheduler.step(found, t, latents).prev_sample
    report = diffcache.report(unet.unet)
    assert report.mask.shape == (STEPS, 2) and report.notes == []
    assert (report.computed, report.total) == (round(17 * 0.5) * 2, 17 * 2)
