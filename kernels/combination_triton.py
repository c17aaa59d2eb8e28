"""Triton side of `combine`; importing this module imports triton."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addressing_triton import load_weight, locate
from .tiling import ELEMENTWISE_TILINGS, choose_tiling, fold_layout


@triton.jit
def _combine_kernel(
    out,
    out_row_stride,
    out_strides,
    tensors,
    row_strides,
    sizes,
    strides,
    weights,
    weight_row_stride,
    weight_stride,
    elements,
    programs,
    K: tl.constexpr,
    PER_ROW: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0) % programs
    row = (tl.program_id(0) // programs).to(tl.int64)
    if WIDE:
        program = program.to(tl.int64)
    element = program * BLOCK + tl.arange(0, BLOCK)
    inside = element < elements
    # Adding to -0.0 keeps every bit, the sign of a zero included; adding to 0.0 would not.
    total = tl.full([BLOCK], -0.0, tl.float32)
    for k in tl.static_range(K):
        weight = load_weight(weights, row, k, weight_row_stride, weight_stride, PER_ROW)
        # Before the comparison, since the interpreter broadcasts a scalar's truth as a float.
        weight = tl.broadcast_to(weight, [BLOCK])
        source = tensors[k] + row * row_strides[k] + locate(element, sizes, strides[k])
        value = tl.load(source, mask=inside & (weight != 0), other=0.0).to(tl.float32)
        total += tl.where(weight != 0, weight * value, -0.0)
    target = out + row * out_row_stride + locate(element, sizes, out_strides)
    tl.store(target, total.to(out.dtype.element_ty), mask=inside)


def launch_combine(
    tensors: Sequence[Tensor], weights: tuple[float, ...] | Tensor, out: Tensor
) -> Tensor:
    """Write the weighted sum of checked operands into `out` and return it.

    `out` may be one of `tensors`, of the same strides: every element is read before the program
    that reads it writes there.
    """
    if out.numel() == 0:
        return out
    layout = fold_layout((out, *tensors))
    tiling = choose_tiling(ELEMENTWISE_TILINGS, layout.elements)
    programs = triton.cdiv(layout.elements, tiling.block)
    per_row = isinstance(weights, Tensor)
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        _combine_kernel[(out.shape[0] * programs,)](
            out,
            layout.row_strides[0],
            layout.strides[0],
            tuple(tensors),
            layout.row_strides[1:],
            layout.sizes,
            layout.strides[1:],
            weights,
            weights.stride(0) if per_row else 0,
            weights.stride(1) if per_row else 0,
            layout.elements,
            programs,
            K=len(tensors),
            PER_ROW=per_row,
            WIDE=layout.wide,
            BLOCK=tiling.block,
            num_warps=tiling.warps,
            # Left open, it follows the version of triton, and the results' last bits with it.
            enable_fp_fusion=True,
        )
    return out
