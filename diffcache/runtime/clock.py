"""Observes a scheduler instance: its steps and when its timesteps are set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import RLock
from typing import Any, NamedTuple, Protocol
from weakref import ref

from .disguise import base_of, disguised
from .generation import current
from .names import Names
from .rows import tensor_leaves


class Listener(Protocol):
    """What is told of a scheduler's doings: a `Generation`, or a `Resident`."""

    def timesteps_set(self, scheduler: Any, kind: str) -> None: ...

    def scheduler_steps(self, scheduler: Any, arguments: dict[str, Any]) -> dict[str, Any]: ...

    def scheduler_stepped(
        self, scheduler: Any, kind: str, arguments: dict[str, Any], latents: Any
    ) -> None: ...


class Resident(Listener, Protocol):
    """Who keeps the generations of a denoiser that no pipeline calls."""

    @property
    def serving(self) -> bool: ...

    def passed_over(self) -> None: ...


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


class _Watched(NamedTuple):
    """A scheduler that is observed, with an entry for each `watch`, which may be None."""

    scheduler: ref
    watching: list[Resident | None]


# By identity, as a scheduler may compare by value.
_watched: dict[int, _Watched] = {}
_lock = RLock()


def watch(scheduler: Any, resident: Resident | None = None) -> None:
    """Starts observing `scheduler`; calls nest.

    The running generation is told; outside of any, all residents are.
    """
    identity = id(scheduler)
    with _lock:
        if identity not in _watched:
            gone = ref(scheduler, lambda _: _watched.pop(identity, None))
            _watched[identity] = _Watched(gone, [])
        _watched[identity].watching.append(resident)
        scheduler.__class__ = disguised(base_of(scheduler), _observing)


def unwatch(scheduler: Any, resident: Resident | None = None) -> None:
    """Takes back one `watch`; the last one leaves the plain scheduler."""
    with _lock:
        watching = _watched[id(scheduler)].watching
        watching.remove(resident)
        if not watching:
            del _watched[id(scheduler)]
            scheduler.__class__ = base_of(scheduler)


def _residents(scheduler: Any) -> list[Resident]:
    known = _watched.get(id(scheduler))
    return [] if known is None else [each for each in known.watching if each is not None]


@functools.cache
def _names(base: type) -> Names:
    return Names(base.step)


def _observing(base: type) -> dict[str, Callable]:
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = base.set_timesteps(self, *args, **kwargs)
        generation = current.get()
        listeners = _residents(self) if generation is None else [generation]
        for each in listeners:
            each.timesteps_set(self, base.__name__)
        return result

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        generation = current.get()
        listeners, others = ([generation], []) if generation is not None else _told(self)
        if not listeners:
            return base.step(self, *args, **kwargs)
        arguments = _names(base)((self, *args), kwargs)
        corrected: dict[str, Any] = {}
        for each in listeners:
            corrected = corrected or each.scheduler_steps(self, arguments)
        if corrected:
            result = base.step(**(arguments | corrected))
        else:
            result = base.step(self, *args, **kwargs)
        if latents := tensor_leaves(result):
            for each in listeners:
                each.scheduler_stepped(self, base.__name__, arguments, latents[0])
            for each in others:
                each.passed_over()
        return result

    return {"set_timesteps": set_timesteps, "step": step}


def _told(scheduler: Any) -> tuple[list[Resident], list[Resident]]:
    """The residents whose step it is, and those who are passed over.

    Where several denoisers take turns, a step is of those that were called for it.
    """
    residents = _residents(scheduler)
    if len(residents) == 1:
        return residents, []
    serving = [each for each in residents if each.serving]
    if not serving:
        return residents, []
    return serving, [each for each in residents if each not in serving]
