"""Batch rows inside the arguments and outputs of a denoiser call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def map_leaves(tree: Any, change: Callable[[Any], Any]) -> Any:
    """`tree` with every leaf changed; dicts, model outputs, lists and tuples keep their type."""
    if isinstance(tree, dict):
        return _like(tree, {k: map_leaves(v, change) for k, v in tree.items()})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(v, change) for v in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_leaves(v, change) for v in tree)
    return change(tree)


def leaves(tree: Any) -> list[Any]:
    """The leaves of `tree` in order."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def tensor_leaves(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of `tree`."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def blocks_of(leaf: Tensor, rows: int, width: int = 1) -> int:
    """How many entries of the leaf's first axis belong to a row; 0 where it has no batch axis.

    Longer first axes (AnimateDiff's text has a row a frame) only count from three axes on: position
    ids `[tokens, 3]` are longer than the batch by accident. `width` entries a row (a video block's
    time embedding `[frames * rows, channels]`) count in any case.
    """
    if leaf.ndim == 0 or leaf.shape[0] == 0 or leaf.shape[0] % rows:
        return 0
    blocks = leaf.shape[0] // rows
    return blocks if blocks in (1, width) or leaf.ndim >= 3 else 0


def _like(tree: dict, items: dict) -> dict:
    """`items` as what `tree` is: a plain dict, or a diffusers output built by its fields."""
    return items if type(tree) is dict else type(tree)(**items)


def take(tree: Any, rows: int, index: Tensor, width: int = 1) -> Any:
    """`tree` restricted to the rows in `index`, wherever a leaf or a list has `rows` rows.

    `width` is as in `blocks_of`.
    """

    def batched(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and blocks_of(leaf, rows, width) > 0

    def pick(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not (blocks := blocks_of(leaf, rows, width)):
            return leaf
        where = index.to(leaf.device)
        if blocks == 1:
            return leaf[where]
        return leaf.unflatten(0, (rows, blocks))[where].flatten(0, 1)

    if isinstance(tree, dict):
        return _like(tree, {k: take(v, rows, index, width) for k, v in tree.items()})
    if isinstance(tree, list) and len(tree) == rows and not any(map(batched, tree)):
        return [tree[i] for i in index.tolist()]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(take(v, rows, index, width) for v in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(take(v, rows, index, width) for v in tree)
    return pick(tree)


def samples_to_rows(values: list[bool], rows: int) -> list[bool]:
    """Per-sample `values` as per-row values: row r is sample r mod samples."""
    return values if len(values) == rows else values * (rows // len(values))


def merge(computed: Tensor, forecast: Tensor, index: Tensor) -> Tensor:
    """`forecast` with the rows in `index` replaced by `computed`, written in place."""
    forecast[index.to(forecast.device)] = computed.to(forecast.dtype)
    return forecast


def as_index(mask: list[bool]) -> Tensor:
    """Row numbers where `mask` is True."""
    return torch.tensor([row for row, computed in enumerate(mask) if computed])
