"""Decisions by module, from what the module site measures."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import diffcache
from diffcache import Guards, Method
from diffcache.policies import ByRole, Interval, Mask, ModuleThreshold
from diffcache.predictors import Reuse
from diffcache.runtime.history import Anchor
from diffcache.runtime.lanes import Lane
from diffcache.sites import Modules
from diffcache.sites.modules import modules_of

STEPS = 12
OPTIONS = {"gamma": 1.0, "warmup": 4, "every": 3}


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The masks `[samples, modules]` that the policy decides on, in order."""
    made: list[torch.Tensor] = []
    decide = ModuleThreshold.decide

    def noting(self: Any, *args: Any) -> Any:
        mask, state = decide(self, *args)
        made.append(mask)
        return mask, state

    monkeypatch.setattr(ModuleThreshold, "decide", noting)
    return made


def test_never_skipping_is_bit_identical(pipe, generate, gate):
    plain = generate(pipe, steps=STEPS)
    diffcache.wrap(pipe, "foresight", gamma=0.0, warmup=4)
    assert torch.equal(generate(pipe, steps=STEPS), plain)
    assert diffcache.report(pipe).compute_fraction == 1
    diffcache.unwrap(pipe)
    assert torch.equal(generate(pipe, steps=STEPS), plain)


def test_two_generations_and_another_size(pipe, generate):
    diffcache.wrap(pipe, "foresight", **OPTIONS)
    first = generate(pipe, steps=STEPS)
    report = diffcache.report(pipe)
    assert report.compute_fraction < 1 and report.cache_bytes > 0
    assert generate(pipe, steps=STEPS, size=32).shape != first.shape
    assert torch.equal(generate(pipe, steps=STEPS), first)


def test_the_check_of_the_rows_leaves_no_trace(pipe, generate):
    diffcache.wrap(pipe, "foresight")
    first, one = generate(pipe, 3, 16), diffcache.report(pipe)
    assert any("rows are independent" in note for note in one.notes)
    assert torch.equal(generate(pipe, 3, 16), first)
    other = diffcache.report(pipe)
    assert one.computed == other.computed and torch.equal(one.mask, other.mask)


def test_samples_decide_as_they_would_alone(pipe, generate, decisions):
    diffcache.wrap(pipe, "foresight", **OPTIONS)
    latents = generate(pipe, 3, STEPS)
    together = decisions[:]
    assert any(len({*map(tuple, mask.tolist())}) > 1 for mask in together)
    for sample in range(3):
        decisions.clear()
        alone = generate(pipe, [sample], STEPS)
        for mask, one in zip(together, decisions, strict=True):
            assert mask[sample].tolist() == one[0].tolist()
        torch.testing.assert_close(alone[0], latents[sample], rtol=1e-3, atol=1e-3)


