"""The steps of one run: where each lies in the scheduler's timetable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import inf, nan
from typing import Any

from torch import Tensor

from diffcache.policies import Grid, Step

from .guards import Guards
from .history import Anchor
from .reading import number, on_host
from .report import Event, Outcome
from .schedulers import (
    coordinates,
    course,
    ends_clean,
    is_flow,
    noise,
    out_of_1000,
    reach,
    timesteps_of,
    weights,
)


class Timetable:
    """A scheduler's timesteps, and which of them is which step of the run.

    Attributes:
        timesteps: all of the scheduler's.
        scaled: of each, the same as most schedulers count, from 1000 to 0.
        coordinates: of each, the coordinate of its noise.
        weights: of each, how much an error at it weighs.
        begin: the place of the run's first step; not 0 for img2img.
        course: what all of them do to the sample, where that is known.
        opening: what the denoiser was first called at, in its own terms; None before.
        earlier: steps that the call made in other runs before.
        total: steps of the run; None before its first step was seen.
        rows: denoiser rows that the run's first step had, a sample; 0 before.
    """

    def __init__(self, scheduler: Any, earlier: int = 0) -> None:
        self.earlier = earlier
        self.timesteps = timesteps_of(scheduler)
        self.scaled = out_of_1000(scheduler, self.timesteps)
        self._source = getattr(scheduler, "timesteps", None)
        self._address = _address(self._source, len(self.timesteps))
        levels, flow = noise(scheduler, self.timesteps), is_flow(scheduler)
        self.coordinates = coordinates(levels, flow)
        reached = reach(scheduler, self.timesteps, levels)
        self.weights = weights(levels, flow, ends_clean(scheduler), reached)
        self.course = course(scheduler, self.coordinates, levels, flow)
        self.begin = 0
        self.opening: Tensor | float | None = None
        self.total: int | None = None
        self._grid: Grid | None = None
        self.rows, self._share = 0.0, 1.0
        self._steps: list[tuple[Anchor, Step]] = []

    def locate(
        self, timestep: Any, total: int | None, guards: Guards, scheduler: Any = None
    ) -> None:
        """Settles where in the timetable the run begins and how long it is.

        Args:
            timestep: what the scheduler was first stepped with. The denoiser's own timestep would
                not do: pipelines scale and reverse it, and some give one a token.
            total: the pipeline's own count of steps, if it keeps one.
            guards: what may not be skipped.
            scheduler: what was stepped, which may count its steps.
        """
        if timestep is not None and self.timesteps:
            self.begin = self._nearest(timestep, getattr(scheduler, "step_index", None))
        left = len(self.timesteps) - self.begin
        # What makes a video chunk by chunk counts the steps of all, of which each has a timetable.
        self.total = min(total or left, left) if left > 0 else total or 0
        places = [self._place(index) for index in range(self.total)]
        self._grid = _grid(
            tuple(self.coordinates[place] for place in places),
            tuple(self.weights[place] for place in places),
            tuple(guards.protects(index, self.total) for index in range(self.total)),
            inf if guards.max_consecutive_skips is None else guards.max_consecutive_skips,
        )
        self._steps = list(map(self._at, range(self.total)))

    def _nearest(self, timestep: Tensor | float, made: int | None) -> int:
        """The place of a timestep, after which the scheduler counts `made` steps if it counts."""
        place = self._entry(timestep)
        if place is not None:
            return place
        first = self.read(timestep)
        distance = [abs(t - first) for t in self.timesteps]
        nearest = min(distance)
        # Heun and PNDM have timesteps twice, and image to image may begin at the second one.
        if made and made <= len(distance) and distance[made - 1] == nearest:
            return made - 1
        return distance.index(nearest)

    def read(self, timestep: Tensor | float) -> float:
        """A timestep on the host; the device is not asked for an entry of the scheduler's own."""
        place = self._entry(timestep)
        if place is not None:
            return self.timesteps[place]
        return number(timestep) if isinstance(timestep, Tensor) else float(timestep)

    def opens(self, timestep: Tensor | float | None) -> bool:
        """Whether a call at `timestep`, before any step, is one of the first step's."""
        if self.opening is None:
            self.opening = timestep
            return True
        return timestep is not None and self.same(self.opening, timestep)

    def same(self, one: Tensor | float, other: Tensor | float) -> bool:
        """Whether two timesteps are equal, for which the device is asked once at most."""
        known = None not in (self._entry(one), self._entry(other))
        if known or not (isinstance(one, Tensor) and isinstance(other, Tensor)):
            return self.read(one) == self.read(other)
        return bool(on_host(one == other))

    def elsewhere(self, timestep: Tensor | float, index: int) -> bool:
        """Whether a timestep is surely not that of step number `index`; no device is asked."""
        place = self._entry(timestep)
        return place is not None and self.timesteps[place] != self.timestep(index)

    def _entry(self, timestep: Tensor | float) -> int | None:
        """Which entry of the scheduler's own tensor a timestep is a view of."""
        if self._address is None or not isinstance(timestep, Tensor):
            return None
        # What pipelines and loops hand on are mostly views of the table itself.
        place, rest = divmod(timestep.data_ptr() - self._address, timestep.element_size())
        if rest or not 0 <= place < len(self.timesteps):
            return None
        alike = timestep.device == self._source.device and timestep.dtype == self._source.dtype
        return place if alike else None

    def at(self, index: int) -> tuple[Anchor, Step]:
        """When step number `index` is made, and what policies are told of it."""
        now, step = self._steps[index] if index < len(self._steps) else self._at(index)
        return now, step if self._share == 1.0 else replace(step, rows=self._share)

    def counts_anew(self, rows: float) -> bool:
        """Takes in how many denoiser rows a sample had; whether those of steps change with it."""
        known, self.rows = self._share, self.rows or rows
        if rows:
            self._share = rows / self.rows
        return self._share != known

    def trace(self, outcomes: Sequence[Outcome]) -> list[Event]:
        """What happened at each step, which are numbered on from those of earlier runs."""
        return [
            Event.of(self.earlier + index, self.timestep(index), *outcome)
            for index, outcome in enumerate(outcomes)
        ]

    def _at(self, index: int) -> tuple[Anchor, Step]:
        place = self._place(index)
        timestep = self.scaled[place] if self.scaled else nan
        step = Step(index, self.total, self.weights[place], timestep, self._grid, self.earlier)
        return Anchor(self.coordinates[place], index), step

    def shortfall(self, made: int) -> str | None:
        """What to say of a run that ended after so many steps, if it was taken to have more."""
        if self.total is None or made >= self.total:
            return None
        return (
            f"a run taken to be of {self.total} steps ended after {made}; what counts them, as "
            "compute= and protect= do, counted on all"
        )

    def timestep(self, index: int) -> float:
        """The scheduler's own timestep at step number `index`; NaN if it has none."""
        return self.timesteps[self._place(index)] if self.timesteps else nan

    def _place(self, index: int) -> int:
        # A loop longer than its timetable stays at its end.
        return min(self.begin + index, len(self.timesteps) - 1)


# Plans are kept by the grid itself, which is asked for at each step.
_grid = lru_cache(maxsize=64)(Grid)


def _address(source: Any, steps: int) -> int | None:
    """Where `steps` timesteps begin in memory; None if they do not lie there one by one."""
    whole = isinstance(source, Tensor) and source.numel() == steps and source.is_contiguous()
    return source.data_ptr() if whole else None


def number_of(timestep: Tensor | float | None, timetable: Timetable | None) -> float | None:
    """A timestep on the host, which `timetable` may know without asking the device."""
    if not isinstance(timestep, Tensor):
        return timestep
    if timestep.is_cpu:
        return timestep.item()
    return number(timestep) if timetable is None else timetable.read(timestep)
