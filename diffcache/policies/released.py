"""AdaptiveDiffusion's released rule to the letter, to reproduce its published results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffcache.options import check_number

from .base import LatentChange, Policy, State, Step, compute_all
from .third_order import norm_statistic


@dataclass(frozen=True)
class ReleasedThirdOrder(Policy):
    """One decision for the whole batch, from norms of latents (code of arXiv 2410.09873).

    The first four steps are computed. The cap on consecutive skips is not active for the first
    five decisions, the last step is not protected, and the norms are means over the batch: all as
    released.

    Args:
        threshold: δ; 0.01 for SD 1.5 and SDXL, 0.004 for LDM-4.
        max_skips: C_max; 4 for SD 1.5 and SDXL, 6 for LDM-4.
    """

    threshold: float = 0.01
    max_skips: int = 4
    evidence: ClassVar[type[LatentChange]] = LatentChange

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0.01)
        check_number("max_skips", self.max_skips, 4)

    def init(self, samples: int) -> State:
        return {
            "norms": torch.full((samples, 2), float("nan"), dtype=torch.float64),
            "decisions": torch.zeros(samples, dtype=torch.long),
            "skipped": torch.zeros(samples, dtype=torch.long),
        }

    def decide(self, step: Step, evidence: LatentChange, state: State) -> tuple[Tensor, State]:
        newest = evidence.first.mean().expand_as(evidence.first)
        middle, oldest = state["norms"].unbind(1)
        compute, decisions, skipped = compute_all(len(newest)), state["decisions"], state["skipped"]
        if step.index >= 4:
            capped = (decisions > 4) & (skipped >= decisions.clamp(max=self.max_skips))
            stable = norm_statistic(newest, middle, oldest) <= self.threshold * middle
            compute = capped | ~stable
            decisions = decisions + 1
            skipped = (skipped + 1).masked_fill(compute, 0)
        norms = torch.stack([newest, middle], 1)
        return compute, {"norms": norms, "decisions": decisions, "skipped": skipped}
