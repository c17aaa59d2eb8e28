"""Folding of strides, and the tables of block sizes."""

import pytest
import torch

from diffcache.kernels import tiling

BASE = torch.empty(2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("tensors", "sizes", "strides"),
    [
        ([torch.empty(2, 3, 5)], (15,), ((1,),)),
        ([torch.empty(7)], (1,), ((1,),)),
        ([torch.empty(2, 1, 1, 4, 1)], (4,), ((1,),)),
        ([BASE[:, :2, :, :, :3]], (3, 40), ((1, 6),)),
        ([BASE[..., :1, :]], (6, 12), ((1, 30),)),
        ([BASE[:, :1].expand_as(BASE)], (3, 120), ((0, 1),)),
        ([BASE.transpose(1, 4)], (360,), ((1,),)),
        ([BASE, BASE.clone()], (360,), ((1,), (1,))),
        ([torch.empty(2, 3, 8)[..., ::2], torch.empty(2, 3, 4)], (12,), ((2,), (1,))),
    ],
    ids=[
        "contiguous",
        "scalar-rows",
        "unit-dimensions",
        "cut-outside-and-inside",
        "unit-cut",
        "expanded",
        "permuted",
        "two",
        "even-stride",
    ],
)
def test_fold(tensors, sizes, strides):
    layout = tiling.fold_layout(tensors)
    assert (layout.sizes, layout.strides) == (sizes, strides)
    assert layout.elements == tensors[0][0].numel()
    assert layout.row_strides == tuple(tensor.stride(0) for tensor in tensors)


def test_shared_channels_last_is_flat_and_a_mixture_is_not():
    contiguous = torch.empty(2, 3, 4, 5)
    last = contiguous.to(memory_format=torch.channels_last)
    assert tiling.fold_layout([last, last]).sizes == (60,)
    assert tiling.fold_layout([contiguous, last]).sizes == (20, 3)
    assert tiling.fold_layout([last, contiguous]).sizes == (3, 20)


@pytest.mark.parametrize(
    ("shape", "strides", "wide"),
    [
        ((1, 2**30 - 1), (0, 0), False),
        ((1, 2**30), (0, 0), True),
        ((1, 2, 5), (0, 2**30 - 5, 1), False),
        ((1, 2, 5), (0, 2**30 - 4, 1), True),
        ((3, 2, 5), (2**30, 5, 1), False),
    ],
)
def test_wide_offsets_are_for_rows_of_large_extent(shape, strides, wide):
    tensor = torch.empty_strided(shape, strides, device="meta")
    assert tiling.fold_layout([tensor]).wide is wide


@pytest.mark.parametrize("table", [tiling.REDUCTION_TILINGS, tiling.ELEMENTWISE_TILINGS])
@pytest.mark.parametrize("elements", [1, 1024, 1025, 65_536, 65_537, 2**40])
def test_every_size_has_a_tiling(table, elements):
    tile = tiling.choose_tiling(table, elements)
    assert elements <= tile.elements
    assert all(entry.elements < elements for entry in table[: table.index(tile)])
    assert tile.block & (tile.block - 1) == 0


def test_one_program_covers_what_it_is_alone_with():
    alone = [tile for tile in tiling.REDUCTION_TILINGS if tile.programs == 1]
    assert alone
    assert all(tile.elements <= tile.block for tile in alone)
