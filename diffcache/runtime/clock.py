"""Observes a scheduler instance: its steps and when its timesteps are set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .disguise import base_of, disguised
from .generation import current
from .names import Names
from .rows import tensor_leaves


class Listener(Protocol):
    """What is told of a scheduler's doings: a `Generation`, or whoever keeps them."""

    def timesteps_set(self, scheduler: Any, kind: str) -> None: ...

    def scheduler_steps(self, scheduler: Any, arguments: dict[str, Any]) -> dict[str, Any]: ...

    def scheduler_stepped(
        self, scheduler: Any, kind: str, arguments: dict[str, Any], latents: Any
    ) -> None: ...


class Loop:
    """Tells by the times of its denoiser calls when a loop begins again, without being told so.

    Time falls along most loops and rises along others, which invert or whose denoiser counts the
    other way. It begins again where it is back at the first time, or turns.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._last: float | None = None
        self._rises: bool | None = None

    def begins_again(self, time: float) -> bool:
        """Takes in the time of the next call, which may be that of the call before."""
        last, self._last = self._last, time
        if last is None or time == last:
            self._first = time if last is None else self._first
            return False
        rises, before = time > last, self._rises
        if time == self._first or before not in (None, rises):
            self._first, self._rises = time, None
            return True
        self._rises = rises
        return False


_residents: WeakKeyDictionary[Any, Listener] = WeakKeyDictionary()
_watchers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def watch(scheduler: Any, resident: Listener | None = None) -> None:
    """Starts observing `scheduler`; calls nest.

    The running generation is told; outside of any, `resident` is.
    """
    _watchers[scheduler] = _watchers.get(scheduler, 0) + 1
    scheduler.__class__ = disguised(base_of(scheduler), _observing)
    if resident is not None:
        _residents[scheduler] = resident


def unwatch(scheduler: Any) -> None:
    """Takes back one `watch`; the last one leaves the plain scheduler."""
    _watchers[scheduler] -= 1
    if not _watchers[scheduler]:
        del _watchers[scheduler]
        _residents.pop(scheduler, None)
        scheduler.__class__ = base_of(scheduler)


def _listener(scheduler: Any) -> Listener | None:
    return current.get() or _residents.get(scheduler)


@functools.cache
def _names(base: type) -> Names:
    return Names(base.step)


def _observing(base: type) -> dict[str, Callable]:
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)
        if (generation := _listener(self)) is not None:
            generation.timesteps_set(self, base.__name__)
        return result

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        generation = _listener(self)
        if generation is None:
            return base.step(self, *args, **kwargs)
        arguments = _names(base)((self, *args), kwargs)
        if corrected := generation.scheduler_steps(self, arguments):
            result = base.step(**(arguments | corrected))
        else:
            result = base.step(self, *args, **kwargs)
        if latents := tensor_leaves(result):
            generation.scheduler_stepped(self, base.__name__, arguments, latents[0])
        return result

    return {"set_timesteps": set_timesteps, "step": step}
