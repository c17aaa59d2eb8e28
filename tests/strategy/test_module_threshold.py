"""Thresholds by module as pure functions."""

import pytest
import torch

from diffcache.policies import ModuleChange, ModuleThreshold, Step

NAN = float("nan")


def play(policy, changes):
    """Masks of a run whose evidence before step i is `changes[i]`, samples × modules."""
    samples = len(changes[0])
    state, masks = policy.init(samples), []
    for index, rows in enumerate(changes):
        change = torch.tensor(rows, dtype=torch.float64).reshape(samples, -1)
        evidence = ModuleChange(change, tuple(map(str, range(change.shape[1]))))
        mask, state = policy.decide(Step(index, 50), evidence, state)
        masks.append(mask)
        unknown = torch.full((samples,), NAN, dtype=torch.float64)
        state = policy.observe(Step(index, 50), unknown, mask.all(1).tolist(), state)
    return masks


def test_threshold_is_a_weighted_sum_of_the_last_changes_of_the_warmup():
    # λ = 300 / 100 + 20 / 10 + 1 = 6, after a change that is too old to count.
    warmup = [[[]], [[7e5]], [[300.0]], [[20.0]]]
    for change, skips in ((1.0, True), (2.9, True), (3.0, True), (3.1, False), (NAN, False)):
        masks = play(ModuleThreshold(0.5, warmup=4, every=4), [*warmup, [[1.0]], [[change]]])
        assert [bool(mask.all()) for mask in masks] == [True] * 5 + [not skips]


def test_each_module_of_each_sample_has_its_threshold():
    rows = [[1.0, 4.0], [9.0, 1.0]]
    now = [[1.0, 1.0], [1.0, 4.0]]
    masks = play(ModuleThreshold(0.5, warmup=2, every=3), [[[], []], rows, rows, now, now, now])
    # Step 3 is one of every third; λ is 1.1 times what the warm-up showed.
    assert masks[3].all()
    assert masks[4].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("seed", range(5))
def test_samples_do_not_depend_on_their_neighbours(seed):
    generator = torch.Generator().manual_seed(seed)
    changes = torch.rand(12, 3, 4, generator=generator, dtype=torch.float64)
    changes[5, 1, 2] = NAN
    policy = ModuleThreshold(0.7, warmup=3)
    together = torch.stack(play(policy, changes.tolist()))
    assert 0 < together.sum() < together.numel()
    for sample in range(3):
        alone = play(policy, changes[:, [sample]].tolist())
        assert torch.equal(torch.stack(alone)[:, 0], together[:, sample])


def test_modules_that_come_after_the_warmup_compute():
    masks = play(ModuleThreshold(1.0, warmup=1, every=2), [[[]], [[1.0]], [[1.0]], [[1.0, 1e-9]]])
    assert masks[3].tolist() == [[False, True]]


def test_what_is_no_count_is_refused():
    for options in ({"warmup": 0}, {"every": 0}):
        with pytest.raises(ValueError, match="=0 is not a count of 1 or more; try "):
            ModuleThreshold(**options)
    with pytest.raises(ValueError, match=r"try gamma=0\.5"):
        ModuleThreshold(-1.0)
