"""Thresholds by module, from how far each module's output moved in a warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffcache.options import check_count, check_number

from .base import ModuleChange, Policy, State, Step


@dataclass(frozen=True)
class ModuleThreshold(Policy):
    """Foresight: skips a module that last changed less than in the warm-up (arXiv 2506.00329).

    Scope "site": `decide` gives `[samples, modules]`. A module's threshold is γ λ, where
    λ = Σ 10^(t − W) MSE_t over the last three steps t of the warm-up, W − 2 to W, each against the
    step before. A module whose last two computed outputs differ by an MSE of at most that repeats
    its output. Modules that the warm-up did not see are computed.

    Args:
        gamma: γ; larger skips more.
        warmup: W, steps that are computed at the start.
        every: after the warm-up, steps whose number it divides are computed.

    Raises:
        ValueError: `gamma` is negative, or `warmup` or `every` is no positive step count.
    """

    gamma: float = 0.5
    warmup: int = 8
    every: int = 2
    evidence: ClassVar[type[ModuleChange]] = ModuleChange

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 0.5)
        check_count("warmup", self.warmup, 8, least=1)
        check_count("every", self.every, 2, least=1)

    def init(self, samples: int) -> State:
        return {
            "seen": torch.zeros(samples, dtype=torch.float64),
            "scale": torch.zeros(samples, 0, dtype=torch.float64),
        }

    def decide(self, step: Step, evidence: ModuleChange, state: State) -> tuple[Tensor, State]:
        change = evidence.change
        # Modules that appear later get thresholds of zero.
        scale = pad(state["scale"], (0, change.shape[1] - state["scale"].shape[1]))
        left = self.warmup - state["seen"]
        weight = (0.1**left).where((left >= 0) & (left <= 2), 0.0)
        scale = scale + weight[:, None] * change.nan_to_num(0.0)
        due = (left > 0) | (step.index % self.every == 0)
        return due[:, None] | ~(change <= self.gamma * scale), {**state, "scale": scale}

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        return {**state, "seen": state["seen"] + 1}
