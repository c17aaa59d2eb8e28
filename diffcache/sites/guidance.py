"""The unconditional rows of a batch that holds both branches of classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffcache.kernels.transfer import sent
from diffcache.policies import NoEvidence
from diffcache.runtime.reading import on_host
from diffcache.runtime.rows import as_index, by_rows, merge, take
from diffcache.runtime.turn import Turn

from .base import Attachment, Site
from .output import OutputAttachment

# How much of what tells the branches apart a mix of them may leave unexplained.
_MISFIT = 0.1


@dataclass(frozen=True)
class Guidance(Site):
    """Skips one half of calls with two branches a sample; a skipped step is half computed.

    The conditional rows are always computed. The others are these plus a forecast of the
    difference that was seen last. Which half is which is measured: the scheduler is stepped with
    uncond + s · (cond − uncond), s > 1. Calls of another kind are computed in full, with a note.
    """

    provides = frozenset({NoEvidence})
    keeps_differences = True

    def attach(self, denoiser: nn.Module, handlers: dict[int, Callable]) -> Attachment:
        return GuidanceAttachment(denoiser)


class GuidanceAttachment(OutputAttachment):
    """The guidance site on one denoiser."""

    def plan(self, turn: Turn) -> None:
        if turn.full:
            return
        if why := _refusal(turn):
            turn.run.note(f"{why}, so it was computed in full")
            return turn.compute_all()
        samples = turn.run.samples
        computed, halves = [True] * samples, [turn.mask[:samples]]
        halves.insert(turn.lane.memory["conditional"], computed)
        turn.mask = halves[0] + halves[1]

    def run(self, turn: Turn) -> Any:
        if turn.full:
            output = turn.invoke(turn.args, turn.kwargs)
            if leaves := self._leaves(turn, output):
                self._take_in(turn, leaves)
            return output
        index = turn.index()
        computed = turn.invoke(*take((turn.args, turn.kwargs), turn.rows, index, turn.listed))
        skipped = as_index([not row for row in turn.mask])
        conditional = turn.lane.memory["conditional"]
        merged = []
        parts = by_rows(computed, turn.listed)
        for part, bias in zip(parts, turn.forecast("bias"), strict=True):
            whole = merge(part, part.new_empty(turn.rows, *part.shape[1:]), index)
            stand_in = whole.chunk(2)[conditional].to(bias.dtype) + bias
            which = sent(skipped % turn.run.samples, bias.device)
            merged.append(merge(stand_in[which], whole, skipped))
        filled = self._fill(turn, merged)
        if len(skipped) < turn.run.samples:
            self._remember_bias(turn, merged)
        return filled

    def _take_in(self, turn: Turn, leaves: list[Tensor]) -> None:
        if "conditional" in turn.lane.memory:
            return self._remember_bias(turn, leaves)
        turn.run.awaiting.append(lambda prediction: self._learn(turn, leaves, prediction))

    def _learn(self, turn: Turn, leaves: list[Tensor], prediction: Tensor) -> None:
        """Finds the conditional half by the prediction that the halves were guided into."""
        if turn.rows != 2 * len(prediction):
            return
        half = conditional_half(*leaves[0].chunk(2), prediction)
        if half is not None:
            turn.lane.memory["conditional"] = half
            self._remember_bias(turn, leaves)

    def _remember_bias(self, turn: Turn, leaves: list[Tensor]) -> None:
        """Stores uncond − cond of the samples that computed both."""
        conditional = turn.lane.memory["conditional"]
        samples = turn.rows // 2
        mask = turn.mask[:samples] if conditional else turn.mask[samples:]
        # In half precision what is left of a difference would be rounding.
        real = [leaf.to(torch.promote_types(leaf.dtype, torch.float32)) for leaf in leaves]
        halves = [leaf.chunk(2) for leaf in real]
        turn.remember("bias", [pair[1 - conditional] - pair[conditional] for pair in halves], mask)


def _refusal(turn: Turn) -> str | None:
    """Why the unconditional rows of a call cannot be told or forecast, or None."""
    branches = turn.rows // turn.run.samples
    if branches != 2:
        found = "one guidance branch" if branches == 1 else f"{branches} guidance branches"
        return f"a call has {found} a sample and not two"
    if turn.run.decisions.uniform:
        return "some rows of a batch are not computed alone"
    if not turn.can_forecast("bias", turn.run.samples):
        return (
            "which half of a call is unconditional is not known (the scheduler was stepped with no "
            "mix of the two)"
        )
    return None


def conditional_half(first: Tensor, second: Tensor, guided: Tensor) -> int | None:
    """Which of the halves `[samples, ...]` is the conditional one: 0, 1, or None if neither is.

    Guided is a mix f · (first + s · (second − first)) in each sample, f ≠ 1 where guidance is
    rescaled. Guidance moves away from the unconditional half: s is above one where that is the
    first one, and below zero where it is the second. Channels that `guided` lacks (a learned
    variance) are left out.
    """
    if guided.ndim > 1:
        first, second = (half[:, : guided.shape[1]] for half in (first, second))
    if first.shape != guided.shape:
        return None
    base, other, mix = on_host(torch.stack([first, second, guided])).flatten(2).double()
    columns = torch.stack([base, other - base, mix], 1)
    products = columns @ columns.mT
    gram, right = products[:, :2, :2], products[:, :2, 2]
    # Branches that do not differ, or a sample that is all zero, tell nothing.
    if not torch.isfinite(products).all() or (torch.linalg.det(gram) <= 0).any():
        return None
    weights = torch.linalg.solve(gram, right)
    misfit = products[:, 2, 2] - (weights * right).sum(1)
    share = weights[:, 1] / weights[:, 0]
    explained = weights[:, 1] ** 2 * gram[:, 1, 1]
    if (misfit > _MISFIT**2 * explained).any():
        return None
    # Halfway, where the two readings meet, is far from any s in use.
    if (share > 0.75).all():
        return 1
    return 0 if (share < 0.25).all() else None
