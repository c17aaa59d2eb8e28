"""Rows of a batch inside arguments and outputs."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from diffcache.runtime.rows import (
    as_index,
    blocks_of,
    by_rows,
    leaves,
    map_leaves,
    merge,
    rows_first,
    samples_to_rows,
    take,
    tensor_leaves,
)

INDEX = torch.tensor([2, 0])


class Pair(NamedTuple):
    first: torch.Tensor
    second: str


@pytest.mark.parametrize(
    ("shape", "rows", "blocks"),
    [
        ((4, 3), 4, 1),
        ((4,), 4, 1),
        ((12, 7, 5), 4, 3),
        ((12, 3), 4, 0),
        ((12,), 4, 0),
        ((6, 7, 5), 4, 0),
        ((1, 3), 4, 0),
        ((), 4, 0),
        ((0, 3), 4, 0),
    ],
)
def test_blocks_of_a_row(shape, rows, blocks):
    assert blocks_of(torch.zeros(shape), rows) == blocks


def test_take_gathers_every_leaf_with_rows():
    batched, shared = torch.arange(6).reshape(3, 2), torch.arange(5)
    tree = {"x": batched, "ids": shared, "t": torch.tensor(7), "nested": {"y": (batched, None)}}
    found = take(tree, 3, INDEX)
    assert found["x"].tolist() == [[4, 5], [0, 1]]
    assert found["ids"] is shared and found["t"] is tree["t"]
    assert found["nested"]["y"][0].tolist() == [[4, 5], [0, 1]]
    assert found["nested"]["y"][1] is None


def test_take_keeps_the_frames_of_a_row_together():
    text = torch.arange(6)[:, None, None].expand(6, 2, 2)
    assert take(text, 3, INDEX)[:, 0, 0].tolist() == [4, 5, 0, 1]


def test_take_follows_the_main_tensor():
    """Text with an entry a frame is of the rows; a rotation of as many tokens as that is not."""
    video, text = torch.zeros(3, 4, 2, 5), torch.arange(6)[:, None, None].expand(6, 7, 8)
    rotation, table = torch.zeros(9, 1, 4), torch.zeros(12, 4)
    found = take(({"x": video, "text": text, "rotation": rotation}, [table]), 3, INDEX)
    assert found[0]["text"][:, 0, 0].tolist() == [4, 5, 0, 1]
    assert found[0]["rotation"] is rotation and found[1][0] is table


def test_take_follows_frames_folded_into_the_batch():
    frames, times = torch.zeros(6, 7, 8), torch.arange(6)[:, None]
    found = take((frames, times, torch.zeros(9, 4)), 3, INDEX)
    assert found[0].shape[0] == 4 and found[1][:, 0].tolist() == [4, 5, 0, 1]
    assert found[2].shape[0] == 9


def test_take_picks_rows_that_are_as_long_as_the_batch():
    rows = [torch.full((6, 2, 2), value) for value in (0.0, 1.0, 2.0)]
    assert [row.unique().item() for row in take(rows, 3, INDEX)] == [2.0, 0.0]


def test_rows_first_splits_what_is_folded():
    assert rows_first(torch.zeros(6, 7, 8), 3).shape == (3, 2, 7, 8)
    assert rows_first(torch.zeros(3, 7, 8), 3).shape == (3, 7, 8)
    assert rows_first(torch.zeros(7, 3, 8), 3).shape == (7, 3, 8)


def test_by_rows_stacks_a_list_of_rows():
    listed = [torch.zeros(4, 2), torch.ones(4, 2)]
    assert by_rows((listed,), True)[0].shape == (2, 4, 2)
    assert by_rows((listed,), False) == listed
    assert by_rows((), True) == []


def test_take_picks_from_a_list_with_an_entry_a_row():
    assert take(["a", "b", "c"], 3, INDEX) == ["c", "a"]
    prompts = [torch.zeros(4, 2), torch.ones(5, 2), torch.full((7, 2), 2.0)]
    assert [len(x) for x in take(prompts, 3, INDEX)] == [7, 4]


def test_take_leaves_a_list_of_numbers_alone():
    assert take([0, 1, 2], 3, INDEX) == [0, 1, 2]
    assert take([[(1, 4, 4)], [(1, 4, 8)], [(1, 8, 8)]], 3, INDEX) == [[(1, 8, 8)], [(1, 4, 4)]]


def test_take_gathers_inside_a_list_of_batched_tensors():
    residuals = [torch.arange(3)[:, None] * scale for scale in (1, 10, 100)]
    assert [x[:, 0].tolist() for x in take(residuals, 3, INDEX)] == [[2, 0], [20, 0], [200, 0]]


def test_positions_along_each_axis_are_no_rows():
    positions = [torch.arange(2), torch.arange(3), torch.arange(4)]
    (found,) = take([positions], 3, INDEX)
    assert all(map(torch.equal, found, positions))


@pytest.mark.parametrize(
    "tree",
    [
        (torch.zeros(2), "a"),
        [torch.zeros(2), None],
        {"a": torch.zeros(2), "b": [1]},
        Pair(torch.zeros(2), "b"),
        Transformer2DModelOutput(sample=torch.zeros(2)),
        OrderedDict(a=torch.zeros(2)),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_map_keeps_the_structure(tree):
    found = map_leaves(tree, lambda leaf: leaf + 1 if isinstance(leaf, torch.Tensor) else leaf)
    assert type(found) is type(tree)
    assert [x.tolist() for x in tensor_leaves(found)] == [[1.0, 1.0]]
    assert tensor_leaves(tree)[0].tolist() == [0.0, 0.0]
    assert len(leaves(found)) == len(leaves(tree))


def test_map_keeps_dicts_that_are_made_another_way():
    class Scales(dict):
        def __init__(self, mapping: dict) -> None:
            super().__init__(mapping)
            self.name = "mine"

    tree = Scales({"a": 1, "b": [2]})
    found = map_leaves(tree, lambda leaf: leaf + 1)
    assert type(found) is Scales and found == {"a": 2, "b": [3]} and found.name == "mine"
    assert tree == {"a": 1, "b": [2]}


def test_take_keeps_outputs_and_named_tuples():
    output = take(Transformer2DModelOutput(sample=torch.arange(3)), 3, INDEX)
    assert type(output) is Transformer2DModelOutput and output.sample.tolist() == [2, 0]
    pair = take(Pair(torch.arange(3), "b"), 3, INDEX)
    assert type(pair) is Pair and pair.first.tolist() == [2, 0]


def test_row_r_is_of_sample_r_modulo_samples():
    assert samples_to_rows([True, False, True], 6) == [True, False, True, True, False, True]
    assert samples_to_rows([True, False], 2) == [True, False]


def test_merge_replaces_the_computed_rows():
    merged = merge(torch.tensor([[9.0]]), torch.zeros(3, 1), as_index([False, True, False]))
    assert merged.tolist() == [[0.0], [9.0], [0.0]]


def test_samples_of_their_own_shapes_are_listed_whatever_their_lengths():
    """Two captions of two and of three tokens, of which the first is as long as the batch."""
    captions = [torch.zeros(2, 4), torch.ones(3, 4)]
    call = ([torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)], torch.arange(2.0), captions)
    samples, times, (caption,) = take(call, 2, torch.tensor([1]), listed=True)
    assert times.tolist() == [1.0] and len(samples) == 1
    assert samples[0] is call[0][1] and caption is captions[1]
    # Where samples are one tensor, a list of tensors with a batch axis is none of rows.
    _, several = take((torch.zeros(2, 3, 4, 4), captions[:1] * 2), 2, torch.tensor([1]))
    assert [value.shape for value in several] == [(1, 4)] * 2
