"""Skip while a probe of the network has hardly changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffcache.options import check_number

from .base import Policy, ProbeChange, State, Step


@dataclass(frozen=True)
class Threshold(Policy):
    """Computes where the probe's relative change exceeds `threshold`.

    First Block Cache of ParaAttention and diffusers: the probe is the first block's residual, and
    the change is taken against its value at the last computed step.
    """

    threshold: float = 0.05
    evidence: ClassVar[type[ProbeChange]] = ProbeChange

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0.05)

    def decide(self, step: Step, evidence: ProbeChange, state: State) -> tuple[Tensor, State]:
        return ~(evidence.change <= self.threshold), state
