"""Forecast every step as a draft, and keep it where a check inside the call says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffcache.options import check_number

from .base import DraftError, Policy, State, Step


@dataclass(frozen=True)
class Drafted(Policy):
    """SpeCa: accepts a draft whose error is within max(base · decay^progress, floor).

    Progress is the share of the run's steps that were made (arXiv 2509.11628). The error is that of
    what the last block adds, element by element: one that is nearly zero may be off by many times
    its size, so that bases above one are no mistake.
    """

    base: float = 7.0
    decay: float = 0.3
    floor: float = 0.1
    evidence: ClassVar[type[DraftError]] = DraftError

    def __post_init__(self) -> None:
        check_number("base", self.base, 7.0)
        check_number("decay", self.decay, 0.3)
        check_number("floor", self.floor, 0.1)

    def decide(self, step: Step, evidence: DraftError, state: State) -> tuple[Tensor, State]:
        return torch.zeros(evidence.samples, dtype=torch.bool), state

    def accept(self, step: Step, error: Tensor) -> Tensor:
        """Whether the drafts with `error` `[samples]` may stand, `[samples]` of bool."""
        progress = step.index / step.total
        # Asked this way round, an error that is not a number is refused.
        return error <= max(self.base * self.decay**progress, self.floor)
