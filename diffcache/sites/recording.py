"""One observed pass through a stack of blocks: who calls whom with what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor, nn

from diffcache.runtime.names import Names
from diffcache.runtime.rows import leaves, tensor_leaves

from .base import ELSEWHERE
from .structure import Structure

Meta = tuple[torch.Size, torch.dtype, torch.device]


def placeholder(meta: Meta) -> Tensor:
    """Uninitialised memory that stands where nothing was computed; nothing may read it."""
    shape, dtype, device = meta
    return torch.empty(shape, dtype=dtype, device=device)


@dataclass(frozen=True)
class Described:
    """A block's output without its tensors: nesting, shapes, and which leaves are tensors."""

    structure: Structure
    metas: tuple[Meta, ...]
    positions: tuple[int, ...]

    def tensors_of(self, output: Any) -> list[Tensor]:
        """The tensors of an output of this structure."""
        found = leaves(output)
        return [found[position] for position in self.positions]

    def fill(self, tensors: Sequence[Tensor]) -> Any:
        """The output with these tensors, each brought to the shape that was seen."""
        shaped = [t.reshape(meta[0]) for t, meta in zip(tensors, self.metas, strict=True)]
        return self.structure.fill(shaped)

    def blank(self) -> list[Tensor]:
        """Placeholders for the output's tensors."""
        return [placeholder(meta) for meta in self.metas]


def describe(output: Any) -> Described:
    """The output without its tensors."""
    found = leaves(output)
    positions = tuple(i for i, leaf in enumerate(found) if isinstance(leaf, Tensor))
    metas = tuple((found[i].shape, found[i].dtype, found[i].device) for i in positions)
    return Described(Structure(output), metas, positions)


@dataclass(frozen=True)
class Call:
    """A block's call in the recorded pass; what passed is kept of the blocks that border others."""

    block: nn.Module
    described: Described
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    kept: bool = False


@dataclass(frozen=True)
class Role:
    """What a block does when the stack is bypassed.

    A source is `open` where a bypassed block of another list has run before it and that list's
    sink has not: what enters it is then made of placeholders. The probe is what the head adds from
    its `first_head` to its `last_head`, which are of one list.
    """

    kind: Literal["head", "bypassed", "last"]
    list_index: int
    source: bool = False
    open: bool = False
    sink: bool = False
    first_head: bool = False
    last_head: bool = False


@dataclass(frozen=True)
class Plan:
    """What the blocks do when the stack is bypassed, by block.

    Attributes:
        roles: of the tail only the last block has one.
        sinks: the lists that have a sink.
        inner: what a lane remembers the outputs of those bypassed blocks by that neither begin
            nor end what is bypassed of a list.
    """

    roles: dict[int, Role]
    sinks: tuple[int, ...]
    inner: frozenset[tuple[str, int]]

    def serves(self, block: nn.Module, probed: bool) -> bool:
        """Whether a full call has something to learn of `block`; of the head where it is probed."""
        role = self.roles.get(id(block))
        if role is None:
            return False
        if role.kind == "bypassed":
            return role.source or role.sink
        return probed or role.kind == "last"


