"""Forecasts that go less far where the last one went the wrong way."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import nn

import diffcache
from diffcache import metrics, tiny
from diffcache.predictors import Kriging
from diffcache.runtime.composition import Stage
from diffcache.runtime.history import Anchor, History
from diffcache.runtime.timetable import Timetable
from diffcache.sites import BlockStack, Output

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = {
    "ddim": DDIMScheduler(**BETAS, clip_sample=False),
    "dpm": DPMSolverMultistepScheduler(**BETAS),
    "unipc": UniPCMultistepScheduler(**BETAS),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}
STEPS = 20
MASKS = [
    [1, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0],
    [1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0],
]


class Restless(nn.Module):
    """Predictions that turn about with time, and change with the sample and the prompt a little."""

    def forward(self, sample, timestep, prompt):
        t = float(timestep) / 1000
        back_and_forth = torch.sin(40 * t + torch.tensor([0.0, 0.3, 0.6, 0.9]))
        return sample.tanh() * (0.4 + t) + 0.8 * back_and_forth + 0.1 * prompt * 2**t


PROMPTS = torch.tensor([[0.0], [0.0], [1.0], [-1.0]])


def guided(denoiser, sample, timestep, prompts):
    """Both branches in one call, the unconditional one first."""
    without, prompted = denoiser(torch.cat([sample, sample]), timestep, prompts).chunk(2)
    return without + 3 * (prompted - without)


def start(scheduler):
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def generated(scheduler, masks, method="mask", **options):
    scheduler, denoiser = copy.deepcopy(scheduler), Restless()
    if masks is not None:
        options["mask"] = [list(map(bool, step)) for step in zip(*masks, strict=True)]
    diffcache.wrap(denoiser, method, scheduler=scheduler, **options)
    x = start(scheduler)
    for t in scheduler.timesteps:
        x = scheduler.step(guided(denoiser, x, t, PROMPTS), t, x).prev_sample
    return x, diffcache.report(denoiser).mask


def by_hand(scheduler, mask, x, prompts, factors):
    """One sample, not corrected, with the rule as it is told in docs/design.md."""
    scheduler, base = copy.deepcopy(scheduler), Kriging()
    scheduler.set_timesteps(STEPS)
    timetable, values, kept = Timetable(scheduler), [], 1.0

    def forecast(step, known):
        times = torch.tensor([[timetable.at(j)[0].time for j, _ in known]], dtype=torch.float64)
        now = torch.tensor([timetable.at(step)[0].time], dtype=torch.float64)
        weights = base.coefficients(times, now)[0].tolist()
        return sum(w * value for w, (_, value) in zip(weights, known, strict=False))

    for i, t in enumerate(scheduler.timesteps):
        if mask[i]:
            prediction = guided(Restless(), x, t, prompts)
            if len(values) == 3:
                move = forecast(i, values) - values[0][1]
                along = float(((prediction - values[0][1]) * move).sum() / (move * move).sum())
                kept = min(1.0, max(-0.5, 1 + 2 * along))
                factors.append(kept)
            values = [(i, prediction), *values[:2]]
        else:
            prediction = values[0][1] + kept * (forecast(i, values) - values[0][1])
        x = scheduler.step(prediction, t, x).prev_sample
    return x


@pytest.mark.parametrize("masks", [MASKS[:1] * 2, MASKS], ids=["alike", "apart"])
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_forecasts_are_damped_as_by_hand(scheduler, masks):
    x, factors = start(scheduler), []
    wanted = [
        by_hand(scheduler, mask, x[[row]], PROMPTS[row::2], factors)
        for row, mask in enumerate(masks)
    ]
    assert min(factors) == -0.5 and max(factors) == 1 and len(set(factors)) > 3
    found, _ = generated(scheduler, masks, corrects=False)
    assert torch.allclose(found, torch.cat(wanted), rtol=1e-3, atol=1e-4)
    undamped, _ = generated(scheduler, masks, corrects=False, damps=False)
    assert not torch.allclose(undamped, found, atol=1e-2)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_replay_damps_alike(scheduler):
    x, mask = generated(scheduler, None, "adaptive", tolerance=(1.0, 12.0))
    assert not mask[:, 0].equal(mask[:, 1])
    assert generated(scheduler, mask.T.tolist())[0].equal(x)


def test_forecasts_do_not_overshoot_at_strong_guidance():
    prompts = ["one green triangle", "two red circles", "three blue squares"] * 2
    pipe = tiny.pipeline("unet")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def made():
        generators = [torch.Generator().manual_seed(seed) for seed in range(6)]
        call = {"num_inference_steps": 28, "guidance_scale": 8.0, "output_type": "np"}
        return pipe(prompts, generator=generators, **call).images

    full, found = made(), {}
    for damps in (True, False):
        with diffcache.wrapped(pipe, compute=0.35, damps=damps):
            found[damps] = metrics.psnr(made(), full)
    assert np.mean(found[True]) > np.mean(found[False]) + 1


def test_only_whole_predictions_keep_what_damping_reads(make, generate):
    def kept(damps, site):
        predictor = Kriging(damps=damps, corrects=False)
        pipe = diffcache.wrap(make("dit"), site=site, predictor=predictor, tolerance=0.0)
        generate(pipe, 1, 12, cfg=False)
        return diffcache.report(pipe).cache_bytes

    for site in (BlockStack(), Output(residual=True)):
        assert kept(True, site) == kept(False, site)
    assert kept(True, Output()) > kept(False, Output())


def test_another_batch_in_the_middle_of_a_run_starts_afresh():
    stage = Stage(History(4), None, {}, [0] * 4, damps=True)
    for step in range(5):
        stage.keep(torch.ones(4, 3), Anchor(step / 10, step), [True] * 4)
    assert stage.damping(Kriging()).tolist() == [1.0] * 4
    stage.keep(torch.ones(2, 3), Anchor(0.6, 6), [True, False, True, False])
    assert stage.past.rows == 2 and stage.damping(Kriging()) is None
