"""Which earlier call a denoiser call continues: guidance branches, stages, several denoisers."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffcache.kernels import latent_difference

from .history import History
from .reading import on_host
from .rows import along, leaves, tensor_leaves

# Conditioning is told from what legitimately changes each step by the names diffusers gives it.
_CHANGING = re.compile(
    r"sample|hidden_states$|timestep|^t$|_time$|residual|rotary|_ids$|control|sigma|mask_latent"
)
_CONDITIONING = re.compile(r"encoder_hidden_states|^added_cond|^return_dict$")


# Steps after which a lane that no call continued is dropped; two-stage samplers use one every two.
_PATIENCE = 4


class Lane:
    """One guidance branch of one denoiser: its conditioning and what it computed, by signal.

    Attributes:
        used: whether a call of the step that is being made continues it.
        idle: steps for which no call did.
        changes: by signal, the mean squared change `[rows]` between the last two values of a row.
        calls: how many have continued it, its first one with them.
    """

    def __init__(self, conditioning: list[Any], capacity: int) -> None:
        self.conditioning = conditioning
        self.capacity = capacity
        self.used = False
        self.idle = self.calls = 0
        self.histories: dict[Hashable, History] = {}
        self.memory: dict[Hashable, Any] = {}
        self.changes: dict[Hashable, Tensor] = {}
        self._watched: list[Any] = []
        self._tensors: list[Tensor] = []
        self._writes: list[int] = []
        # What the tensors held when they were last written to.
        self._held: list[Tensor] = []

    def release(self) -> None:
        """Takes back that a call continues it: one that failed, and may be made again."""
        self.used = False
        self.calls -= 1

    def refresh(self) -> None:
        """Forgets what was computed, where the conditioning was written to since the last call."""
        tensors, writes = self._tensors, self._writes
        if self._watched is not self.conditioning:
            found = tensor_leaves(self.conditioning)
            self._tensors = [each for each in found if not each.is_inference()]
            self._watched = self.conditioning
        self._writes = [each._version for each in self._tensors]
        if self._writes == writes:
            return
        pairs = zip(tensors, self._tensors, writes, self._writes, strict=False)
        if any(_share_memory(old, new) and one != other for old, new, one, other in pairs):
            # A buffer may be filled with the same at every step.
            if not _match(self._held, self._tensors, _equal):
                self.forget()
            self._held = [each.clone() for each in self._tensors]

    def forget(self) -> None:
        """Drops all that was computed."""
        for kept in (self.histories, self.memory, self.changes):
            kept.clear()

    def history(self, key: Hashable, more: int = 0) -> History:
        """The values of a signal; where there are none, room for some, and for so many `more`."""
        if key not in self.histories:
            self.histories[key] = History(self.capacity + more)
        return self.histories[key]

    def measure(self, key: Hashable, values: Sequence[Tensor], rows: Sequence[bool] | None) -> None:
        """Notes how far `values` `[rows, ...]` are from those stored, for the rows that computed.

        None stands for all rows. Nothing is known of values that continue no earlier ones.
        """
        history = self.history(key)
        if not history.fits(values):
            self.changes.pop(key, None)
            return
        sums = [
            latent_difference([new, old], (1.0, -1.0), absolute=False).sq_difference
            for new, old in zip(values, history.slots[0], strict=True)
        ]
        found = sum(sums) / sum(value[0].numel() for value in values)
        if rows is not None:
            known = self.changes.get(key, torch.full_like(found, float("nan")))
            found = torch.where(along(rows, found), found, known)
        self.changes[key] = found

    def drop(self, key: Hashable) -> None:
        """Forgets what is known of a signal."""
        self.histories.pop(key, None)
        self.changes.pop(key, None)

    @property
    def bytes(self) -> int:
        histories = sum(history.bytes for history in self.histories.values())
        others = tensor_leaves([self.changes, self.memory, self._held])
        return histories + sum(tensor.nbytes for tensor in others)

    @property
    def shortage(self) -> str:
        """Why a call that was to be skipped has nothing to be forecast from."""
        if self.calls > 1:
            return (
                "a call in a skipped step was computed, as earlier ones left nothing to forecast "
                "from (conditioning written over, an output without a batch axis, or parts not "
                "observed)"
            )
        return (
            "a call in a skipped step was computed, as it continued no earlier one (a guidance "
            "branch that begins late, or other conditioning, shape or denoiser)"
        )

    def snapshot(self) -> Lane:
        """An independent copy of what was computed; the conditioning is shared."""
        twin = Lane(self.conditioning, self.capacity)
        twin.histories = {key: history.snapshot() for key, history in self.histories.items()}
        twin.memory = {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in self.memory.items()
        }
        # What changes is replaced, never written into.
        twin.changes = dict(self.changes)
        return twin

    def restore(self, twin: Lane) -> None:
        """Takes back the state that `snapshot` gave."""
        self.histories, self.memory, self.changes = twin.histories, twin.memory, twin.changes


class Lanes:
    """All lanes of a run.

    A call continues the lane with the same denoiser, stage, shapes and conditioning. Conditioning
    is the same by identity, or by content where a pipeline rebuilds it each step. Calls that agree
    in all of this within one step are told apart by their order. Anything else is a new lane, and
    a new lane computes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # Bytes that were held before lanes were dropped.
        self.most = 0
        self._known: dict[Hashable, list[Lane]] = {}

    def next_step(self) -> str | None:
        """Starts a step: every lane may be used again, and lanes long unused are dropped.

        Where more or fewer calls agreed in all but their order than in the step before, nobody
        knows which of them was which. What they computed is then forgotten, and this says so.
        """
        mixed = [lane for known in self._known.values() for lane in _mixed_up(known)]
        for lane in mixed:
            lane.forget()
        for known in self._known.values():
            for lane in tuple(known):
                lane.idle = 0 if lane.used else lane.idle + 1
                lane.used = False
                if lane.idle > _PATIENCE:
                    self.most = max(self.most, self.bytes)
                    known.remove(lane)
        if not mixed:
            return None
        return (
            "calls that differ in nothing but their order were more or fewer than in the step "
            "before, so what they had computed was forgotten"
        )

    @property
    def used(self) -> list[Lane]:
        """Those that calls of the step that is being made continue."""
        return [lane for known in self._known.values() for lane in known if lane.used]

    def restamp(self, time: float) -> None:
        """Sets the time of what the first step computed, before it was known."""
        for lanes in self._known.values():
            for lane in lanes:
                for history in lane.histories.values():
                    history.restamp(time)

    def find(self, place: Hashable, arguments: dict[str, Any], watched: bool = False) -> Lane:
        """The lane of a call at `place` (denoiser, stage, shapes), made if it is a new one.

        `arguments` are those beside the sample, which somebody may have written to if `watched`.
        """
        conditioning = conditioning_of(arguments)
        known = self._known.setdefault(place, [])
        for lane in known:
            # Mostly the very same objects, which is told without a call for each.
            alike = not lane.used and len(lane.conditioning) == len(conditioning)
            if alike and all(map(operator.is_, lane.conditioning, conditioning)):
                break
        else:
            lane = _free(known, conditioning, operator.is_) or _free(known, conditioning, _equal)
            if lane is None:
                lane = Lane(conditioning, self.capacity)
                known.append(lane)
            lane.conditioning = conditioning
        lane.used = True
        lane.calls += 1
        if watched:
            lane.refresh()
        return lane

    @property
    def bytes(self) -> int:
        return sum(lane.bytes for lanes in self._known.values() for lane in lanes)

    @property
    def count(self) -> int:
        return sum(len(lanes) for lanes in self._known.values())


