"""The raw third-order threshold rule on latents, with both published statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffcache.options import check_number

from .base import LatentChange, Policy, State, Step, compute_all


def norm_statistic(newest: Tensor, middle: Tensor, oldest: Tensor) -> Tensor:
    """|(d_i + d_{i-2}) / 2 − d_{i-1}|, half the second difference of the norms d = mean |Δx|."""
    return ((newest + oldest) / 2 - middle).abs()


@dataclass(frozen=True)
class ThirdOrder(Policy):
    """Skips a step while the third-order difference of the latents is small (arXiv 2410.09873).

    Args:
        threshold: δ, relative to the first difference; a larger one skips more.
        statistic: "tensor", the paper's ‖Δ³x‖ < δ ‖Δx_i‖; or "norms", the released code's
            |(d_i + d_{i-2}) / 2 − d_{i-1}| ≤ δ d_{i-1}, which does not see direction.
    """

    threshold: float = 0.01
    statistic: Literal["tensor", "norms"] = "tensor"
    evidence: ClassVar[type[LatentChange]] = LatentChange

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0.01)
        if self.statistic not in ("tensor", "norms"):
            raise ValueError(
                f"statistic={self.statistic!r} is not known; use statistic='tensor' or 'norms'"
            )

    def init(self, samples: int) -> State:
        return {"norms": torch.full((samples, 2), float("nan"), dtype=torch.float64)}

    def decide(self, step: Step, evidence: LatentChange, state: State) -> tuple[Tensor, State]:
        middle, oldest = state["norms"].unbind(1)
        norms = torch.stack([evidence.first, middle], 1)
        if evidence.third is None:
            return compute_all(len(norms)), {"norms": norms}
        if self.statistic == "tensor":
            skip = evidence.third < self.threshold * evidence.first
        else:
            skip = norm_statistic(evidence.first, middle, oldest) <= self.threshold * middle
        return ~skip, {"norms": norms}
