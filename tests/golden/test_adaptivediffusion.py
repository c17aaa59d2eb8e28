"""AdaptiveDiffusion's released algorithm, written out, against the method of that name."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

import diffcache

STEPS = 50
GUIDANCE = 4.0


def mean_abs(x: torch.Tensor) -> torch.Tensor:
    return x.abs().mean()


@torch.no_grad()
def released(pipe, prompt, negative, latents, threshold, max_skips):
    """The loop of the released pipeline: methods.md 1.2, line by line."""
    scheduler, unet = pipe.scheduler, pipe.unet
    scheduler.set_timesteps(STEPS)
    x = latents * scheduler.init_noise_sigma
    both = torch.cat([negative, prompt])
    previous, norms, mask, noise, computed = [], [], [], None, []

    def estimate(x):
        newest = mean_abs(x - previous[-1])
        middle, oldest = norms[-1], norms[-2]
        norms.append(newest)
        if len(mask) > 4 and not any(mask[-max_skips:]):
            return True
        return not bool(((newest + oldest) / 2 - middle).abs() <= threshold * middle)

    for t in scheduler.timesteps:
        full = len(previous) <= 3 or mask[-1]
        if len(previous) <= 3 and len(previous) > 1:
            norms.append(mean_abs(previous[-1] - previous[-2]))
        if full:
            scaled = scheduler.scale_model_input(torch.cat([x, x]), t)
            noise = unet(scaled, t, encoder_hidden_states=both).sample
        computed.append(full)
        uncond, cond = noise.chunk(2)
        x = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, x).prev_sample
        if len(previous) >= 3:
            mask.append(estimate(x))
        previous.append(x)
    return x, computed


@pytest.mark.parametrize("threshold", [0.004, 0.01, 0.05])
@pytest.mark.parametrize("max_skips", [2, 4, 6])
@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]
)
def test_same_mask_and_latents_as_the_released_code(sd_pipe, scheduler, threshold, max_skips):
    sd_pipe.scheduler = scheduler.from_config(sd_pipe.scheduler.config)
    generator = torch.Generator().manual_seed(3)
    prompt, negative = (torch.randn(2, 5, 16, generator=generator) for _ in range(2))
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    expected, computed = released(sd_pipe, prompt, negative, latents, threshold, max_skips)
    with diffcache.wrapped(sd_pipe, "adaptivediffusion", threshold=threshold, max_skips=max_skips):
        found = sd_pipe(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            latents=latents,
            guidance_scale=GUIDANCE,
            num_inference_steps=STEPS,
            output_type="latent",
        ).images
        report = diffcache.report(sd_pipe)
    assert report.mask[:, 0].tolist() == computed
    assert (report.mask[:, 0] == report.mask[:, 1]).all()
    assert 0 < sum(computed) < STEPS
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
