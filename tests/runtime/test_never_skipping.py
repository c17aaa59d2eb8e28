"""A pipeline that never skips is a plain pipeline, and so is one that was unwrapped."""

from typing import Any

import diffusers
import pytest
import torch

import diffcache

DETERMINISTIC = {
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM with Runge-Kutta": ("PNDMScheduler", {"skip_prk_steps": False}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
}
STOCHASTIC = {
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "SDE-DPM++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "LCM": ("LCMScheduler", {}),
}
UNET = DETERMINISTIC | STOCHASTIC
FLOW = {
    "FlowMatch Euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "FlowMatch Euler stochastic": (
        "FlowMatchEulerDiscreteScheduler",
        {"stochastic_sampling": True},
    ),
}
CASES = [
    pytest.param(kind, *settings, id=f"{kind} {name}")
    for kind, table in (("unet", UNET), ("dit", FLOW))
    for name, settings in table.items()
]


@pytest.fixture
def scheduled(make: Any) -> Any:
    def build(kind: str, name: str, options: dict[str, Any]) -> Any:
        pipe = make(kind)
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
        return pipe

    return build


def bits(attributes: dict[str, Any]) -> dict[str, Any]:
    """What an instance holds, tensors by their bits."""
    return {
        name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value)
        for name, value in attributes.items()
    }


def states(pipe: Any) -> list[tuple[type, dict[str, Any]]]:
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    own = {name: value for name, value in vars(pipe).items() if name not in pipe.components}
    return [
        (type(pipe), bits(own)),
        (type(pipe.scheduler), bits(vars(pipe.scheduler))),
        *((type(module), set(vars(module))) for module in denoiser.modules()),
    ]


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_output_is_bit_identical(scheduled, generate, kind, name, options, cfg):
    plain, pipe = scheduled(kind, name, options), scheduled(kind, name, options)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        results = []
        for each in (plain, pipe):
            torch.manual_seed(7)
            results.append(generate(each, steps=9, cfg=cfg))
        return tuple(results)

    assert torch.equal(*both())
    assert states(pipe) == states(plain)

    diffcache.wrap(pipe, tolerance=0, force=True)
    assert torch.equal(*both())
    assert diffcache.report(pipe).computed == diffcache.report(pipe).total > 0
    assert "nothing was skipped" in diffcache.report(pipe).notes

    diffcache.wrap(pipe, tolerance=1e9)
    with diffcache.request(tolerance=None) as request:
        assert torch.equal(*both())
    assert request.report.compute_fraction == 1

    diffcache.unwrap(pipe)
    assert states(pipe) == states(plain)
    assert torch.equal(*both())
    assert states(pipe) == states(plain)


def interval_mask(steps: int, every: int) -> list[bool]:
    """Every `every`-th evaluation, and the method's protected ones: three first, one last."""
    return [i % every == 0 or i < 3 or i == steps - 1 for i in range(steps)]


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
@pytest.mark.parametrize(("kind", "name", "options"), CASES)
def test_interval_skips_exactly_what_it_says(scheduled, generate, kind, name, options, cfg):
    pipe = scheduled(kind, name, options)
    diffcache.wrap(pipe, "interval", every=2, force=True)
    torch.manual_seed(7)
    latents = generate(pipe, cfg=cfg)

    report = diffcache.report(pipe)
    evaluations = pipe.num_timesteps
    wanted = interval_mask(evaluations, 2)
    assert evaluations == len(pipe.scheduler.timesteps) >= 12
    assert latents.isfinite().all()
    assert report.mask.tolist() == [[row, row] for row in wanted]
    assert (report.steps, report.rows) == (evaluations, 4 if cfg else 2)
    assert report.total == report.rows * evaluations
    assert report.computed == report.rows * sum(wanted) < report.total
    assert report.calls == sum(wanted) * (2 if cfg and kind == "dit" else 1)
    assert report.bound()["skip"] == 2 * (evaluations - sum(wanted))
