"""Keeps how values change over full runs, for a calibration."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextvars import ContextVar
from weakref import WeakKeyDictionary

from torch import Tensor

from diffcache.policies import Statistics
from diffcache.policies.statistics import Curve

from .lanes import Lane

LAGS = 3

recording: ContextVar[Recorder | None] = ContextVar("diffcache_recorder", default=None)
"""Takes what the turns of this thread or task remember."""


class Recorder:
    """Compares each value with those of the last `LAGS` steps under the same key and lane.

    It holds `LAGS` values of each and nothing else of a tensor's size.

    Attributes:
        shapes: those of a sample's prediction, in the runs that were recorded.
        lengths: steps of these runs.
    """

    def __init__(self) -> None:
        self._past: WeakKeyDictionary[Lane, dict[Hashable, list[list[Tensor]]]] = (
            WeakKeyDictionary()
        )
        self._changes: dict[tuple[str, int, int], list[float]] = {}
        self._errors: dict[tuple[str, int, int], list[float]] = {}
        self._ratios: dict[tuple[str, int], list[float]] = {}
        self._keys: set[str] = set()
        self._steps = 0
        self.shapes: list[list[int]] = []
        self.lengths: list[int] = []

    def take(
        self,
        lane: Lane,
        key: Hashable,
        values: Sequence[Tensor],
        step: int,
        group: str | None = None,
    ) -> None:
        """Takes in `values` `[rows, ...]` of `key` as computed at `step`.

        The keys of one `group` are averaged.
        """
        past = self._past.setdefault(lane, {}).setdefault(key, [])
        name = str(key) if group is None else group
        self._keys.add(name)
        self._steps = max(self._steps, step + 1)
        for lag, older in enumerate(past, 1):
            change, error = zip(*map(_differences, values, older), strict=True)
            self._changes.setdefault((name, lag, step), []).append(_mean(change))
            self._errors.setdefault((name, lag, step), []).append(_mean(error))
        if past:
            self._ratios.setdefault((name, step), []).append(_mean(map(_ratio, values, past[0])))
        past.insert(0, [value.detach().float().clone() for value in values])
        del past[LAGS:]

    def predicted(self, prediction: Tensor, steps: int) -> None:
        """Takes in the guided `prediction` `[samples, ...]` of a step of a run of so many."""
        shape = list(prediction.shape[1:])
        if steps not in self.lengths:
            self.lengths.append(steps)
        if shape not in self.shapes:
            self.shapes.append(shape)

    def statistics(self) -> Statistics:
        """What was found, averaged over everything taken in at a step."""

        def curve(found: dict, *key: Hashable) -> Curve:
            steps = [found.get((*key, step)) for step in range(self._steps)]
            return tuple(None if seen is None else _mean(seen) for seen in steps)

        def by_lag(found: dict) -> dict[str, tuple[Curve, ...]]:
            lags = range(1, LAGS + 1)
            return {key: tuple(curve(found, key, lag) for lag in lags) for key in self._keys}

        return Statistics(
            self._steps,
            by_lag(self._changes),
            {key: curve(self._ratios, key) for key in self._keys},
            by_lag(self._errors),
        )


def _mean(numbers: Iterable[float]) -> float:
    listed = list(numbers)
    return sum(listed) / len(listed)


def _differences(new: Tensor, old: Tensor) -> tuple[float, float]:
    """mean |new − old| / mean |old|, and the same / mean |new|, averaged over rows."""
    new = new.float()
    difference = (new - old).abs().flatten(1).mean(1)
    sizes = [value.abs().flatten(1).mean(1).clamp(min=1e-12) for value in (old, new)]
    return tuple(float((difference / size).mean()) for size in sizes)


def _ratio(new: Tensor, old: Tensor) -> float:
    """Mean of ‖new‖ / ‖old‖ over the vectors of the last axis."""
    return float((new.float().norm(dim=-1) / (old.norm(dim=-1) + 1e-8)).mean())
