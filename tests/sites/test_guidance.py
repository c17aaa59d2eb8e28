"""The guidance site: which half is which, what is computed, and when it stays out of the way."""

from typing import Any

import diffusers
import pytest
import torch

import diffcache
from diffcache import tiny
from diffcache.methods import Method, find
from diffcache.policies import Interval, Mask
from diffcache.predictors import FrequencySplit, Newton
from diffcache.sites import Guidance
from diffcache.sites.guidance import conditional_half

STEPS = 12
# Below timestep 641 a step is computed where it is the 5th from the first.
SKIPS = 6


def noise(seed: int, samples: int = 3, channels: int = 4) -> torch.Tensor:
    return torch.randn(samples, channels, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1.01, 3.0, 7.5, 50.0])
@pytest.mark.parametrize("factor", [1.0, -1.0, "each its own"])
@pytest.mark.parametrize("distance", [1.0, 1e-3])
def test_the_conditional_half_is_found(scale, factor, distance):
    uncond = noise(0)
    cond = uncond + distance * noise(1)
    guided = uncond + scale * (cond - uncond)
    if factor == "each its own":
        factor = torch.tensor([0.7, 1.0, 1.3]).reshape(3, 1, 1, 1)
    guided = factor * guided
    assert conditional_half(uncond, cond, guided) == 1
    assert conditional_half(cond, uncond, guided) == 0


def test_the_conditional_half_is_found_beside_a_learned_variance():
    uncond, cond = noise(0, channels=8), noise(1, channels=8)
    guided = (uncond + 4 * (cond - uncond))[:, :4]
    assert conditional_half(uncond, cond, guided) == 1


def test_the_conditional_half_is_found_in_half_precision():
    uncond = noise(0).bfloat16()
    cond = uncond + 0.1 * noise(1).bfloat16()
    guided = uncond + 7.5 * (cond - uncond)
    assert conditional_half(cond, uncond, guided) == 0


