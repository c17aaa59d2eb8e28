"""One pass over the latest latents: how far apart they are, per sample."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .backend import uses_triton
from .operands import check_tensors, check_weights

MAX_TENSORS = 4


class LatentDifference(NamedTuple):
    """Sums over one sample's elements; every field is fp32 [B], in the tensors' units or squared.

    Attributes:
        abs_difference: sum of |D|, with D = sum_k c[b, k] H_k.
        abs_reference: sum of |H_0|.
        sq_difference: sum of D squared.
        sq_reference: sum of H_0 squared.
        abs_step: sum of |H_0 - H_1|; zero for K = 1. This and the fields below are None without
            `steps=True`.
        sq_step: sum of (H_0 - H_1) squared; zero for K = 1.
        sq_previous_step: sum of (H_1 - H_2) squared; zero for K < 3.
        direction: inner product of H_0 - H_1 and H_1 - H_2; zero for K < 3.
    """

    abs_difference: Tensor
    abs_reference: Tensor
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
            fp16 or bf16 and any strides, both free to differ between them.
        coefficients: c as a tensor [K] or [B, K] or K numbers, used as fp32; a tensor on the CPU
            will do for latents on any device.
        steps: also fill the fields about steps, for a little more work.

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

        return LatentDifference(*launch_difference(tensors, coefficients, steps).unbind(0))
    return difference_torch(tensors, coefficients, steps)


def difference_torch(
    tensors: tuple[Tensor, ...], coefficients: tuple[float, ...] | Tensor, steps: bool
) -> LatentDifference:
    """Torch twin of the kernel, for checked operands; what runs on CPU."""
    first = tensors[0]
    rows, terms = first.shape[0], len(tensors)
    elements = math.prod(first.shape[1:])
    tensors = [t if t.dtype is torch.float32 else t.float() for t in tensors]

    # One contiguous buffer takes all elementwise results, whatever the strides of the inputs, so
    # that each kind of sum below is a single call over several of its planes.
    count = 5 if steps else 2
    planes = torch.empty((count, *first.shape), dtype=torch.float32, device=first.device)
    difference, reference, *step_planes = planes.unbind(0)
    if isinstance(coefficients, Tensor):
        shape = (terms, rows) + (1,) * (first.ndim - 1)
        columns = coefficients.float().t().reshape(shape).unbind(0)
        torch.mul(tensors[0], columns[0], out=difference)
        for tensor, column in zip(tensors[1:], columns[1:], strict=True):
            difference.addcmul_(tensor, column)
    else:
        torch.mul(tensors[0], coefficients[0], out=difference)
        for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
            difference.add_(tensor, alpha=coefficient)
    torch.abs(tensors[0], out=reference)
    difference.abs_()

    flat = planes.view(count, rows, elements)
    if not steps:
        absolute = flat.sum(-1).unbind(0)
        return LatentDifference(*absolute, *flat.mul_(flat).sum(-1).unbind(0))

    step, previous_step, product = step_planes
    if terms > 1:
        torch.sub(tensors[0], tensors[1], out=step)
    else:
        step.zero_()
    if terms > 2:
        torch.sub(tensors[1], tensors[2], out=previous_step)
        torch.mul(step, previous_step, out=product)
    else:
        previous_step.zero_()
        product.zero_()
    step.abs_()
    abs_difference, abs_reference, abs_step = flat[:3].sum(-1).unbind(0)
    direction = flat[4].sum(-1)
    squares = flat[:4]
    sq_difference, sq_reference, sq_step, sq_previous = squares.mul_(squares).sum(-1).unbind(0)
    return LatentDifference(
        abs_difference,
        abs_reference,
        sq_difference,
        sq_reference,
        abs_step,
        sq_step,
        sq_previous,
        direction,
    )
