"""A sample's decisions and latents do not depend on the samples beside it."""

import functools
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

import diffcache

SEEDS = (0, 1, 2, 3)
STEPS = 20


@pytest.fixture
def masks(generate: Any) -> Any:
    """Runs a pipeline and gives its latents and its mask."""

    def run(pipe: Any, seeds: Any = SEEDS, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        latents = generate(pipe, seeds, STEPS, **options)
        return latents, diffcache.report(pipe).mask

    return run


def differ(mask: torch.Tensor) -> bool:
    return bool((mask != mask[:, :1]).any())


@pytest.fixture(scope="module")
def tolerances(make: Any, generate: Any) -> Any:
    """Gives a tolerance at which the samples of SEEDS skip differently."""

    @functools.cache
    def search(kind: str, cfg: bool) -> float:
        pipe = make(kind)
        for tenths in range(1, 40):
            with diffcache.wrapped(pipe, tolerance=tenths / 10):
                generate(pipe, SEEDS, STEPS, cfg=cfg)
                if differ(diffcache.report(pipe).mask):
                    return tenths / 10
        raise AssertionError("no tolerance tells these samples apart")

    return lambda pipe, cfg=True: search("unet" if hasattr(pipe, "unet") else "dit", cfg)


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
def test_batch_equals_its_samples_alone(pipe, masks, tolerances, gate, cfg):
    diffcache.wrap(pipe, tolerance=tolerances(pipe, cfg))
    latents, mask = masks(pipe, cfg=cfg)
    assert differ(mask)
    for column, seed in enumerate(SEEDS):
        alone, own_mask = masks(pipe, [seed], cfg=cfg)
        assert own_mask[:, 0].tolist() == mask[:, column].tolist()
        torch.testing.assert_close(alone[0], latents[column], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
def test_order_of_the_batch_does_not_matter(pipe, masks, tolerances, cfg):
    diffcache.wrap(pipe, tolerance=tolerances(pipe, cfg))
    latents, mask = masks(pipe, cfg=cfg)
    turned, turned_mask = masks(pipe, SEEDS[::-1], cfg=cfg)
    assert turned_mask.flip(1).tolist() == mask.tolist()
    torch.testing.assert_close(turned.flip(0), latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
def test_mask_is_replayed_bit_for_bit(pipe, masks, tolerances, gate, cfg):
    diffcache.wrap(pipe, tolerance=tolerances(pipe, cfg))
    latents, mask = masks(pipe, cfg=cfg)
    diffcache.wrap(pipe, mask=mask)
    replayed, replayed_mask = masks(pipe, cfg=cfg)
    assert differ(mask)
    assert replayed_mask.tolist() == mask.tolist()
    assert torch.equal(replayed, latents)


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
def test_tolerance_acts_on_its_own_sample(pipe, masks, tolerances, gate, cfg):
    tolerance = tolerances(pipe, cfg)
    diffcache.wrap(pipe, tolerance=tolerance)
    _, everyone = masks(pipe, cfg=cfg)
    with diffcache.request(tolerance=[tolerance, None, tolerance / 8, tolerance]) as request:
        _, mask = masks(pipe, cfg=cfg)
    assert request.report.mask is mask
    assert mask[:, [0, 3]].tolist() == everyone[:, [0, 3]].tolist()
    assert mask[:, 1].all()
    assert mask[:, 2].sum() > everyone[:, 2].sum()


@pytest.mark.parametrize("target", [{"compute": 0.5}, {"quality": "fast"}])
def test_a_requested_tolerance_stands_in_for_another_target(pipe, masks, tolerances, target):
    tolerance = tolerances(pipe)
    diffcache.wrap(pipe, tolerance=tolerance)
    _, everyone = masks(pipe)
    diffcache.wrap(pipe, **target)
    with diffcache.request(tolerance=[tolerance, None, tolerance, tolerance]):
        _, mask = masks(pipe)
    assert mask[:, [0, 2, 3]].tolist() == everyone[:, [0, 2, 3]].tolist()
    assert mask[:, 1].all()


def test_a_request_inside_of_another_says_the_rest(pipe, masks, tolerances):
    diffcache.wrap(pipe, tolerance=tolerances(pipe))
    with (
        diffcache.request(tolerance=None, max_consecutive_skips=4),
        diffcache.request(max_consecutive_skips=8),
    ):
        _, mask = masks(pipe)
    assert mask.all()
    with diffcache.request(tolerance=None), diffcache.request(tolerance=tolerances(pipe)):
        _, mask = masks(pipe)
    assert not mask.all()


def test_report_counts_row_steps(pipe, masks, tolerances):
    diffcache.wrap(pipe, tolerance=tolerances(pipe))
    _, mask = masks(pipe)
    report = diffcache.report(pipe)
    assert report.rows == 2 * len(SEEDS)
    assert report.total == 2 * mask.numel()
    assert report.computed == 2 * int(mask.sum())
    assert report.calls == int(mask.any(1).sum()) * (2 if hasattr(pipe, "transformer") else 1)
    assert [len(event.rules) for event in report.trace] == [len(SEEDS)] * STEPS
    assert [[rule != "skip" for rule in e.rules] for e in report.trace] == mask.tolist()


def couple_rows(module: torch.nn.Module) -> None:
    """Makes each row see the mean of its batch, as cross-frame attention does."""
    plain = module.forward

    @functools.wraps(plain)
    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain(hidden_states + hidden_states.mean(0, keepdim=True), *args, **kwargs)

    module.forward = forward


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
def test_coupled_rows_are_computed_together(pipe, generate, masks, cfg):
    couple_rows(pipe.unet if hasattr(pipe, "unet") else pipe.transformer)
    diffcache.wrap(pipe, tolerance=[0.4, 0.8, 1.6, 3.2])
    latents, mask = masks(pipe, cfg=cfg)
    report = diffcache.report(pipe)
    assert any("couples the rows" in note for note in report.notes)
    assert not differ(mask)
    assert 0 < mask.sum() < mask.numel()

    again, second = masks(pipe, cfg=cfg)
    assert not differ(second)
    assert any("couples the rows" in note for note in diffcache.report(pipe).notes)
    assert diffcache.report(pipe).compute_fraction < 1
    assert latents.isfinite().all() and again.isfinite().all()


@pytest.mark.parametrize("first", [True, False])
def test_rows_that_take_from_the_first_one_are_computed_with_it(pipe, masks, first):
    """As OmniGen's rotary embedding does, which is of the first row for all."""
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    plain = model.forward

    @functools.wraps(plain)
    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain(hidden_states + hidden_states[:1], *args, **kwargs)

    model.forward = forward
    mixed = [first, not first, first, not first]
    diffcache.wrap(pipe, mask=[[True] * 4, mixed] * (STEPS // 2))
    _, mask = masks(pipe)
    assert not differ(mask)
    assert any("couples the rows" in note for note in diffcache.report(pipe).notes)


def test_branches_side_by_side_are_computed_together(unet):
    """As in StableDiffusionPanoramaPipeline, whose second sample is to be computed in full."""
    texts = torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def loop() -> torch.Tensor:
        latents = noise
        unet.scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for t in unet.scheduler.timesteps:
                both = unet.unet(latents.repeat_interleave(2, 0), t, texts).sample
                guided = both[::2] + 5 * (both[1::2] - both[::2])
                latents = unet.scheduler.step(guided, t, latents).prev_sample
        return latents

    plain = loop()
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, tolerance=[0.9, None])
    assert torch.equal(loop(), plain)
    notes = diffcache.report(unet.unet).notes
    assert any("lie side by side" in note for note in notes)


def test_rows_that_cannot_be_gathered_are_computed_together(pipe, generate, masks):
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    plain, rows = model.forward, len(SEEDS) * (2 if hasattr(pipe, "unet") else 1)

    @functools.wraps(plain)
    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(hidden_states) != rows:
            raise IndexError("some rows are missing")
        return plain(hidden_states, *args, **kwargs)

    model.forward = forward
    diffcache.wrap(pipe, tolerance=[0.4, 0.8, 1.6, 3.2])
    latents, mask = masks(pipe)
    notes = diffcache.report(pipe).notes
    assert any("could not be computed apart" in n and "are missing" in n for n in notes)
    assert not differ(mask)
    assert 0 < mask.sum() < mask.numel()
    assert latents.isfinite().all()


@pytest.fixture
def spoilt() -> torch.Tensor:
    """Prompts of the samples of SEEDS, the last of which is not finite."""
    prompts = torch.randn(len(SEEDS), 7, 32, generator=torch.Generator().manual_seed(0))
    prompts[-1] = float("nan")
    return prompts


def test_a_sample_that_is_not_finite_says_nothing_of_the_others(pipe, masks, spoilt):
    diffcache.wrap(pipe, mask=[[True] * 4, [True, True, False, False]] * (STEPS // 2))
    latents, mask = masks(pipe, prompt_embeds=spoilt)
    assert latents.flatten(1).isfinite().all(1).tolist() == [True, True, True, False]
    assert differ(mask)
    notes = diffcache.report(pipe).notes
    assert any("rows are independent" in note for note in notes)
    assert not any("together" in note for note in notes)


def test_a_mixed_step_with_nothing_finite_couples_its_own_run_alone(pipe, masks, spoilt):
    diffcache.wrap(pipe, mask=[[True] * 4, [False, True, False, False]] * (STEPS // 2))
    _, mask = masks(pipe, prompt_embeds=spoilt)
    assert mask.all()
    notes = diffcache.report(pipe).notes
    assert any("could not be checked" in note and "this run" in note for note in notes)
    assert not any("denoiser couples" in note for note in notes)
    _, mask = masks(pipe)
    assert differ(mask)
    notes = diffcache.report(pipe).notes
    assert any("rows are independent" in note for note in notes)
    assert not any("together" in note for note in notes)


def test_one_sample_of_a_model_that_couples_rows_needs_no_note(pipe, masks):
    couple_rows(pipe.unet if hasattr(pipe, "unet") else pipe.transformer)
    diffcache.wrap(pipe, mask=[[True, True], [True, False]] * (STEPS // 2))
    masks(pipe, SEEDS[:2])
    with diffcache.request(mask=[[True], [False]] * (STEPS // 2)):
        masks(pipe, SEEDS[:1])
    assert not any("couples" in note for note in diffcache.report(pipe).notes)


def test_independent_rows_are_checked_once(pipe, masks, tolerances):
    diffcache.wrap(pipe, tolerance=tolerances(pipe))
    _, mask = masks(pipe)
    notes = [note for note in diffcache.report(pipe).notes if "rows are independent" in note]
    assert len(notes) == 1
    _, second = masks(pipe)
    assert second.tolist() == mask.tolist()
    assert not any("rows are independent" in note for note in diffcache.report(pipe).notes)


def test_rows_are_checked_again_where_attention_processors_changed(unet, masks, tolerances):
    diffcache.wrap(unet, tolerance=tolerances(unet))
    masks(unet)
    unet.unet.set_attn_processor(AttnProcessor())
    couple_rows(unet.unet)
    with diffcache.request(tolerance=[0.4, 0.8, 1.6, 3.2]):
        _, mask = masks(unet)
    assert any("couples the rows" in note for note in diffcache.report(unet).notes)
    assert not differ(mask)


def test_denoiser_assigned_later_is_checked_too(unet, make, masks, tolerances):
    diffcache.wrap(unet, tolerance=tolerances(unet))
    masks(unet)
    unet.unet = make("unet", 1).unet
    couple_rows(unet.unet)
    with diffcache.request(tolerance=[0.4, 0.8, 1.6, 3.2]):
        _, mask = masks(unet)
    assert any("couples the rows" in note for note in diffcache.report(unet).notes)
    assert not differ(mask)
