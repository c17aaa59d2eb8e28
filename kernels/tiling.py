"""How a launch covers a tensor: strides folded to the fewest dimensions, block sizes by size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

# Past this extent 32-bit element offsets could wrap; half the range leaves room for the loop that
# steps one stride of the whole grid beyond the last element.
NARROW_EXTENT = 2**30


class Layout(NamedTuple):
    """One row of several tensors of one shape, as the kernels walk it.

    Attributes:
        elements: elements in a row.
        sizes: extents of the folded dimensions, innermost first.
        strides: for each tensor, its strides along `sizes`, in elements.
        row_strides: for each tensor, the stride between rows, in elements.
        wide: whether offsets inside a row need 64 bits.
    """

    elements: int
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    row_strides: tuple[int, ...]
    wide: bool


class Tiling(NamedTuple):
    """Block size, warps and the most programs a row may be given, up to `elements` a row."""

    elements: float
    block: int
    warps: int
    programs: int


# A reduction carries up to eight running sums an element: more than 8 elements a thread spill.
# Above the caps a program loops, which keeps the partial sums that the last program adds few.
REDUCTION_TILINGS = (
    Tiling(elements=1_024, block=1_024, warps=4, programs=1),
    Tiling(elements=32_768, block=1_024, warps=4, programs=32),
    Tiling(elements=524_288, block=2_048, warps=8, programs=64),
    Tiling(elements=math.inf, block=2_048, warps=8, programs=256),
)

# An elementwise pass has one block a program, so the cap does not bind.
ELEMENTWISE_TILINGS = (
    Tiling(elements=65_536, block=512, warps=4, programs=2**31),
    Tiling(elements=math.inf, block=2_048, warps=8, programs=2**31),
)


def choose_tiling(table: Sequence[Tiling], elements: int) -> Tiling:
    """The first entry of `table` that covers `elements` a row."""
    return next(entry for entry in table if elements <= entry.elements)


def fold_layout(tensors: Sequence[Tensor]) -> Layout:
    """Fold all dimensions but the first into the fewest that every tensor strides evenly.

    Dimensions are ordered by the strides of `tensors[0]`, so that tensors which share a dense
    layout, channels-last as well as contiguous, fold to one dimension of stride 1.
    """
    shape = tensors[0].shape[1:]
    per_tensor = [tensor.stride()[1:] for tensor in tensors]
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    axes.sort(key=lambda axis: tuple(strides[axis] for strides in per_tensor))
    sizes: list[int] = []
    steps: list[tuple[int, ...]] = []
    for axis in axes:
        step = tuple(strides[axis] for strides in per_tensor)
        if sizes and step == tuple(inner * sizes[-1] for inner in steps[-1]):
            sizes[-1] *= shape[axis]
        else:
            sizes.append(shape[axis])
            steps.append(step)
    if not sizes:
        sizes, steps = [1], [(1,) * len(tensors)]
    elements = math.prod(shape)
    extent = max(
        sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        for strides in zip(*steps, strict=True)
    )
    return Layout(
        elements=elements,
        sizes=tuple(sizes),
        strides=tuple(zip(*steps, strict=True)),
        row_strides=tuple(tensor.stride(0) for tensor in tensors),
        wide=max(extent, elements) >= NARROW_EXTENT,
    )
