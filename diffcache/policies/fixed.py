"""Policies that read no evidence: a fixed interval, and a mask played back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import NoEvidence, Policy, State, Step


@dataclass(frozen=True)
class Interval(Policy):
    """Computes one step in `every`, counted from step `start`; the steps before it are computed.

    Args:
        every: the interval in steps; None never computes from `start` on.
        start: the step that the interval is counted from.
        within: skips only at timesteps between these two, both exclusive; None for anywhere.
    """

    every: int | None = 2
    start: int = 0
    within: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every!r} is not a positive step count; try every=2")
        if self.within is not None and len(self.within) != 2:
            raise ValueError(f"within={self.within!r} is not a pair; try within=(100, 800)")

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        due = self.every is not None and (step.index - self.start) % self.every == 0
        compute = step.index < self.start or due or not self._inside(step)
        return torch.full((evidence.samples,), compute), state

    def _inside(self, step: Step) -> bool:
        return self.within is None or self.within[0] < step.timestep < self.within[1]


@dataclass(frozen=True)
class Gated(Policy):
    """Asks one policy before step `gate` and another from it on.

    Args:
        gate: the first step of the second phase.
        before: the first phase's policy, which reads no evidence and keeps no state.
        after: the second phase's, likewise.
    """

    gate: int
    before: Policy
    after: Policy

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        phase = self.before if step.index < self.gate else self.after
        return phase.decide(step, evidence, state)


@dataclass(frozen=True)
class Mask(Policy):
    """Plays back the decisions of an earlier run: `report(pipe).mask`, a schedule, a list.

    Args:
        mask: rows are steps, columns samples, True = compute; one flat list of steps serves any
            batch. Steps beyond its end are computed, and so is a batch of another size.
    """

    mask: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        rows = torch.as_tensor(self.mask)
        if rows.ndim not in (1, 2) or rows.numel() == 0:
            raise ValueError(
                f"mask has shape {tuple(rows.shape)}; pass steps × samples or a list of steps, "
                "for example mask=report.mask"
            )
        rows = rows.bool().reshape(len(rows), -1).tolist()
        object.__setattr__(self, "mask", tuple(tuple(row) for row in rows))

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        row = self.mask[step.index] if step.index < len(self.mask) else (True,)
        if len(row) == 1:
            row = row * evidence.samples
        if len(row) != evidence.samples:
            row = (True,) * evidence.samples
        return torch.tensor(row), state
