"""What tells the arguments of one denoiser call from those of another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .runtime.rows import leaves

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SIMPLE = (bool, int, float, str, type(None))


def fingerprint(call: Any) -> list[Any] | None:
    """What tells a call's arguments from others; None where there is one that cannot be told.

    Tensors are told by a checksum, as whole ones would take as much memory as the outputs.
    """
    found: list[Any] = []
    for leaf in leaves(call):
        if isinstance(leaf, Tensor):
            if type(leaf) not in (Tensor, nn.Parameter) or leaf.layout != torch.strided:
                return None
            found += [leaf.shape, leaf.dtype, leaf.device, _checksum(leaf.detach())]
        elif has_state(leaf):
            return None
        else:
            found.append(leaf if isinstance(leaf, _SIMPLE) else type(leaf))
    return [list(call[1]), *found]


def has_state(leaf: Any) -> bool:
    """Whether it is an object that a call may fill and later ones read, as a cache of keys."""
    return hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor)


def _checksum(tensor: Tensor) -> Tensor:
    """A sum of the bits of `tensor` that depends on their places, on its device.

    Sums of integers are the same in any order, as those of floats are not.
    """
    whole = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    words = whole.contiguous().reshape(-1).view(_WORDS[whole.element_size()])
    # An odd multiplier and shifts make the factors of neighbours unlike each other (splitmix64).
    factors = torch.arange(1, len(words) + 1, device=words.device) * -7046029254386353131
    factors = (factors ^ (factors >> 30)) * -4658895280553007687
    return ((factors ^ (factors >> 27)) * words).sum()
