"""Weighted sums of cached tensors, per sample."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .backend import uses_triton
from .operands import check_out, check_tensors, check_weights

MAX_TENSORS = 8


def combine(
    tensors: Sequence[Tensor],
    weights: Tensor | Sequence[float],
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Sum K tensors, weighted per row: out[b] = sum_k w[b, k] tensors[k][b].

    Accumulates in fp32, or in fp64 where a tensor is, and rounds once. A weight of exactly zero
    drops its tensor from that row, infinities and NaNs included. A row with one unit weight and
    zeros is therefore that tensor's row bit for bit, and always a copy of it. No gradient flows
    through.

    On CUDA with triton installed this is a single launch; elsewhere, and in fp64, about one torch
    call a tensor.
    Weights given as numbers, or as a tensor on the CPU that is equal for all rows, are the cheaper
    form everywhere.

    Args:
        tensors: 1 to 8 tensors of one shape [B, ...] and one device; fp32, fp16, bf16 or fp64 and
            any strides, both free to differ between them.
        weights: a tensor [K] or [B, K] or K numbers, used as fp32; a tensor on the CPU will do for
            tensors on any device.
        out: where to write: any of these dtypes, of the shape and device of `tensors[0]`, any
            strides but expanded ones. It may be one of `tensors`, but not overlap one in part.

    Returns:
        Tensor: `out` if given, else a new tensor of the dtype and memory format of `tensors[0]`.

    Raises:
        TypeError: a dtype, or an argument's type, other than the above.
        ValueError: a count, shape or device other than the above, or an expanded `out`.
    """
    tensors = check_tensors("combine", tensors, MAX_TENSORS)
    weights = check_weights("combine", "weights", weights, tensors)
    if out is not None:
        check_out("combine", out, tensors[0])
    like = tensors[0]
    if not isinstance(weights, Tensor):
        used = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight]
        if not used:
            return _destination(like, out).zero_()
        tensors, weights = zip(*used, strict=True)
        if weights == (1.0,):
            return _destination(like, out).copy_(tensors[0])
    wide = any(tensor.dtype is torch.float64 for tensor in tensors)
    if not wide and uses_triton(like.device):
        from .combination_triton import launch_combine

        return launch_combine(tensors, weights, _destination(like, out))
    total = combine_torch(tensors, weights, like, torch.float64 if wide else torch.float32)
    return total.to(like.dtype) if out is None else out.copy_(total)


def combine_torch(
    tensors: Sequence[Tensor],
    weights: tuple[float, ...] | Tensor,
    like: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Torch twin of the kernel, for checked operands; what runs on CPU.

    Returns a new tensor of `dtype` and the memory format of `like`, which aliases no operand.
    """
    total = torch.empty_like(like, dtype=dtype)
    if isinstance(weights, Tensor):
        return _add_rows(tensors, weights.to(dtype), total)
    if tensors[0].dtype is dtype:
        torch.mul(tensors[0], weights[0], out=total)
    else:
        # torch.mul would round the product to the lower precision of its input.
        total.copy_(tensors[0]).mul_(weights[0])
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def _add_rows(tensors: Sequence[Tensor], weights: Tensor, total: Tensor) -> Tensor:
    # Adding to -0.0 keeps every bit, the sign of a zero included; adding to 0.0 would not.
    total.fill_(-0.0)
    shape = (len(tensors), total.shape[0]) + (1,) * (total.ndim - 1)
    columns = weights.t().reshape(shape).unbind(0)
    # Reading weights back would stall a device, which this runs on where triton is not.
    some_zero = (weights == 0).any(0).tolist() if weights.is_cpu else [True] * len(tensors)
    for tensor, column, with_zero in zip(tensors, columns, some_zero, strict=True):
        tensor = tensor.to(total.dtype)
        if with_zero:
            total.add_((tensor * column).masked_fill_(column == 0, -0.0))
        else:
            total.addcmul_(tensor, column)
    return total


def _destination(like: Tensor, out: Tensor | None) -> Tensor:
    return torch.empty_like(like) if out is None else out
