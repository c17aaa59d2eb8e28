"""Which samplers draw noise; they and short runs are computed in full."""

from typing import Any

import diffusers
import pytest
import torch

import diffcache
from diffcache.runtime.schedulers import stochastic_by_call, stochastic_by_kind

DETERMINISTIC = [
    "CogVideoXDDIMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerDiscreteScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeliosScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "MiniMaxH3Scheduler",
    "PNDMScheduler",
    "PiflowScheduler",
    "UniPCMultistepScheduler",
]
STOCHASTIC = [
    "CMStochasticIterativeScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "LTXEulerAncestralRFScheduler",
    "SASolverScheduler",
    "TCDScheduler",
]
# Their steps take more than a prediction, a timestep and a sample, or a library that is optional.
STOCHASTIC_BY_NAME = [
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DiscreteDDIMScheduler",
    "DDPMWuerstchenScheduler",
    "EntropyBoundScheduler",
    "HeliosDMDScheduler",
    "KarrasVeScheduler",
    "RFD4ProteinaScheduler",
    "RePaintScheduler",
    "SCMScheduler",
    "ScoreSdeVeScheduler",
    "UnCLIPScheduler",
    "VQDiffusionScheduler",
]
# These step a whole trajectory, or from stages that their pipelines prepare.
OWN_PROTOCOL = {"FlowMapEulerDiscreteScheduler", "HeliosScheduler", "PiflowScheduler"}


def trajectory(scheduler: Any, seed: int) -> torch.Tensor:
    """Latents of six steps with a model that answers with a tenth of its input."""
    torch.manual_seed(seed)
    scheduler.set_timesteps(6)
    latents = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            latents = scheduler.scale_model_input(latents, t)
        latents = scheduler.step(0.1 * latents, t, latents, return_dict=False)[0]
    return latents


def draws_noise(scheduler: Any) -> bool:
    return not torch.equal(trajectory(scheduler, 0), trajectory(scheduler, 1))


def reason(scheduler: Any) -> str | None:
    return stochastic_by_kind(scheduler, type(scheduler).__name__)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_scheduler_may_skip(name):
    assert stochastic_by_kind(None, name) is None
    if name not in OWN_PROTOCOL:
        scheduler = getattr(diffusers, name)()
        assert reason(scheduler) is None
        assert not draws_noise(scheduler)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_scheduler_is_found(name):
    scheduler = getattr(diffusers, name)()
    assert draws_noise(scheduler)
    assert name in reason(scheduler)


@pytest.mark.parametrize("name", STOCHASTIC_BY_NAME)
def test_stochastic_scheduler_is_found_by_name(name):
    assert hasattr(diffusers, name)
    assert name in stochastic_by_kind(None, name)


def test_every_scheduler_is_listed():
    listed = {*DETERMINISTIC, *STOCHASTIC, *STOCHASTIC_BY_NAME}
    exported = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert exported - listed == set()


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver++"),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver++"),
        ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "sde-dpmsolver"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "stochastic_sampling"),
    ],
    ids=["dpm++ multistep", "dpm++ singlestep", "edm dpm++", "flow-match euler"],
)
def test_configuration_tells(name, options, word):
    scheduler = getattr(diffusers, name)(**options)
    assert draws_noise(scheduler)
    assert word in reason(scheduler)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"eta": 0.5}, "eta=0.5"),
        ({"s_churn": 0.1}, "s_churn=0.1"),
        ({"eta": 0.0, "s_churn": 0.0}, None),
        ({"eta": None}, None),
        ({}, None),
    ],
)
def test_call_tells(arguments, word):
    found = stochastic_by_call(arguments)
    assert found is None if word is None else word in found


def assert_full(report: diffcache.Report, word: str) -> None:
    assert report.compute_fraction == 1
    assert report.mask.all()
    (why,) = [note for note in report.notes if note.startswith("computed in full")]
    assert word in why and "force=True" in why


@pytest.mark.parametrize(
    ("name", "options", "call", "word"),
    [
        ("EulerAncestralDiscreteScheduler", {}, {}, "EulerAncestral"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++"},
            {},
            "sde-dpmsolver++",
        ),
        ("DDIMScheduler", {}, {"eta": 0.5}, "eta=0.5"),
    ],
    ids=["class", "configuration", "call"],
)
def test_noisy_run_is_computed_in_full(unet, generate, name, options, call, word):
    unet.scheduler = getattr(diffusers, name).from_config(unet.scheduler.config, **options)
    torch.manual_seed(0)
    plain = generate(unet, **call)
    diffcache.wrap(unet, "interval", every=4, protect=(0, 0))
    torch.manual_seed(0)
    assert torch.equal(generate(unet, **call), plain)
    assert_full(diffcache.report(unet), word)

    diffcache.wrap(unet, "interval", every=4, protect=(0, 0), force=True)
    generate(unet, **call)
    assert diffcache.report(unet).mask[:, 0].tolist() == [True, False, False, False] * 3
    assert not any("in full" in note for note in diffcache.report(unet).notes)


@pytest.mark.parametrize("steps", [1, 2, 8, 9])
def test_short_run_is_computed_in_full(pipe, generate, steps):
    diffcache.wrap(pipe, "interval", every=4)
    generate(pipe, steps=steps)
    report = diffcache.report(pipe)
    assert report.steps == steps
    if steps > 8:
        assert report.compute_fraction < 1
    else:
        assert_full(report, f"a run of {steps} steps")
        assert report.bound() == {"full": 2 * steps - 2, "first": 2} if steps > 1 else {"first": 2}


def test_few_steps_are_skipped_when_forced(pipe, generate):
    diffcache.wrap(pipe, "interval", every=2, force=True, protect=(1, 0))
    generate(pipe, steps=6)
    assert diffcache.report(pipe).timeline() == "█·█·█·"


def test_sde_without_protection_of_guards(unet, generate):
    unet.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(unet.scheduler.config)
    diffcache.wrap(unet, "interval", every=4, stochastic=False)
    generate(unet)
    assert diffcache.report(unet).compute_fraction < 1


@pytest.mark.parametrize("method", ["fbcache", "teacache"])
def test_a_stack_whose_run_is_full_is_not_said_to_be_cut_off(dit, generate, method):
    dit.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
        dit.scheduler.config, stochastic_sampling=True
    )
    diffcache.wrap(dit, method)
    generate(dit)
    notes = diffcache.report(dit).notes
    assert any("computed in full" in note for note in notes)
    assert not any("whole outputs are forecast" in note for note in notes), notes