def test_branches_in_calls_of_their_own_share_a_decision(dit, generate, decisions):
    runs = dict.fromkeys(modules_of(dit.transformer), 0)

    def counting(path: str) -> Any:
        def hook(*_: Any) -> None:
            runs[path] += 1

        return hook

    for path, module in modules_of(dit.transformer).items():
        linear = next(m for m in module.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(counting(path))
    diffcache.wrap(dit, "foresight", **OPTIONS)
    generate(dit, 1, STEPS)
    # The first step is computed before there is anything to ask about.
    wanted = 1 + sum(mask[0].int() if mask.numel() else 1 for mask in decisions)
    assert len(decisions) == STEPS - 1
    assert sorted(runs.values()) == sorted((2 * wanted).tolist())
    # Steps 0 to 3, 6 and 9 are computed whatever was measured.
    assert set(runs.values()) > {12} and max(runs.values()) < 2 * STEPS
    report = diffcache.report(dit)
    assert report.compute_fraction == pytest.approx(int(wanted.sum()) / STEPS / len(runs))
    assert report.compute_fraction > float(report.mask.double().mean())


def test_samples_of_two_branches_are_told_apart_in_one_call(unet, generate, decisions):
    diffcache.wrap(unet, "foresight", **OPTIONS)
    generate(unet, 2, STEPS, cfg=True)
    assert {mask.shape[0] for mask in decisions} == {2}
    assert decisions[-1].shape[1] == len(modules_of(unet.unet))


def test_changes_of_a_lane_follow_the_rows_that_computed():
    lane = Lane((), 1)

    def take(values: list[float], rows: list[bool] | None) -> None:
        tensor = torch.tensor(values)[:, None].expand(-1, 5)
        lane.measure("key", [tensor], rows)
        lane.history("key").append([tensor], Anchor(0.0, len(values)), rows)

    take([1.0, 1.0], None)
    assert not lane.changes
    take([3.0, 4.0], None)
    assert lane.changes["key"].tolist() == [4.0, 9.0]
    before = lane.snapshot()
    take([4.0, 4.0], [True, False])
    assert lane.changes["key"].tolist() == [1.0, 9.0]
    lane.restore(before)
    assert lane.changes["key"].tolist() == [4.0, 9.0]
    take([1.0, 1.0, 1.0], None)
    assert not lane.changes


def test_a_report_counts_the_modules_that_a_denoiser_has(dit, generate):
    """Flux has no temporal and no cross-attention; only its self-attention is repeated."""
    policy = ByRole({"self": Interval(2), "cross": Interval(6), "temporal": Interval(4)})
    diffcache.wrap(dit, "pab", policy=policy, protect=(0, 0))
    generate(dit, 1, STEPS)
    report = diffcache.report(dit)
    assert report.compute_fraction == pytest.approx(0.5)
    assert report.timeline() == "█·" * (STEPS // 2)


def test_weights_that_change_start_the_warmup_afresh(dit, generate, decisions):
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if step == 11:
            with torch.no_grad():
                for parameter in pipe.transformer.parameters():
                    parameter.mul_(1.01)
        return tensors

    diffcache.wrap(dit, "foresight", **OPTIONS)
    generate(dit, 2, 24, callback_on_step_end=callback)
    report = diffcache.report(dit)
    assert any("caches were started afresh" in note for note in report.notes)
    mask = report.mask.all(1)
    assert mask[12:16].all() and not mask[4:12].all() and not mask[16:].all()


def test_samples_that_are_coupled_decide_together(dit, generate, decisions, monkeypatch):
    monkeypatch.setattr("diffcache.runtime.checking._agree", lambda *_: False)
    diffcache.wrap(dit, "foresight", **OPTIONS)
    for _ in range(2):
        generate(dit, 3, 24)
        assert torch.equal(*[diffcache.report(dit).mask[:, i] for i in (0, 1)])
    assert any(len({*map(tuple, mask.tolist())}) > 1 for mask in decisions)


def test_half_precision(dit, generate):
    diffcache.wrap(dit.to(torch.bfloat16), "foresight", **OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        assert generate(dit, 2, STEPS).isfinite().all()
    assert diffcache.report(dit).compute_fraction < 1


def test_families_skip_modules_and_stay_finite(denoiser):
    model, inputs = denoiser
    scheduler = FlowMatchEulerDiscreteScheduler()
    diffcache.wrap(model, "foresight", scheduler=scheduler, **OPTIONS)
    scheduler.set_timesteps(STEPS)
    latents = next(iter(inputs.values()))
    with torch.no_grad():
        for t in scheduler.timesteps:
            inputs[next(iter(inputs))] = latents
            rows = torch.full((len(latents),), float(t))
            prediction = model(**inputs, timestep=rows, return_dict=False)[0]
            # Some predict more channels (a variance) than the sample has.
            prediction = prediction[:, : latents.shape[1]]
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    assert latents.isfinite().all()
    assert 0.5 < diffcache.report(model).compute_fraction < 1


def test_a_check_of_some_modules_says_nothing_of_others(unet, generate):
    """Cross-attention takes rows apart, self-attention that sees other frames does not."""
    whole = [[True, True, True]]
    once = [[True, False, False]]
    cross = Mask([*whole * 3, *once, *whole * (STEPS - 4)])
    own = Mask([*whole * 7, *once, *whole * 2, *once, *whole * (STEPS - 11)])
    for path, module in modules_of(unet.unet).items():
        if path.endswith("attn1"):
            module.register_forward_hook(lambda _, args, found: found + found.mean(0))
    policy = ByRole({"cross": cross, "self": own})
    guards = Guards(protect=(2, 0), max_consecutive_skips=None, few_steps=0)
    diffcache.wrap(unet, Method(site=Modules(), policy=policy, predictor=Reuse(), guards=guards))
    generate(unet, [0, 1, 2], STEPS)
    notes = diffcache.report(unet).notes
    assert ["couples the rows" in note for note in notes] == [False, True]


def test_a_checked_step_counts_as_one_that_is_not(unet, generate):
    """The modules that ran in it, and not those of the full run that it was compared with."""
    some = Mask([*[[True] * 3] * 5, [True, False, False], *[[True] * 3] * (STEPS - 6)])
    policy = ByRole({"cross": some, "self": Mask([[True] * 3] * STEPS)})
    guards = Guards(protect=(2, 0), max_consecutive_skips=None, few_steps=0)
    diffcache.wrap(unet, Method(site=Modules(), policy=policy, predictor=Reuse(), guards=guards))
    reports = []
    for _ in range(2):
        generate(unet, [0, 1, 2], STEPS)
        reports.append(diffcache.report(unet))
    first, second = reports
    assert any("in full as well" in note for note in first.notes) and not second.notes
    assert first.computed == second.computed < first.total