class Recording:
    """What a full pass through `lists` of blocks has shown.

    An output leaf that a block hands to the next one as an argument ties the two together by
    identity: that is how the input of a list is known without any table of models.

    Attributes:
        plan: what each block does from now on.
        blind: whether blocks cannot be bypassed.
        crossed: whether that is because a computed one reads, beside the stream, what a bypassed
            one gives, as in stacks in the shape of a U.
    """

    def __init__(self, lists: list[list[nn.Module]], head: int, tail: int) -> None:
        self.lists = lists
        self.head, self.tail = head, tail
        self._probing = head
        self._order: list[nn.Module] = []
        self.plan: Plan | None = None
        self.blind = self.crossed = False
        self._where = {id(block): i for i, blocks in enumerate(lists) for block in blocks}
        self.calls: list[Call] = []
        # Activations of a whole stack would not fit beside it; blocks are called as defined.
        self._border = {
            id(block) for block in self._borders([b for blocks in lists for b in blocks])
        }
        self._last: tuple[int, list[Any]] | None = None
        self._ties: list[dict[int, str]] = [{} for _ in lists]
        # What blocks gave, and who was handed what of whom; activations are not kept alive.
        self._given: dict[int, tuple[ref[Tensor], nn.Module]] = {}
        self._handed: list[tuple[nn.Module, nn.Module]] = []
        self._names = [Names(blocks[0].forward) for blocks in lists]

    def record(self, block: nn.Module, plain: Callable, args: tuple, kwargs: dict) -> Any:
        """Calls the block and notes the order and what it was handed."""
        index = self._where[id(block)]
        bound = self.inputs(index, args, kwargs)
        if self._last is not None and self._last[0] == index:
            for position, leaf in enumerate(self._last[1]):
                for name, value in bound.items():
                    if isinstance(leaf, Tensor) and value is leaf:
                        self._ties[index][position] = name
        for leaf in tensor_leaves((args, kwargs)):
            given, giver = self._given.get(id(leaf), (None, None))
            if given is not None and given() is leaf:
                self._handed.append((giver, block))
        output = plain(*args, **kwargs)
        described = describe(output)
        self._given.update((id(leaf), (ref(leaf), block)) for leaf in tensor_leaves(output))
        if id(block) in self._border:
            self.calls.append(Call(block, described, args, kwargs, output, kept=True))
        else:
            self.calls.append(Call(block, described))
        self._last = (index, leaves(output))
        return output

    def _borders(self, order: list[nn.Module]) -> list[nn.Module]:
        """The blocks where a head, a tail, or what is bypassed of a list, begins or ends."""
        bypassed, tail = order[self.head : len(order) - self.tail], order[-1:] if self.tail else []
        probed = self._probed(order)
        ends = [*probed[:1], *probed[-1:], *tail]
        for index in range(len(self.lists)):
            chain = [block for block in bypassed if self._where[id(block)] == index]
            ends += [*chain[:1], *chain[-1:]]
        return ends

    def _probed(self, order: list[nn.Module]) -> list[nn.Module]:
        """The blocks of the head's last list, as lists may carry streams of other shapes."""
        head = order[: self.head]
        return [b for b in head if self._where[id(b)] == self._where[id(head[-1])]]

    def settle(self) -> None:
        """Makes the plan from the pass just recorded."""
        self._last = None
        order = self._order = [call.block for call in self.calls]
        if not order or len(set(map(id, order))) != len(order):
            self.blind = True
            return
        self._given.clear()
        self._lay_out(order)
        if not {id(block) for block in self._borders(order)} <= self._border:
            self.calls.clear()

    def probe_later(self) -> bool:
        """Makes the head end in the list that is called after the one where it ends.

        Returns whether there is such a list, with something left to bypass.
        """
        order, ends = self._order, self._where[id(self._order[self.head - 1])]
        later = (n for n in range(self.head, len(order)) if self._where[id(order[n])] != ends)
        head = next(later, len(order)) + self._probing
        if head + self.tail >= len(order):
            return False
        self.head = head
        self._lay_out(order)
        return True

    def _lay_out(self, order: list[nn.Module]) -> None:
        """Makes the plan for blocks that are called in this order."""
        head, stop = self.head, len(order) - self.tail
        probed = self._probed(order)
        roles: dict[int, Role] = {}
        for block in order[:head]:
            roles[id(block)] = Role(
                "head",
                self._where[id(block)],
                first_head=block is probed[0],
                last_head=block is probed[-1],
            )
        bypassed = order[head:stop]
        lists = [self._where[id(block)] for block in bypassed]
        for number, (block, index) in enumerate(zip(bypassed, lists, strict=True)):
            roles[id(block)] = Role(
                "bypassed",
                index,
                source=index not in lists[:number],
                open=any(other in lists[number:] for other in lists[:number] if other != index),
                sink=index not in lists[number + 1 :],
            )
        unbridged = {
            key for key, role in roles.items() if role.kind == "bypassed" and not role.sink
        }
        computed = set(map(id, order[stop:]))
        if any(id(g) in unbridged and id(taker) in computed for g, taker in self._handed):
            self.blind = self.crossed = True
            return
        if self.tail:
            roles[id(order[-1])] = Role("last", self._where[id(order[-1])])
        inner = [("output", key) for key in unbridged if not roles[key].source]
        self.plan = Plan(roles, tuple(sorted(set(lists))), frozenset(inner))

    def inputs(self, index: int, args: tuple, kwargs: dict) -> dict[str, Any]:
        """What a block of list `index` is called with, by name."""
        return self._names[index](args, kwargs)

    def entry_names(self, index: int, described: Described) -> tuple[str | None, ...]:
        """The arguments by which list `index` is entered, for each tensor of its output."""
        return tuple(self._ties[index].get(position) for position in described.positions)

    def names(self, index: int) -> Names:
        """What names the arguments of the blocks of list `index`."""
        return self._names[index]

    def matching(
        self, index: int, described: Described, entry: dict[str, Any]
    ) -> list[Tensor | None]:
        """What entered the list for each output tensor, with the `inputs` of its first block.

        None where it is unknown or of another shape.
        """
        found = map(entry.get, self.entry_names(index, described))
        return [
            tensor if isinstance(tensor, Tensor) and tensor.shape == meta[0] else None
            for tensor, meta in zip(found, described.metas, strict=True)
        ]

    def _hidden_name(self, index: int) -> str:
        names = self._names[index]
        return "hidden_states" if "hidden_states" in names else names.first

    def hidden_input(self, index: int, args: tuple, kwargs: dict) -> Tensor:
        """The main stream among a block's arguments."""
        return self.inputs(index, args, kwargs)[self._hidden_name(index)]

    def hidden_output(self, index: int, output: Any, entry: Tensor) -> Tensor:
        """The main stream in a block's output, which entered the block as `entry`.

        Raises:
            ValueError: it cannot be told.
        """
        found = leaves(output)
        for position, name in self._ties[index].items():
            if name == self._hidden_name(index):
                return found[position]
        alike = (x for x in found if isinstance(x, Tensor) and x.shape == entry.shape)
        if (after := next(alike, None)) is None:
            raise ValueError(
                f"a block that {tuple(entry.shape)} enters gives nothing of that shape, so what it "
                f"adds cannot be told; {ELSEWHERE}"
            )
        return after
