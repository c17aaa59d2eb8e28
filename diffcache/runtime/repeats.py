"""Scheduler steps that are made several times at a timestep, with no denoiser call in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

from torch import Tensor

from .reading import on_host
from .timetable import Timetable


class Repeats:
    """Tells a step that is made once more from the next one.

    Cosmos 1 has its scheduler predict the clean sample of each branch, and then makes the step; of
    as many at each timestep as at the first, the last one counts.

    Attributes:
        ahead: how many steps at the current timestep come before the one that counts.
    """

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self.ahead = self._more = 0
        self._timestep: Any = None
        self._sample: Callable[[], Tensor | None] = _nothing
        self._prediction: Callable[[], Tensor | None] = _nothing

    def took(self, arguments: dict[str, Any], first: bool) -> None:
        """Takes in a step that counts, made with these `arguments`."""
        # Who repeats a later step has what it was made with at hand.
        hold = _strong if first else ref
        sample, prediction = arguments.get("sample"), arguments["model_output"]
        self._timestep = arguments.get("timestep")
        self._sample = hold(sample) if isinstance(sample, Tensor) else _nothing
        self._prediction = hold(prediction)
        self.ahead = self._more

    def expect(self, more: bool) -> None:
        """Reckons with one more step at each timestep than before, or with no more than one."""
        self._more = self._more + 1 if more else 0
        self.ahead = 0

    def at_same(self, one: Any, other: Any) -> bool:
        """Whether two timesteps are there, and are one."""
        return one is not None and other is not None and self._timetable.same(one, other)

    def again(self, arguments: dict[str, Any]) -> bool:
        """Whether the last step is made once more, if no call has come since.

        Of another sample, as where those of a batch are stepped one by one, it is none.
        """
        if not self.at_same(self._timestep, arguments.get("timestep")):
            return False
        return _begins_with(self._sample(), arguments.get("sample"))

    def echo(self, arguments: dict[str, Any]) -> bool:
        """Whether it is made with the same prediction too, as to look at what comes of it."""
        if not self.again(arguments):
            return False
        return _begins_with(self._prediction(), arguments.get("model_output"))


def _strong(value: Tensor) -> Callable[[], Tensor]:
    return lambda: value


def _nothing() -> None:
    """What is known of a step before there is one."""


def _begins_with(value: Any, rows: Any) -> bool:
    """Whether `rows` are the first ones of `value`, which may be given twice."""
    if not (isinstance(value, Tensor) and isinstance(rows, Tensor)):
        return False
    first = value[: rows.shape[0]]
    alike = first.shape == rows.shape and first.device == rows.device
    return alike and bool(on_host((first == rows).all()))
