"""Triton side of `latent_difference`; importing this module imports triton."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .addressing_triton import load_weight, locate
from .tiling import REDUCTION_TILINGS, choose_tiling, fold_layout

_arrivals: dict[tuple[torch.device, int], Tensor] = {}


@triton.jit
def _difference_kernel(
    tensors,
    row_strides,
    sizes,
    strides,
    coefficients,
    coefficient_row_stride,
    coefficient_stride,
    result,
    partial,
    arrivals,
    rows,
    elements,
    programs,
    K: tl.constexpr,
    PER_ROW: tl.constexpr,
    STEPS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    STATISTICS: tl.constexpr = 8 if STEPS else 4
    program = tl.program_id(0) % programs
    row = (tl.program_id(0) // programs).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    if WIDE:
        program = program.to(tl.int64)
        lane = lane.to(tl.int64)

    abs_difference = tl.zeros([BLOCK], tl.float32)
    abs_reference = tl.zeros([BLOCK], tl.float32)
    sq_difference = tl.zeros([BLOCK], tl.float32)
    sq_reference = tl.zeros([BLOCK], tl.float32)
    abs_step = tl.zeros([BLOCK], tl.float32)
    sq_step = tl.zeros([BLOCK], tl.float32)
    sq_previous_step = tl.zeros([BLOCK], tl.float32)
    direction = tl.zeros([BLOCK], tl.float32)

    for start in range(program * BLOCK, elements, programs * BLOCK):
        element = start + lane
        inside = element < elements
        difference = tl.zeros([BLOCK], tl.float32)
        newer = tl.zeros([BLOCK], tl.float32)
        step = tl.zeros([BLOCK], tl.float32)
        for k in tl.static_range(K):
            source = tensors[k] + row * row_strides[k] + locate(element, sizes, strides[k])
            value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
            coefficient = load_weight(
                coefficients, row, k, coefficient_row_stride, coefficient_stride, PER_ROW
            )
            difference += coefficient * value
            if k == 0:
                abs_reference += tl.abs(value)
                sq_reference += value * value
            if STEPS:
                if k == 1:
                    step = newer - value
                    abs_step += tl.abs(step)
                    sq_step += step * step
                if k == 2:
                    previous_step = newer - value
                    sq_previous_step += previous_step * previous_step
                    direction += step * previous_step
                newer = value
        # An infinite coefficient turns the zeros of masked lanes into NaN.
        difference = tl.where(inside, difference, 0.0)
        abs_difference += tl.abs(difference)
        sq_difference += difference * difference

    if SLOTS == 1:
        target = result + row
        pitch = rows
    else:
        target = partial + (row * programs + program) * STATISTICS
        pitch = 1
    tl.store(target, tl.sum(abs_difference))
    tl.store(target + pitch, tl.sum(abs_reference))
    tl.store(target + 2 * pitch, tl.sum(sq_difference))
    tl.store(target + 3 * pitch, tl.sum(sq_reference))
    if STEPS:
        tl.store(target + 4 * pitch, tl.sum(abs_step))
        tl.store(target + 5 * pitch, tl.sum(sq_step))
        tl.store(target + 6 * pitch, tl.sum(sq_previous_step))
        tl.store(target + 7 * pitch, tl.sum(direction))

    if SLOTS > 1:
        # The barrier puts every thread's partial sums before the one thread's release, and the
        # acquire of the program that arrives last makes all rows of partial sums visible to it.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + row, 1, sem="acq_rel", scope="gpu")
        if arrived == programs - 1:
            tl.debug_barrier()
            slot = tl.arange(0, SLOTS)
            source = partial + (row * programs + slot) * STATISTICS
            for statistic in tl.static_range(STATISTICS):
                sums = tl.load(source + statistic, mask=slot < programs, other=0.0)
                tl.store(result + statistic * rows + row, tl.sum(sums))
            tl.store(arrivals + row, 0)


def launch_difference(
    tensors: Sequence[Tensor], coefficients: tuple[float, ...] | Tensor, steps: bool
) -> Tensor:
    """Return the statistics of `latent_difference` as fp32 [4 or 8, B], in field order.

    Takes checked operands: tensors of one shape, and K floats or a tensor [B, K].
    """
    first = tensors[0]
    rows = first.shape[0]
    statistics = 8 if steps else 4
    if first.numel() == 0:
        return first.new_zeros((statistics, rows), dtype=torch.float32)
    layout = fold_layout(tensors)
    tiling = choose_tiling(REDUCTION_TILINGS, layout.elements)
    programs = min(tiling.programs, triton.cdiv(layout.elements, tiling.block))
    per_row = isinstance(coefficients, Tensor)
    result = first.new_empty((statistics, rows), dtype=torch.float32)
    with torch.cuda.device(first.device) if first.is_cuda else nullcontext():
        if programs > 1:
            partial = first.new_empty((rows, programs, statistics), dtype=torch.float32)
            arrivals = _zeroed_arrivals(first.device, rows)
        else:
            partial = arrivals = result
        _difference_kernel[(rows * programs,)](
            tuple(tensors),
            layout.row_strides,
            layout.sizes,
            layout.strides,
            coefficients,
            coefficients.stride(0) if per_row else 0,
            coefficients.stride(1) if per_row else 0,
            result,
            partial,
            arrivals,
            rows,
            layout.elements,
            programs,
            K=len(tensors),
            PER_ROW=per_row,
            STEPS=steps,
            WIDE=layout.wide,
            BLOCK=tiling.block,
            SLOTS=triton.next_power_of_2(programs),
            num_warps=tiling.warps,
            # Left open, it follows the version of triton, and the results' last bits with it.
            enable_fp_fusion=True,
        )
    return result


def _zeroed_arrivals(device: torch.device, rows: int) -> Tensor:
    """An int32 counter of zeros for each row, which every finished launch leaves at zero.

    One buffer serves one stream, where launches run one after another; launches on two streams
    may overlap and would count each other's programs. Filling a fresh buffer for every call would
    be safe too, but adds a second launch. A graph under capture does get its own, since it may be
    replayed beside whatever the capturing stream runs by then.
    """
    if device.type != "cuda":
        stream = 0
    elif torch.cuda.is_current_stream_capturing():
        return torch.zeros(rows, dtype=torch.int32, device=device)
    else:
        stream = torch.cuda.current_stream(device).cuda_stream
    counters = _arrivals.get((device, stream))
    if counters is None or counters.numel() < rows:
        counters = torch.zeros(max(64, rows), dtype=torch.int32, device=device)
        _arrivals[device, stream] = counters
    return counters
