"""Tensors that are computed when, and only if, somebody needs their values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from .rows import leaves, map_leaves


class Promise(Tensor):
    """A leaf of the output of a call that has not been made yet, with its shape, dtype and device.

    An operation on a promise gives a promise too, unless it needs the values, writes in place or
    draws random numbers: then the call is made there and then. Plain tensors that the call was
    given must not be written to in between: a pipeline replaces its latents in the scheduler's
    step, and a denoiser that computes has asked for what was promised before that.
    """

    call: _Call
    place: int

    @staticmethod
    def __new__(cls, call: _Call, place: int, like: Tensor, device: torch.device) -> Promise:
        return Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )

    def __init__(self, call: _Call, place: int, like: Tensor, device: torch.device) -> None:
        self.call, self.place = call, place

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _may_wait(function, args, kwargs):
            try:
                return promise(function, args, kwargs, *_foreseen(function, args, kwargs))
            except RuntimeError:
                # What an output looks like, or what it is, depends on values.
                pass
        args, kwargs = kept((args, kwargs))
        return function(*args, **kwargs)


# Those that may still be asked for: where there are none, no call needs to be searched for any.
_calls: WeakSet[_Call] = WeakSet()


class _Call:
    """A call that is made once, when its output is first asked for."""

    def __init__(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        # Containers may be refilled, or popped from, before the call is made.
        self._pending: Any = function, *map_leaves((args, kwargs), lambda leaf: leaf)
        self._values: list[Any] = []
        self._heirs: WeakSet[_Call] = WeakSet()
        _calls.add(self)
        for source in _promises((args, kwargs)):
            source.call._heirs.add(self)

    @property
    def made(self) -> bool:
        return self._pending is None

    def values(self) -> list[Any]:
        """The leaves of the output."""
        if not self.made:
            function, args, kwargs = self._pending
            args, kwargs = kept((args, kwargs))
            self._values, self._pending = leaves(function(*args, **kwargs)), None
            # Whoever has the values may write to them, which no heir is to see.
            for heir in list(self._heirs):
                heir.values()
        return self._values


def promise(
    function: Callable, args: tuple, kwargs: dict[str, Any], like: Any, device: torch.device
) -> Any:
    """What `function(*args, **kwargs)` would return, its tensors being promises on `device`.

    `like` is an output of the same structure, shapes and dtypes; see `outline`.
    """
    call, places = _Call(function, args, kwargs), count()

    def promised(leaf: Any) -> Any:
        place = next(places)
        return Promise(call, place, leaf, device) if isinstance(leaf, Tensor) else leaf

    return map_leaves(like, promised)


def kept(tree: Any) -> Any:
    """`tree` with the values of the promises in it; the same object where there are none."""
    if not (_calls and _promises(tree)):
        return tree
    return map_leaves(
        tree, lambda leaf: leaf.call.values()[leaf.place] if isinstance(leaf, Promise) else leaf
    )


def outline(tree: Any) -> Any:
    """`tree` with tensors that have shapes, strides and dtypes but no values."""
    return map_leaves(tree, lambda leaf: _empty(leaf) if isinstance(leaf, Tensor) else leaf)


def _empty(leaf: Tensor) -> Tensor:
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")


def _promises(tree: Any) -> list[Promise]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Promise)]


def _may_wait(function: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether an operation gives the same later."""
    if function._schema.is_mutable or torch.Tag.nondeterministic_seeded in function.tags:
        return False
    return not any(source.call.made for source in _promises((args, kwargs)))


def _foreseen(function: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, torch.device]:
    """The outline of an operation's output, and the device that it will be on."""
    first = _promises((args, kwargs))[0]
    args, kwargs = outline((args, kwargs))
    device = kwargs.get("device")
    if device is not None:
        kwargs["device"] = "meta"
    return function(*args, **kwargs), torch.device(first.device if device is None else device)
