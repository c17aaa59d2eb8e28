"""Drafts made exact: bit for bit, without computing the exact prefix again."""

import gc
import weakref
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

import diffcache
from diffcache import tiny

SCHEDULERS = {
    "unet": [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler],
    "dit": [FlowMatchEulerDiscreteScheduler],
}
CASES = [(kind, each) for kind, known in SCHEDULERS.items() for each in known]


def counted(module: Any) -> list[int]:
    """Batch sizes of the module's forwards from now on."""
    rows: list[int] = []

    def note(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    module.register_forward_pre_hook(note, with_kwargs=True)
    return rows


def check(run: Any, draft: torch.Tensor, exact: torch.Tensor, plain: torch.Tensor) -> None:
    """That the refined output is the plain one, and the draft was something else."""
    assert not torch.equal(draft, plain)
    assert torch.equal(exact, plain)
    first, refined = run.reports
    computed_before_a_skip = int(first.mask.all(1).long().cumprod(0).sum())
    assert refined.prefix == first.prefix == computed_before_a_skip * first.rows > 0
    assert refined.computed == refined.total - refined.prefix
    assert refined.total == first.total and refined.steps == first.steps
    assert refined.mask.tolist() == [
        [step >= computed_before_a_skip] * first.mask.shape[1] for step in range(first.steps)
    ]
    assert first.prefix_bytes > 0 and refined.notes == []


@pytest.mark.parametrize(("kind", "scheduler"), CASES)
@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no-cfg"])
def test_a_refined_draft_is_the_plain_output(denoiser_of, make, generate, kind, scheduler, cfg):
    pipe = make(kind)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = generate(pipe, 3, cfg=cfg)
    rows = counted(denoiser_of(pipe))
    diffcache.wrap(pipe, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        draft = generate(pipe, 3, cfg=cfg)
        drafted = sum(rows)
        exact = run.refine().images
    check(run, draft, exact, plain)
    assert drafted == run.reports[0].computed
    assert sum(rows) - drafted == run.report.computed


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_trained_pipelines(kind):
    pipe = tiny.pipeline(kind)
    pipe.set_progress_bar_config(disable=True)
    guidance = {"guidance_scale": 3.0}
    if kind == "dit":
        guidance = {"true_cfg_scale": 3.0, "negative_prompt": ["", ""]}

    def pictures() -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
        call = {"num_inference_steps": 16, "height": 64, "width": 64, "output_type": "pt"}
        return pipe(list(tiny.prompts[:2]), generator=generators, **call, **guidance).images

    plain = pictures()
    diffcache.wrap(pipe, "adaptive", tolerance=0.3)
    with diffcache.request(keep_prefix=True) as run:
        draft = pictures()
    # After the block, and after the pipeline was wrapped otherwise.
    diffcache.wrap(pipe, "interval", every=2)
    check(run, draft, run.refine().images, plain)


@pytest.mark.parametrize("method", ["fbcache", "taylorseer", "fora"])
def test_other_sites(dit, generate, method):
    plain = generate(dit, steps=16)
    diffcache.wrap(dit, method)
    with diffcache.request(keep_prefix=True) as run:
        generate(dit, steps=16)
    assert torch.equal(run.refine().images, plain)
    assert run.report.prefix > 0


def test_random_states_are_the_drafts_and_are_left_alone(unet, generate):
    torch.manual_seed(8)
    plain = generate(unet, generator=None)
    diffcache.wrap(unet, "interval", every=3)
    torch.manual_seed(8)
    with diffcache.request(keep_prefix=True) as run:
        generate(unet, generator=None)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(run.refine().images, plain)
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_are_left_where_they_were(unet, generate):
    # An ancestral sampler draws at every step.
    unet.scheduler = EulerAncestralDiscreteScheduler.from_config(unet.scheduler.config)
    plain = generate(unet, 1, generator=torch.Generator().manual_seed(3))
    diffcache.wrap(unet, "interval", every=3, force=True)
    generator = torch.Generator().manual_seed(3)
    with diffcache.request(keep_prefix=True) as run:
        draft = generate(unet, 1, generator=generator)
    before = generator.get_state()
    check(run, draft, run.refine().images, plain)
    assert torch.equal(generator.get_state(), before)


def test_any_draft_can_be_refined_and_again(pipe, generate):
    plain = [generate(pipe, [seed]) for seed in range(3)]
    diffcache.wrap(pipe, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        for seed in range(3):
            generate(pipe, [seed])
    for number in (1, 0, 1):
        assert torch.equal(run.refine(number).images, plain[number])
    assert torch.equal(run.refine().images, plain[2])
    assert [report.method for report in run.reports] == ["interval"] * 3 + ["refine"] * 4
    assert "8 row-steps before the first skip" in str(run.report)


def test_changed_weights_are_computed_with(denoiser_of, pipe, generate):
    diffcache.wrap(pipe, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        generate(pipe)
    with torch.no_grad():
        next(denoiser_of(pipe).parameters()).mul_(1.5)
    exact = run.refine().images
    diffcache.unwrap(pipe)
    assert torch.equal(exact, generate(pipe))
    assert run.report.prefix == 0 and run.report.computed == run.report.total
    assert "weights or attention processors changed since the draft" in run.report.notes[0]


def test_changed_freeu_is_computed_with(unet, generate):
    diffcache.wrap(unet, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        generate(unet)
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    exact = run.refine().images
    diffcache.unwrap(unet)
    assert torch.equal(exact, generate(unet))
    assert run.report.prefix == 0


def test_changed_hooks_are_computed_with(unet, generate):
    diffcache.wrap(unet, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        generate(unet)
    unet.unet.mid_block.register_forward_hook(lambda module, args, output: output * 0.5)
    exact = run.refine().images
    diffcache.unwrap(unet)
    assert torch.equal(exact, generate(unet))
    assert "hooks or training mode changed" in run.report.notes[0]


def test_weights_made_in_inference_mode(unet, generate):
    plain = generate(unet)
    with torch.inference_mode():
        for module in unet.unet.modules():
            for name, weight in module.named_parameters(recurse=False):
                made = torch.nn.Parameter(weight.clone(), requires_grad=False)
                setattr(module, name, made)
    diffcache.wrap(unet, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        generate(unet, callback_on_step_end=lambda *_: {})
    assert run.report.compute_fraction < 1
    assert torch.equal(run.refine().images, plain)


def test_an_argument_written_to_is_noticed(unet, generate):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    diffcache.wrap(unet, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        generate(unet, latents=latents)
    # Two neighbours exchanged: a plain sum would be the same.
    latents[0, 0, 0, :2] = latents[0, 0, 0, :2].flip(0).clone()
    exact = run.refine().images
    diffcache.unwrap(unet)
    assert torch.equal(exact, generate(unet, latents=latents))
    assert run.report.prefix == 0 and "given other values" in run.report.notes[0]


def test_a_denoiser_that_draws_noise_is_called_again(unet, generate):
    def disturb(module: Any, args: tuple) -> tuple:
        return (args[0] + 0.01 * torch.randn_like(args[0]), *args[1:])

    unet.unet.register_forward_pre_hook(disturb)
    torch.manual_seed(1)
    plain = generate(unet)
    diffcache.wrap(unet, "interval", every=3)
    torch.manual_seed(1)
    with diffcache.request(keep_prefix=True) as run:
        generate(unet)
    assert torch.equal(run.refine().images, plain)
    assert run.report.prefix == run.reports[0].prefix == 0


def test_memory_is_bounded_and_let_go(unet, generate):
    diffcache.wrap(unet, "interval", every=3, max_cache_bytes=5000)
    with diffcache.request(keep_prefix=True) as run:
        draft = generate(unet, 1)
    one = 2 * draft.nbytes
    assert run.report.prefix_bytes == 5000 // one * one > 0
    kept = [weakref.ref(each.output[0]) for each in run._drafts[0].prefix]
    pipe = weakref.ref(unet.unet)
    assert all(each() is not None for each in kept)
    gc.disable()
    try:
        del run
        assert all(each() is None for each in kept)
    finally:
        gc.enable()
    assert pipe() is not None


def test_a_draft_does_not_keep_its_pipeline(make, generate):
    pipe = diffcache.wrap(make("unet"), "interval", every=3)
    with diffcache.request(keep_prefix=True) as run:
        generate(pipe)
    alive = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert alive() is None
    with pytest.raises(RuntimeError, match="pipeline of this draft is gone; keep a reference"):
        run.refine()


def test_what_cannot_be_refined(unet, generate):
    diffcache.wrap(unet, "interval", every=3)
    with (
        diffcache.request(keep_prefix=True) as run,
        pytest.raises(RuntimeError, match=r"no generation has run.*keep_prefix=True"),
    ):
        run.refine()
    with diffcache.request() as run:
        generate(unet)
    with pytest.raises(RuntimeError, match=r"keeps nothing.*diffcache\.request\(keep_prefix=True"):
        run.refine()
    assert run.report.prefix == run.report.prefix_bytes == 0
    with diffcache.request(keep_prefix=True) as run:
        generate(unet)
    with pytest.raises(RuntimeError, match=r"generation 4 is no draft; .* run\.refine\(0\)"):
        run.refine(4)


def test_a_bare_denoiser_cannot_be_refined(unet):
    scheduler = unet.scheduler
    model = diffcache.wrap(unet.unet, "interval", scheduler=scheduler)
    latents, texts = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 32)
    with diffcache.request(keep_prefix=True) as run, torch.no_grad():
        scheduler.set_timesteps(12)
        for t in scheduler.timesteps:
            prediction = model(latents, t, encoder_hidden_states=texts).sample
            latents = scheduler.step(prediction, t, latents).prev_sample
    assert run.report.steps == 12
    with pytest.raises(RuntimeError, match=r"only a pipeline's call.*diffcache\.unwrap\(model\)"):
        run.refine()


def test_an_interrupted_draft_is_completed(unet, generate):
    plain, stop = generate(unet), True

    def callback(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 6 and stop:
            raise KeyboardInterrupt
        return {}

    diffcache.wrap(unet, "interval", every=3)
    with diffcache.request(keep_prefix=True) as run, pytest.raises(KeyboardInterrupt):
        generate(unet, callback_on_step_end=callback)
    stop = False
    assert torch.equal(run.refine().images, plain)
    assert run.report.prefix > 0
