"""One pass over the latest latents: how far apart they are, per sample."""

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .backend import uses_triton
from .operands import check_tensors, check_weights
from .transfer import sent

MAX_TENSORS = 4


class LatentDifference(NamedTuple):
    """Sums over one sample's elements; every field is fp32 [B], in the tensors' units or squared.

    Attributes:
        abs_difference: sum of |D|, with D = sum_k c[b, k] H_k; None with `absolute=False`.
        abs_reference: sum of |H_0|; None with `absolute=False`.
        sq_difference: sum of D squared.
        sq_reference: sum of H_0 squared.
        abs_step: sum of |H_0 - H_1|; zero for K = 1. This and the fields below are None without
            `steps=True`.
        sq_step: sum of (H_0 - H_1) squared; zero for K = 1.
        sq_previous_step: sum of (H_1 - H_2) squared; zero for K < 3.
        direction: inner product of H_0 - H_1 and H_1 - H_2; zero for K < 3.
    """

    abs_difference: Tensor | None
    abs_reference: Tensor | None
    sq_difference: Tensor
    sq_reference: Tensor
    abs_step: Tensor | None = None
    sq_step: Tensor | None = None
    sq_previous_step: Tensor | None = None
    direction: Tensor | None = None


def latent_difference(
    tensors: Sequence[Tensor],
    coefficients: Tensor | Sequence[float],
    *,
    steps: bool = False,
    absolute: bool = True,
) -> LatentDifference:
    """Norms of a linear combination of the latest K latents, and of their steps, per sample.

    With latents of successive sampling steps and `coefficients=(1, -3, 3, -1)`,
    `abs_difference / abs_step` is the third-order statistic by which AdaptiveDiffusion (NeurIPS
    2024, arXiv 2410.09873) decides whether the next noise prediction may be reused.

    Sums accumulate in fp32 in an order fixed by shape and strides, so the same input gives the
    same bits. The arithmetic is plain: an infinity or NaN reaches every sum of its own sample that
    it enters, through a zero coefficient as well. No gradient flows through.

    On CUDA with triton installed this is a single launch that writes nothing of the tensors' size;
    elsewhere it is a handful of torch calls with temporaries.

    Args:
        tensors: H_0 to H_{K-1}, newest first, 1 to 4 of one shape [B, ...] and one device; fp32,
            fp16, bf16 or fp64 and any strides, both free to differ between them.
        coefficients: c as a tensor [K] or [B, K] or K numbers, used as fp32; a tensor on the CPU
            will do for latents on any device.
        steps: also fill the fields about steps, for a little more work.
        absolute: false leaves out the sums of |D| and |H_0|, half the work without triton.

    Returns:
        LatentDifference: sums of zero where the samples have no elements.

    Raises:
        TypeError: a dtype, or an argument's type, other than the above.
        ValueError: a count, shape or device other than the above.
    """
    tensors = check_tensors("latent_difference", tensors, MAX_TENSORS)
    coefficients = check_weights("latent_difference", "coefficients", coefficients, tensors)
    if uses_triton(tensors[0].device):
        from .difference_triton import launch_difference

        found = LatentDifference(*launch_difference(tensors, coefficients, steps).unbind(0))
        return found if absolute else found._replace(abs_difference=None, abs_reference=None)
    return difference_torch(tensors, coefficients, steps, absolute)


def forecast_error(
    value: Tensor,
    anchors: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    *,
    absolute: bool = False,
) -> Tensor:
    """Squared norms of D = V - sum_k w[b, k] A_k and of V, per sample: [2, B], fp32 or fp64.

    With A_k what a value V is forecast from, the first is how far the forecast is off. A cache
    asks this at every step that it computes, so operands are taken unchecked: one shape [B, ...]
    and device, and w as K numbers or as a tensor [B, K], which may be on the CPU. The sums are
    `sq_difference` and `sq_reference` of `latent_difference`; where `absolute`, they are
    `abs_difference` and `abs_reference`.
    """
    if uses_triton(value.device):
        from .difference_triton import launch_difference

        coefficients = _against(weights, value.device)
        sums = launch_difference((value, *anchors), coefficients, steps=False)
        return sums[:2] if absolute else sums[2:4]
    off = truth = value if value.dtype is torch.float32 else value.float()
    if isinstance(weights, Tensor):
        off = _combined(truth, anchors, _against(weights, value.device))
    else:
        for anchor, weight in zip(anchors, weights, strict=True):
            off = off.sub(anchor, alpha=weight)
    # Both at once: after a denoiser's call a torch call costs more than such a copy, because
    # its own code is no longer in the processor's cache. For the same reason nothing else is called
    # that need not be.
    both = torch.cat((off, truth)).reshape(2, truth.shape[0], -1)
    return _absolute(both) if absolute else _squared(both)


def _against(weights: Sequence[float] | Tensor, device: torch.device) -> tuple[float, ...] | Tensor:
    """Coefficients of a value and its anchors in how far the value's forecast is off."""
    if isinstance(weights, Tensor):
        return sent(torch.cat((weights.new_ones(len(weights), 1), -weights), 1), device)
    return (1.0, *map(operator.neg, weights))


def difference_torch(
    tensors: tuple[Tensor, ...],
    coefficients: tuple[float, ...] | Tensor,
    steps: bool,
    absolute: bool,
) -> LatentDifference:
    """Torch twin of the kernel, for checked operands; what runs on CPU."""
    shape = (tensors[0].shape[0], math.prod(tensors[0].shape[1:]))
    newest = tensors[0].float()
    difference = _combined(newest, tensors[1:], coefficients).reshape(shape)
    reference = newest.reshape(shape)
    sums = LatentDifference(
        _absolute(difference) if absolute else None,
        _absolute(reference) if absolute else None,
        _squared(difference),
        _squared(reference),
    )
    if not steps:
        return sums
    zero = torch.zeros_like(sums.sq_reference)
    older = [tensor.float().reshape(shape) for tensor in tensors[1:3]]
    step = reference - older[0] if older else None
    previous = older[0] - older[1] if len(older) > 1 else None
    return sums._replace(
        abs_step=zero if step is None else _absolute(step),
        sq_step=zero if step is None else _squared(step),
        sq_previous_step=zero if previous is None else _squared(previous),
        direction=zero if previous is None else torch.linalg.vecdot(step, previous),
    )


def _combined(
    newest: Tensor, older: Sequence[Tensor], coefficients: tuple[float, ...] | Tensor
) -> Tensor:
    """sum_k c[b, k] H_k in fp32."""
    if isinstance(coefficients, Tensor):
        columns = coefficients.float().reshape(*coefficients.shape, *[1] * (newest.ndim - 1))
        total = newest * columns[:, 0]
        for number, tensor in enumerate(older, start=1):
            total.addcmul_(tensor.float(), columns[:, number])
        return total
    total = newest * coefficients[0]
    for tensor, coefficient in zip(older, coefficients[1:], strict=True):
        total.add_(tensor, alpha=coefficient)
    return total


def _absolute(values: Tensor) -> Tensor:
    return values.abs().sum(-1)


def _squared(values: Tensor) -> Tensor:
    # What a model calls as well: code of its own would be cold, and leave the model's cold.
    return (values * values).sum(-1)
