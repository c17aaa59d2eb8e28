"""The block stack on a Flux pipeline: two lists of blocks, guidance in two forwards."""

import gc
import weakref
from typing import Any

import pytest
import torch

import diffcache
from diffcache import Guards, Method
from diffcache.policies import Interval
from diffcache.predictors import Newton, Reuse
from diffcache.sites import BlockStack
from diffcache.sites.block_stack import _BlockStackAttachment

STEPS = 12
BLOCKS = 5
STACKS = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (3, 1), (2, 2), (4, 0)]


def method(head: int = 1, tail: int = 0, every: int = 4, predictor: Any = None) -> Method:
    return Method(
        site=BlockStack(head, tail),
        policy=Interval(every),
        predictor=predictor or Newton(1),
        guards=Guards(protect=(2, 1), max_consecutive_skips=None),
    )


def blocks_of(pipe: Any) -> list[torch.nn.Module]:
    return [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]


def sinks_of(head: int, tail: int) -> int:
    """How many of the two lists, of two and of three blocks, have a bypassed block."""
    return len({"dual" if index < 2 else "single" for index in range(head, BLOCKS - tail)})


def mixed_mask(samples: int = 2) -> list[list[bool]]:
    """Sample 0 always computes; the others skip at different steps, sometimes together."""
    return [
        [True, *((step + sample) % 3 == 0 or step < 2 for sample in range(1, samples))]
        for step in range(STEPS)
    ]


def alternating_mask() -> list[list[bool]]:
    """Every mixture of two samples, after two full steps."""
    return [[step < 2 or step % 4 < 2, step < 2 or step % 2 == 0] for step in range(STEPS)]


@pytest.mark.parametrize(("head", "tail"), STACKS)
def test_skip_never_runs_what_it_bypasses(dit, generate, count_calls, gate, head, tail):
    calls = count_calls(blocks_of(dit))
    diffcache.wrap(dit, method(head, tail))
    latents = generate(dit, steps=STEPS)
    report = diffcache.report(dit)
    computed = int(report.mask[:, 0].sum())
    assert latents.isfinite().all()
    assert computed == 5
    wanted = [computed] * BLOCKS
    wanted[:head] = [STEPS] * head
    wanted[BLOCKS - tail :] = [STEPS] * tail
    assert calls == [2 * count for count in wanted]


@pytest.mark.parametrize(("head", "tail"), STACKS)
@pytest.mark.parametrize("mask", [None, alternating_mask()], ids=["interval", "mixed rows"])
def test_placeholders_never_reach_the_output(dit, generate, placeholders, gate, head, tail, mask):
    diffcache.wrap(dit, method(head, tail).configured(policy=Interval(4)), mask=mask)
    made = placeholders(0.0)
    wanted = generate(dit, steps=STEPS)
    seen = len(made)
    made = placeholders(float("nan"))
    latents = generate(dit, steps=STEPS)
    assert seen == len(made)
    assert (seen > 0) == (mask is not None or BLOCKS - head - tail > sinks_of(head, tail))
    assert wanted.isfinite().all()
    assert torch.equal(latents, wanted)


@pytest.mark.parametrize(("head", "tail"), STACKS)
def test_never_skipping_is_bit_identical(dit, generate, gate, head, tail):
    plain = generate(dit, steps=STEPS)
    before = [set(vars(module)) for module in dit.transformer.modules()]
    diffcache.wrap(dit, method(head, tail, every=1))
    assert torch.equal(generate(dit, steps=STEPS), plain)
    assert diffcache.report(dit).compute_fraction == 1
    assert [set(vars(module)) for module in dit.transformer.modules()] == before
    diffcache.unwrap(dit)
    assert torch.equal(generate(dit, steps=STEPS), plain)


