"""The oracle's tree of masks."""

import numpy as np
import pytest

import diffcache


@pytest.mark.parametrize(
    ("place", "chosen"),
    [
        (("dit", "flow", 5), ["10111", "11101", "10001", "11010"]),
        # Of these samples, forecasts at the fifth step are damped.
        (("unet", "ddim", 7, 8.0), ["1111001", "1111011", "1010101", "1101000"]),
    ],
    ids=["dit", "unet"],
)
def test_the_oracle_plays_masks_as_the_library_does(of, place, chosen):
    cells, trees = of("cells"), of("oracle_tree")
    cell = cells.Cell(*place)
    pipe, pairs = cells.load(cell), cells.prompts()[:2]

    def call():
        return cells.arguments(cell, pairs, cell.steps)

    tree = trees.Tree(pipe, call())
    masks, decibels = tree.decibels()
    count = 2 ** (cell.steps - 1)
    assert masks.shape == (count, cell.steps)
    assert decibels.shape == (count, 2)
    assert len({tuple(mask) for mask in masks.tolist()}) == count
    assert masks[:, 0].all()
    found = dict(zip(map(tuple, masks.tolist()), decibels, strict=True))
    few, again = trees.Tree(pipe, call(), 3).decibels()
    assert sorted(few.tolist()) == sorted(masks[(masks.sum(1) <= 3) | masks.all(1)].tolist())
    for mask, values in zip(few.tolist(), again, strict=True):
        assert values == pytest.approx(found[tuple(mask)], abs=0.05)
    psnr = of("oracle").metrics.psnr
    for mask in chosen:
        mask = [digit == "1" for digit in mask]
        diffcache.wrap(pipe, mask=mask)
        played = pipe(**call()).images
        assert psnr(played, tree.reference) == pytest.approx(found[tuple(mask)], abs=0.05)


def test_the_best_mask_is_each_samples_own_and_costs_no_more(of):
    masks = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], bool)
    decibels = np.array([[30.0, 20.0], [25.0, 28.0], [40.0, 22.0]])
    found = of("oracle").best(masks, decibels)
    assert {k: v.tolist() for k, v in found.items()} == {1: [30.0, 20.0], 2: [40.0, 28.0]}


def test_runs_shorter_than_the_shares_are_measured(of):
    cells, oracle = of("cells"), of("oracle")
    rows = oracle.measure("dit", cells.prompts()[:2], 5, 4)
    found = {row["setting"] for row in rows if row["kind"] == "adaptive"}
    assert "compute=0.8" in found and not any("compute=1" in str(setting) for setting in found)
    assert {row["computed"] for row in rows if row["kind"] == "oracle"} == {1, 2, 3, 4}
    assert all(row["computed"] <= 4 for row in rows)