def conditioning_of(arguments: dict[str, Any]) -> list[Any]:
    """The arguments of a call that name its branch, which the steps do not change."""
    found = []
    for name in _naming_branch(tuple(arguments)):
        value = arguments[name]
        # The leaves of a container, because a pipeline may refill one and the same.
        found.append(leaves(value) if isinstance(value, (dict, list, tuple)) else value)
    return found


def _mixed_up(known: Sequence[Lane]) -> Iterator[Lane]:
    """Lanes that another call than before may have continued in the step that ends."""
    for lane in known:
        begun = lane.used and (lane.calls == 1 or lane.idle > 0)
        ended = not lane.used and lane.idle == 0
        if not (begun or ended):
            continue
        for twin in known:
            older = twin is not lane and twin.used and twin.calls > 1
            if older and _match(twin.conditioning, lane.conditioning, _equal):
                yield from (lane, twin)


def _free(
    lanes: list[Lane], conditioning: list[Any], same: Callable[[Tensor, Tensor], bool]
) -> Lane | None:
    for lane in lanes:
        if not lane.used and _match(lane.conditioning, conditioning, same):
            return lane
    return None


@cache
def _naming_branch(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        name for name in arguments if _CONDITIONING.search(name) or not _CHANGING.search(name)
    )


def _match(known: list[Any], new: list[Any], same: Callable[[Tensor, Tensor], bool]) -> bool:
    """Whether two lists of conditioning agree, their tensors by `same`."""
    if len(known) != len(new):
        return False
    return all(a is b or _agree(a, b, same) for a, b in zip(known, new, strict=True))


def _agree(a: Any, b: Any, same: Callable[[Tensor, Tensor], bool]) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return same(a, b)
    if isinstance(a, list):
        return _match(a, b, same)
    return isinstance(a, Hashable) and a == b


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether they are one tensor, or views of one, which count writes together."""
    return a is b or a.data_ptr() == b.data_ptr()


def _equal(a: Tensor, b: Tensor) -> bool:
    same_kind = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
    return same_kind and bool(on_host((a == b).all()))
