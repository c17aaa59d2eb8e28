"""How far a forecast may go, told by how the last one went."""

import pytest
import torch

from diffcache.predictors import damped, damping


def told(newest, forecast, before):
    squares = [newest - forecast, forecast - before, newest - before]
    return damping(*((one * one).sum(1) for one in squares))


@pytest.mark.parametrize(
    ("along", "factor"),
    [(1.0, 1.0), (2.5, 1.0), (0.0, 1.0), (-0.25, 0.5), (-0.5, 0.0), (-0.6, -0.2), (-3.0, -0.5)],
)
def test_a_forecast_is_damped_by_how_far_the_last_one_went_the_wrong_way(along, factor):
    generator = torch.Generator().manual_seed(0)
    before, move, aside = torch.randn(3, 5, 40, generator=generator, dtype=torch.float64)
    # What the value did besides, across the move, tells nothing of it.
    aside -= (aside * move).sum(1, keepdim=True) / (move * move).sum(1, keepdim=True) * move
    found = told(before + along * move + 3 * aside, before + move, before)
    torch.testing.assert_close(found, torch.full((5,), factor, dtype=torch.float64))


def test_samples_are_damped_on_their_own_and_those_without_a_move_not_at_all():
    before, move = torch.ones(3, 4), torch.ones(3, 4)
    move[1] = 0.0
    newest = before + torch.tensor([-0.25, 5.0, 1.0])[:, None]
    assert told(newest, before + move, before).tolist() == [0.5, 1.0, 1.0]


def test_a_sample_that_is_spoilt_spoils_no_other():
    before, move = torch.zeros(2, 4), torch.ones(2, 4)
    newest = torch.tensor([[float("nan")] * 4, [-0.5] * 4])
    found = told(newest, before + move, before)
    assert found[0].isnan() and found[1] == 0


def test_damped_weights_move_by_a_part_from_the_newest_value():
    generator = torch.Generator().manual_seed(1)
    values, weights = torch.randn(3, 2, generator=generator), torch.randn(2, 3, generator=generator)
    weights /= weights.sum(1, keepdim=True)
    factors = torch.tensor([0.25, -0.5])
    plain = (weights.T * values).sum(0)
    wanted = values[0] + factors * (plain - values[0])
    found = damped(weights.clone(), factors)
    torch.testing.assert_close((found.T * values).sum(0), wanted)
    assert damped(weights, torch.ones(2)).equal(weights)
