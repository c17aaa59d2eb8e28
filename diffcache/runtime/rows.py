"""Batch rows inside the arguments and outputs of a denoiser call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from diffcache.kernels.transfer import sent


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
    found: list[Any] = []
    _gather(tree if type(tree) in (list, tuple) else (tree,), found)
    return found


def _gather(values: Iterable[Any], found: list[Any]) -> None:
    # A call for each container, not for each leaf, and the usual leaf first: this is asked of all
    # arguments of every denoiser call.
    for value in values:
        if type(value) is Tensor:
            found.append(value)
        elif isinstance(value, dict):
            _gather(value.values(), found)
        elif isinstance(value, (list, tuple)):
            _gather(value, found)
        else:
            found.append(value)


def tensor_leaves(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of `tree`."""
    # What most calls give is told without a search.
    if type(tree) is tuple and len(tree) == 1 and type(tree[0]) is Tensor:
        return [tree[0]]
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def joined(
    masks: Sequence[Sequence[bool]], decision: Sequence[bool] | None, samples: int
) -> list[bool]:
    """The mask of a step whose calls had these `masks`: as decided, or computed by any of them.

    A sample that every call computed against the decision, for want of a value, is computed.
    Without a decision or calls all are.
    """
    by_sample = zip(*masks, strict=True)
    if decision is not None:
        return [a or all(b) for a, b in zip(decision, by_sample, strict=True)]
    return [any(seen) for seen in by_sample] or [True] * samples


def blocks_of(leaf: Tensor, rows: int) -> int:
    """How many entries of the leaf's first axis belong to a row; 0 where it has no batch axis.

    Longer first axes (AnimateDiff's text has a row a frame) only count from three axes on: position
    ids `[tokens, 3]` are longer than the batch by accident.
    """
    if leaf.ndim == 0 or leaf.shape[0] == 0 or leaf.shape[0] % rows:
        return 0
    blocks = leaf.shape[0] // rows
    return blocks if blocks == 1 or leaf.ndim >= 3 else 0


def rows_first(leaf: Tensor, rows: int) -> Tensor:
    """`leaf` as `[rows, ...]`, also where a row has several entries of the first axis.

    Video models fold frames, or tokens, into the batch of some blocks.
    """
    blocks = blocks_of(leaf, rows)
    return leaf.unflatten(0, (rows, blocks)) if blocks > 1 else leaf


def by_rows(output: Any, listed: bool) -> list[Tensor]:
    """The tensors of `output`, the batch first; an output that is `listed` by rows is stacked."""
    found = tensor_leaves(output)
    alike = listed and bool(found) and all(leaf.shape == found[0].shape for leaf in found)
    return [torch.stack(found)] if alike else found


def _like(tree: dict, items: dict) -> dict:
    """`items` as what `tree` is: a dict, a diffusers output built by its fields, or another."""
    if type(tree) is dict:
        return items
    if is_dataclass(tree):
        return type(tree)(**items)
    twin = copy(tree)
    twin.update(items)
    return twin


def take(call: Any, rows: int, index: Tensor, listed: bool = False) -> Any:
    """`call` restricted to the rows in `index`, wherever a leaf or a list has `rows` rows.

    A leaf with several entries a row counts where it is as long as the call's main tensor, its
    first of three axes or more, or has an entry a row for each of one axis of that (AnimateDiff's
    text, for each frame); positions and rotations are of lengths that `rows` divides by accident.
    Where samples are `listed`, so is what belongs to them, whatever the lengths of its parts.
    """
    main = next((leaf for leaf in tensor_leaves(call) if leaf.ndim >= 3), None)
    folded = main is not None and main.shape[0] % rows == 0

    def batched(leaf: Any) -> bool:
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return False
        size = leaf.shape[0]
        alike = folded and leaf.ndim >= 3 and size % rows == 0 and size // rows in main.shape[1:]
        return size == rows or (folded and size == main.shape[0]) or alike

    def stacked(leaf: Any) -> bool:
        return not listed and batched(leaf) and leaf.shape[0] == rows

    return _take(call, rows, index, batched, stacked)


def _take(
    tree: Any,
    rows: int,
    index: Tensor,
    batched: Callable[[Any], bool],
    stacked: Callable[[Any], bool],
) -> Any:
    def deeper(part: Any) -> Any:
        return _take(part, rows, index, batched, stacked)

    if isinstance(tree, dict):
        return _like(tree, {k: deeper(v) for k, v in tree.items()})
    # Positions along each axis, whose lengths say nothing of rows.
    if isinstance(tree, list) and all(isinstance(x, Tensor) and x.ndim == 1 for x in tree):
        return tree
    # A list of as many batched tensors as there are rows is none of rows; nor is one of numbers,
    # which name blocks or sizes.
    if (
        isinstance(tree, list)
        and len(tree) == rows
        and not any(isinstance(leaf, (int, float)) or stacked(leaf) for leaf in tree)
    ):
        return [tree[i] for i in index.tolist()]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(deeper, tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(deeper, tree))
    if not batched(tree):
        return tree
    where = sent(index, tree.device)
    if tree.shape[0] == rows:
        return tree[where]
    return tree.unflatten(0, (rows, -1))[where].flatten(0, 1)


def samples_to_rows(values: list[bool], rows: int) -> list[bool]:
    """Per-sample `values` as per-row values: row r is sample r mod samples."""
    return values if len(values) == rows else values * (rows // len(values))


def merge(computed: Tensor, forecast: Tensor, index: Tensor) -> Tensor:
    """`forecast` with the rows in `index` replaced by `computed`, written in place."""
    forecast[sent(index, forecast.device)] = computed.to(forecast.dtype)
    return forecast


def along(mask: list[bool], like: Tensor) -> Tensor:
    """`mask` as a tensor that selects rows of `like`, whose rows may have several entries."""
    rows = torch.tensor(mask).repeat_interleave(like.shape[0] // len(mask))
    return sent(rows, like.device).reshape(-1, *[1] * (like.ndim - 1))


def as_index(mask: list[bool]) -> Tensor:
    """Row numbers where `mask` is True."""
    return torch.tensor([row for row, computed in enumerate(mask) if computed])


def sample_of(value: Any) -> tuple[Tensor | None, bool]:
    """The sample `[rows, ...]`, None if it is none, and whether it is given as a list of rows."""
    if isinstance(value, Tensor):
        return (value if value.ndim else None), False
    rows = value if isinstance(value, (list, tuple)) else []
    if rows and all(isinstance(row, Tensor) and row.shape == rows[0].shape for row in rows):
        return rows[0].expand(len(rows), *rows[0].shape), True
    return None, False
