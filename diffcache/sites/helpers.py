"""Modules that a pipeline calls before its denoiser in each step, for what they add to it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from diffcache.options import is_number
from diffcache.runtime.generation import Generation
from diffcache.runtime.promises import outline, promise
from diffcache.runtime.rows import leaves, tensor_leaves

from .discovery import helps_another, is_told_time, plain_module


def helpers(pipe: Any) -> list[nn.Module]:
    """The helpers among a pipeline's components, such as ControlNets.

    One that is not told the time, as a T2I-Adapter, is called once before the loop and is none.
    """
    return [module for module in pipe.components.values() if is_helper(module)]


def is_helper(module: Any) -> bool:
    """Whether `module` helps another one by name, from step to step."""
    if not isinstance(module, nn.Module):
        return False
    plain = plain_module(module)
    return helps_another(plain) and is_told_time(plain)


def on_demand(generation: Generation) -> Callable:
    """A gate handler by which a helper runs when a denoiser that computes is given its output.

    The first call of each kind runs at once, which shows what the output looks like. The others
    return promises: where every row of the denoiser is skipped, nobody asks for their values.
    """
    seen: dict[Hashable, tuple[Any, torch.device]] = {}

    def serve(plain: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        # A gradient would have to flow through the promise.
        if generation.broken or torch.is_grad_enabled():
            return plain(*args, **kwargs)
        kind = _kind(args, kwargs)
        if kind in seen:
            return promise(plain, args, kwargs, *seen[kind])
        output = plain(*args, **kwargs)
        if found := tensor_leaves(output):
            seen[kind] = outline(output), found[0].device
        return output

    return serve


def _kind(args: tuple, kwargs: dict[str, Any]) -> Hashable:
    """What shapes the output: the shapes given and all settings but numbers, such as scales."""
    return (*kwargs, *map(_shaping, leaves((args, kwargs))))


def _shaping(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf if isinstance(leaf, Hashable) and not is_number(leaf) else type(leaf)
