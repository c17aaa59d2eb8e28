"""Checks shared by the two kernels: what may be passed, and what the message says if it may not."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .transfer import sent

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensors(caller: str, tensors: Sequence[Tensor], limit: int) -> tuple[Tensor, ...]:
    """Return `tensors` as a tuple of 1 to `limit` detached floats of one shape and device.

    Raises:
        TypeError: not a sequence of tensors, or a dtype other than fp32, fp16, bf16 and fp64.
        ValueError: none or too many tensors, a 0-d tensor, differing shapes or devices.
    """
    if not isinstance(tensors, (tuple, list)):
        raise TypeError(
            f"{caller}: tensors is a {type(tensors).__name__}; pass a list or tuple of tensors"
        )
    if not 1 <= len(tensors) <= limit:
        raise ValueError(f"{caller}: got K={len(tensors)} tensors; pass 1 to {limit}")
    for position, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{caller}: tensors[{position}] is a {type(tensor).__name__}; pass a torch.Tensor"
            )
        _check_dtype(caller, f"tensors[{position}]", tensor)
    first = tensors[0]
    if first.ndim == 0:
        raise ValueError(f"{caller}: tensors[0] is 0-d; pass [B, ...], a batch dimension first")
    for position, tensor in enumerate(tensors):
        if tensor.shape != first.shape:
            raise ValueError(
                f"{caller}: tensors[{position}] has shape {list(tensor.shape)} but tensors[0] has "
                f"{list(first.shape)}; all tensors need one shape"
            )
        if tensor.device != first.device:
            raise ValueError(
                f"{caller}: tensors[{position}] is on {tensor.device} but tensors[0] is on "
                f"{first.device}; all tensors need one device"
            )
    if torch.is_grad_enabled():
        return tuple(tensor.detach() if tensor.requires_grad else tensor for tensor in tensors)
    return tuple(tensors)


def check_weights(
    caller: str, name: str, weights: Tensor | Sequence[float], tensors: tuple[Tensor, ...]
) -> tuple[float, ...] | Tensor:
    """Return `weights` as K floats shared by all rows, or as a [B, K] tensor beside `tensors`.

    Raises:
        TypeError: entries that are not real numbers.
        ValueError: a shape other than [K] or [B, K], or a device that is neither the CPU nor the
            one of `tensors`.
    """
    if isinstance(weights, Tensor):
        return _check_weight_tensor(caller, name, weights, tensors)
    if not isinstance(weights, Sequence) or isinstance(weights, (str, bytes)):
        raise TypeError(
            f"{caller}: {name} is a {type(weights).__name__}; pass a tensor [K] or [B, K] or a "
            "sequence of K floats"
        )
    if len(weights) != len(tensors):
        raise ValueError(
            f"{caller}: {name} has {len(weights)} entries for K={len(tensors)} tensors; pass K"
        )
    try:
        return tuple(map(float, weights))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{caller}: {name} holds entries that are not real numbers ({error}); pass K floats, "
            "or a tensor [B, K] for weights that differ between rows"
        ) from error


def check_out(caller: str, out: Tensor, like: Tensor) -> None:
    """Raise unless `out` can take a float result of the shape and device of `like`."""
    if not isinstance(out, Tensor):
        raise TypeError(f"{caller}: out is a {type(out).__name__}; pass a torch.Tensor or None")
    _check_dtype(caller, "out", out)
    if out.shape != like.shape or out.device != like.device:
        raise ValueError(
            f"{caller}: out is {list(out.shape)} on {out.device}; it needs to be "
            f"{list(like.shape)} on {like.device}, as tensors[0] is"
        )
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{caller}: out requires grad and no gradient flows through; pass one that does not"
        )
    if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise ValueError(
            f"{caller}: out has strides {out.stride()} for shape {list(out.shape)}, so several "
            "elements share one address; pass a tensor that is not expanded"
        )


def _check_dtype(caller: str, label: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        allowed = ", ".join(str(dtype) for dtype in FLOATS)
        raise TypeError(f"{caller}: {label} is {tensor.dtype}; pass one of {allowed}")


def _check_weight_tensor(
    caller: str, name: str, weights: Tensor, tensors: tuple[Tensor, ...]
) -> tuple[float, ...] | Tensor:
    rows, terms, device = tensors[0].shape[0], len(tensors), tensors[0].device
    if weights.dtype is torch.bool or weights.is_complex():
        raise TypeError(f"{caller}: {name} is {weights.dtype}; pass real numbers")
    if weights.shape not in ((terms,), (rows, terms)):
        raise ValueError(
            f"{caller}: {name} has shape {list(weights.shape)}; for {terms} tensors of {rows} rows "
            f"pass [{terms}] or [{rows}, {terms}]"
        )
    if weights.device != device and weights.device.type != "cpu":
        raise ValueError(
            f"{caller}: {name} is on {weights.device} and the tensors on {device}; "
            f"move {name} to {device} or to the cpu"
        )
    weights = weights.detach()
    if weights.device.type != "cpu":
        return weights.expand(rows, terms)
    if weights.ndim == 1:
        return tuple(map(float, weights.tolist()))
    # Rows that agree take the cheaper scalar path; it is what a batch of one always does.
    table = weights.tolist()
    if table and table.count(table[0]) == rows:
        return tuple(map(float, table[0]))
    return sent(weights, device)
