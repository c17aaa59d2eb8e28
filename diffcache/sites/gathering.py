"""Parts of a denoiser called with some rows of a batch, while their parent sees all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffcache.runtime.rows import along, merge, rows_first, take

from .recording import Described


def call_rows(plain: Callable, args: tuple, kwargs: dict, rows: int, index: Tensor) -> Any:
    """The output of `plain` for the rows in `index` alone."""
    args, kwargs = take((args, kwargs), rows, index)
    return plain(*args, **kwargs)


def scattered(
    described: Described, plain: Callable, args: tuple, kwargs: dict, rows: int, index: Tensor
) -> list[Tensor]:
    """The output's tensors in full shape, with placeholders in the rows that are not in `index`."""
    computed = described.tensors_of(call_rows(plain, args, kwargs, rows, index))
    whole = described.blank()
    for part, held in zip(computed, whole, strict=True):
        merge(rows_first(part, len(index)), rows_first(held, rows), index)
    return whole


def bridged(
    mask: list[bool], computed: Sequence[Tensor], forecast: Sequence[Tensor]
) -> list[Tensor]:
    """`computed` in the rows of `mask` and `forecast` elsewhere; never by arithmetic with both."""
    return [
        torch.where(along(mask, real), real, guess.reshape(real.shape))
        for real, guess in zip(computed, forecast, strict=True)
    ]