@pytest.mark.parametrize(("head", "tail"), STACKS)
def test_computed_rows_are_those_of_a_full_run(dit, generate, placeholders, gate, head, tail):
    plain = generate(dit, 3, STEPS)
    placeholders(float("nan"))
    diffcache.wrap(dit, method(head, tail), mask=mixed_mask(3))
    latents = generate(dit, 3, STEPS)
    report = diffcache.report(dit)
    assert report.mask.tolist() == mixed_mask(3)
    assert latents.isfinite().all()
    torch.testing.assert_close(latents[0], plain[0], rtol=1e-3, atol=1e-3)
    for sample in (1, 2):
        assert not torch.equal(latents[sample], plain[sample])


def test_rows_of_a_mixed_batch_equal_samples_alone(dit, generate):
    mask = mixed_mask(3)
    diffcache.wrap(dit, method(), mask=mask)
    latents = generate(dit, 3, STEPS)
    for sample in range(3):
        diffcache.wrap(dit, method(), mask=[[row[sample]] for row in mask])
        alone = generate(dit, [sample], STEPS)
        torch.testing.assert_close(alone[0], latents[sample], rtol=1e-3, atol=1e-3)


def test_first_block_cache_extremes(dit, generate, gate, count_calls):
    plain = generate(dit, steps=STEPS)
    diffcache.wrap(dit, "fbcache", threshold=0.0)
    assert torch.equal(generate(dit, steps=STEPS), plain)
    assert "nothing was skipped" in diffcache.report(dit).notes

    calls = count_calls(blocks_of(dit))
    diffcache.wrap(dit, "fbcache", threshold=1e9)
    assert generate(dit, steps=STEPS).isfinite().all()
    assert calls == [2 * STEPS, 2, 2, 2, 2]
    report = diffcache.report(dit)
    assert report.timeline() == "█" + "·" * (STEPS - 1)
    assert report.computed == 4 and report.total == 4 * STEPS


def test_first_block_cache_decides_for_each_sample(dit, generate, placeholders):
    placeholders(float("nan"))
    diffcache.wrap(dit, "fbcache", threshold=0.7)
    latents = generate(dit, 4, STEPS)
    mask = diffcache.report(dit).mask
    assert latents.isfinite().all()
    assert (mask != mask[:, :1]).any()
    for sample in range(4):
        alone = generate(dit, [sample], STEPS)
        assert diffcache.report(dit).mask[:, 0].tolist() == mask[:, sample].tolist()
        torch.testing.assert_close(alone[0], latents[sample], rtol=1e-3, atol=1e-3)


def test_memory_goes_with_the_generation(dit, generate):
    entered = []
    dit.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(weakref.ref(kwargs["hidden_states"])),
        with_kwargs=True,
    )
    diffcache.wrap(dit, "fbcache", threshold=0.1)
    gc.collect()
    gc.disable()
    try:
        generate(dit, steps=STEPS)
        alive = [reference for reference in entered if reference() is not None]
    finally:
        gc.enable()
    assert len(entered) == 2 * STEPS
    assert alive == []


@pytest.mark.parametrize("predictor", [Reuse(), Newton(1)], ids=["reuse", "linear"])
def test_adaptive_policy_on_the_stack(dit, generate, predictor):
    diffcache.wrap(dit, Method(site=BlockStack(1), predictor=predictor), tolerance=0.9)
    assert generate(dit, 3, 20).isfinite().all()
    assert 0 < diffcache.report(dit).compute_fraction < 1


@pytest.mark.parametrize("probed", [False, True])
def test_full_calls_are_served_through_the_borders_only(dit, generate, monkeypatch, probed):
    served = []
    play = _BlockStackAttachment._play

    def counted(self: Any, block: torch.nn.Module, *rest: Any) -> Any:
        served.append(block)
        return play(self, block, *rest)

    monkeypatch.setattr(_BlockStackAttachment, "_play", counted)
    if probed:
        diffcache.wrap(dit, "fbcache", threshold=0.0)
    else:
        diffcache.wrap(dit, method(head=0, every=1))
    generate(dit, steps=STEPS)
    border, inner = blocks_of(dit)[2:4]
    # Each guidance branch has the output described once.
    assert served.count(inner) == 2
    assert served.count(border) >= 2 * STEPS