def test_no_conditional_half_is_found_where_there_is_none():
    a, b = noise(0), noise(1)
    guided = a + 4 * (b - a)
    assert conditional_half(a, b, noise(2)) is None
    assert conditional_half(a, b, (a + b) / 2) is None
    assert conditional_half(a, a, a) is None
    assert conditional_half(0 * a, b, guided) is None
    assert conditional_half(a, b, guided.flatten(1)) is None
    assert conditional_half(a, b, guided * float("nan")) is None
    # Guided another way from sample to sample.
    assert conditional_half(a, b, torch.cat([guided[:1], (b + 4 * (a - b))[1:]])) is None


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes new memory NaN and lists how much was made."""
    made: list[Any] = []

    def new_empty(self: torch.Tensor, *shape: int) -> torch.Tensor:
        made.append(shape)
        return self.new_full(shape, float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    return made


def rows_of_calls(pipe: Any) -> list[int]:
    rows: list[int] = []
    # A hook on the denoiser itself may run around the gate.
    pipe.unet.conv_in.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


def test_a_skip_computes_the_conditional_rows_alone(unet, generate, gate, poisoned):
    plain, rows = generate(unet), rows_of_calls(unet)
    diffcache.wrap(unet, "fastercache")
    first = generate(unet)
    report = diffcache.report(unet)
    assert first.isfinite().all() and poisoned
    assert not torch.equal(first, plain)
    # The first mixed step is computed twice.
    assert sorted(rows) == [2] * SKIPS + [4] * (STEPS - SKIPS + 1)
    assert (report.steps, report.rows, report.total) == (STEPS, 4, 4 * STEPS)
    assert report.computed == 4 * STEPS - 2 * SKIPS
    assert report.compute_fraction == 1 - SKIPS / (2 * STEPS)
    assert report.bound()["skip"] == 2 * SKIPS
    # One fp32 difference a sample.
    assert report.cache_bytes == 2 * first[0].numel() * 4
    assert torch.equal(generate(unet), first)
    diffcache.unwrap(unet)
    assert torch.equal(generate(unet), plain)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_never_skipping_is_bit_identical(make, generate, kind):
    pipe = make(kind)
    plain = generate(pipe)
    diffcache.wrap(pipe, "fastercache", every=1)
    assert torch.equal(generate(pipe), plain)
    assert diffcache.report(pipe).notes == ["nothing was skipped"]


MASK = [[True, True, True]] * 3 + [
    [True, False, False],
    [False, False, True],
    [False, True, False],
    [False, False, False],
    [True, True, False],
    [True, False, True],
    [False, False, False],
    [False, True, True],
    [True, True, True],
]


@pytest.mark.parametrize("predictor", [FrequencySplit(), Newton(1)], ids=["split", "linear"])
def test_each_sample_skips_on_its_own(unet, generate, poisoned, predictor):
    method = Method(site=Guidance(), policy=Mask(MASK), predictor=predictor)
    diffcache.wrap(unet, method, protect=(1, 0))
    together = generate(unet, 3)
    report = diffcache.report(unet)
    assert together.isfinite().all() and poisoned
    assert report.mask.tolist() == MASK
    assert report.computed == 6 * STEPS - sum(not row for step in MASK for row in step)
    for sample in range(3):
        diffcache.wrap(unet, method, mask=[[step[sample]] for step in MASK], protect=(1, 0))
        alone = generate(unet, [sample])
        torch.testing.assert_close(alone[0], together[sample], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.5, 30.0])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_rescaled_guidance_is_recognised(unet, generate, scale, rescale):
    diffcache.wrap(unet, "fastercache")
    generate(unet, guidance_scale=scale, guidance_rescale=rescale)
    assert diffcache.report(unet).bound()["skip"] == 2 * SKIPS


@pytest.mark.parametrize(
    "name", ["HeunDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"]
)
def test_other_samplers(unet, generate, name):
    unet.scheduler = getattr(diffusers, name).from_config(unet.scheduler.config)
    diffcache.wrap(unet, "fastercache")
    assert generate(unet).isfinite().all()
    report = diffcache.report(unet)
    assert report.compute_fraction < 0.9
    assert report.computed == report.total - report.bound()["skip"]


@pytest.mark.parametrize(("kind", "cfg"), [("dit", True), ("dit", False), ("unet", False)], ids=str)
def test_one_branch_a_call_is_computed_in_full_with_a_note(make, generate, kind, cfg):
    pipe = make(kind)
    plain = generate(pipe, cfg=cfg)
    diffcache.wrap(pipe, "fastercache")
    assert torch.equal(generate(pipe, cfg=cfg), plain)
    report = diffcache.report(pipe)
    assert report.compute_fraction == 1 and report.mask.all()
    assert report.notes == [
        "a call has one guidance branch a sample and not two, so it was computed in full",
        "nothing was skipped",
    ]


@torch.no_grad()
def guided_loop(unet: Any, mix: Any, branches: int = 2, samples: int = 2) -> torch.Tensor:
    """Latents of a hand-written loop that steps with `mix(step, *branches)`."""
    generator = torch.Generator().manual_seed(4)
    texts = torch.randn(branches * samples, 7, 32, generator=generator)
    x = torch.randn(samples, 4, 8, 8, generator=generator)
    unet.scheduler.set_timesteps(STEPS)
    for step, t in enumerate(unet.scheduler.timesteps):
        output = unet.unet(torch.cat([x] * branches), t, texts, return_dict=False)[0]
        prediction = mix(step, *output.chunk(branches))
        x = unet.scheduler.step(prediction, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    ("mix", "branches", "why"),
    [
        (lambda _, a, b, c: a + 2 * (b - a) + 2 * (c - b), 3, "has 3 guidance branches"),
        (lambda _, a, b: (a + b) / 2, 2, "not known"),
        (lambda _, a, b: (a + 4 * (b - a)).clamp(-0.1, 0.1), 2, "not known"),
    ],
    ids=["three branches", "mean", "clamped"],
)
def test_other_mixes_are_computed_in_full_with_a_note(unet, mix, branches, why):
    plain = guided_loop(unet, mix, branches)
    diffcache.wrap(unet.unet, "fastercache", scheduler=unet.scheduler)
    assert torch.equal(guided_loop(unet, mix, branches), plain)
    report = diffcache.report(unet.unet)
    assert report.compute_fraction == 1
    assert any(why in note for note in report.notes)


def test_the_halves_are_found_once_guidance_sets_in(unet):
    def mix(step: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + 4 * (b - a) if step >= 7 else b * 0

    diffcache.wrap(unet.unet, "fastercache", scheduler=unet.scheduler)
    assert guided_loop(unet, mix).isfinite().all()
    # Steps 5, 6 and 7 would have been skipped or not, but nothing was known before step 7.
    assert diffcache.report(unet.unet).timeline() == "████████··█·"


def test_a_denoiser_that_couples_rows_is_computed_in_full_with_a_note(unet, generate):
    unet.unet.register_forward_hook(lambda _, args, output: (output[0] + output[0].mean(0),))
    plain = generate(unet)
    diffcache.wrap(unet, "fastercache")
    for _ in range(2):
        assert torch.equal(generate(unet), plain)
        report = diffcache.report(unet)
        assert report.compute_fraction == 1 and report.mask.all()
    assert any("some rows of a batch are not computed alone" in note for note in report.notes)


def test_impossible_compositions_are_refused():
    with pytest.raises(ValueError, match=r"Output does not keep. Use site=Guidance\(\)"):
        Method(policy=Interval(), predictor=FrequencySplit())
    with pytest.raises(ValueError, match="which Guidance cannot provide"):
        Method(site=Guidance())
    with pytest.raises(ValueError, match=r"low=\(1,\) is no pair"):
        find("fastercache").configured(low=(1,))


def test_weighted_frequencies_beat_a_repeated_difference_on_a_trained_pipeline():
    pipe = tiny.pipeline("unet")
    pipe.set_progress_bar_config(disable=True)

    def decibels(**options: Any) -> torch.Tensor:
        pictures = []
        for wrapped in (False, True):
            if wrapped:
                diffcache.wrap(pipe, "fastercache", **options)
            pictures.append(
                pipe(
                    list(tiny.prompts[:2]),
                    height=64,
                    width=64,
                    num_inference_steps=25,
                    guidance_scale=3.0,
                    generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
                    output_type="pt",
                ).images
            )
        assert diffcache.report(pipe).compute_fraction == 0.74
        diffcache.unwrap(pipe)
        return -10 * (pictures[0] - pictures[1]).square().flatten(1).mean(1).log10()

    published = decibels()
    assert (published > 45).all()
    assert (published > decibels(alpha_low=1.0, alpha_high=1.0)).all()
