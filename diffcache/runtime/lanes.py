"""Which earlier call a denoiser call continues: guidance branches, stages, several denoisers."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .history import History
from .rows import leaves

# Conditioning is told from what legitimately changes each step by the names diffusers gives it.
_CHANGING = re.compile(
    r"sample|hidden_states$|timestep|^t$|_time$|residual|rotary|_ids$|control|sigma|mask_latent"
)
_CONDITIONING = re.compile(r"encoder_hidden_states|^added_cond|^return_dict$")


# Steps after which a lane that no call continued is dropped; two-stage samplers use one every two.
_PATIENCE = 4


class Lane:
    """One guidance branch of one denoiser: its conditioning and what it computed, by signal."""

    def __init__(self, conditioning: list[Any], capacity: int) -> None:
        self.conditioning = conditioning
        self.capacity = capacity
        self.idle = 0
        self.histories: dict[Hashable, History] = {}
        self.memory: dict[Hashable, Any] = {}

    def history(self, key: Hashable) -> History:
        return self.histories.setdefault(key, History(self.capacity))

    @property
    def bytes(self) -> int:
        return sum(history.bytes for history in self.histories.values())

    def snapshot(self) -> Lane:
        """An independent copy of what was computed; the conditioning is shared."""
        twin = Lane(self.conditioning, self.capacity)
        twin.histories = {key: history.snapshot() for key, history in self.histories.items()}
        twin.memory = {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in self.memory.items()
        }
        return twin

    def restore(self, twin: Lane) -> None:
        """Takes back the state that `snapshot` gave."""
        self.histories, self.memory = twin.histories, twin.memory


class Lanes:
    """All lanes of a run.

    A call continues the lane with the same denoiser, stage, shapes and conditioning. Conditioning
    is the same by identity, or by content where a pipeline rebuilds it each step. Calls that agree
    in all of this within one step are told apart by their order. Anything else is a new lane, and
    a new lane computes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._known: dict[Hashable, list[Lane]] = {}
        self._used: set[int] = set()

    def next_step(self) -> None:
        """Starts a step: every lane may be used again, and lanes long unused are dropped."""
        for place, known in list(self._known.items()):
            for lane in known:
                lane.idle = 0 if id(lane) in self._used else lane.idle + 1
            self._known[place] = [lane for lane in known if lane.idle <= _PATIENCE]
        self._used.clear()

    def restamp(self, time: float) -> None:
        """Sets the time of what the first step computed, before it was known."""
        for lanes in self._known.values():
            for lane in lanes:
                for history in lane.histories.values():
                    history.restamp(time)

    def find(self, place: Hashable, arguments: dict[str, Any]) -> Lane:
        """The lane of a call at `place` (denoiser, stage, shapes), made if it is a new one.

        `arguments` are those beside the sample.
        """
        conditioning = conditioning_of(arguments)
        known = self._known.setdefault(place, [])
        free = [lane for lane in known if id(lane) not in self._used]
        lane = next((lane for lane in free if _match(lane, conditioning, _identical)), None)
        if lane is None:
            lane = next((lane for lane in free if _match(lane, conditioning, _equal)), None)
        if lane is None:
            lane = Lane(conditioning, self.capacity)
            known.append(lane)
        lane.conditioning = conditioning
        self._used.add(id(lane))
        return lane

    @property
    def bytes(self) -> int:
        return sum(lane.bytes for lanes in self._known.values() for lane in lanes)

    @property
    def count(self) -> int:
        return sum(len(lanes) for lanes in self._known.values())


def conditioning_of(arguments: dict[str, Any]) -> list[Any]:
    """The leaves of a call's arguments that name its branch, which the steps do not change."""
    return [
        leaf for name, value in arguments.items() if _names_branch(name) for leaf in leaves(value)
    ]


@cache
def _names_branch(argument: str) -> bool:
    return bool(_CONDITIONING.search(argument)) or not _CHANGING.search(argument)


def _match(lane: Lane, new: list[Any], same: Callable[[Any, Any], bool]) -> bool:
    return len(lane.conditioning) == len(new) and all(map(same, lane.conditioning, new))


def _identical(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and _plain(a, b))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same_kind = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        return a is b or (same_kind and torch.equal(a, b))
    return _identical(a, b)


def _plain(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, Hashable) and a == b
