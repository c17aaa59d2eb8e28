"""DeepCache's non-uniform 1:N schedule: computed steps crowd around a centre."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf

import torch
from torch import Tensor

from diffcache.options import check_count, is_number

from .base import NoEvidence, Policy, State, Step


@dataclass(frozen=True)
class PowerLaw(Policy):
    """Computes about one step in `every`, closer together around step `center`.

    Positions are equally spaced in the power's root between the run's ends, counted from the
    centre; the power is lowered by 0.02 until they fall on as many different steps as wanted. Where
    no power above 1 does so, steps are uniform (ours: the released code raises).

    Args:
        every: steps of the run for one that is computed, N of the paper's 1:N.
        center: the step around which steps are computed most often.
        power: the first exponent to try, above 1.
    """

    every: int = 5
    center: int = 15
    power: float = 1.4

    def __post_init__(self) -> None:
        check_count("every", self.every, 5, least=1)
        check_count("center", self.center, 15)
        if not is_number(self.power) or not 1 < self.power < inf:
            raise ValueError(f"power={self.power!r} is not above 1; try power=1.4")

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        compute = step.index in self.steps(step.total)
        return torch.full((evidence.samples,), compute), state

    def steps(self, total: int) -> frozenset[int]:
        """The steps of a run of `total` that are computed."""
        return _steps(total, self.every, self.center, self.power)


@lru_cache(maxsize=64)
def _steps(total: int, every: int, center: int, power: float) -> frozenset[int]:
    count = -(-total // every)
    while power > 1:
        # Left of the centre the root is complex; what counts is the real part of its power.
        first, last = complex(-center) ** (1 / power), complex(total - center) ** (1 / power)
        line = [first + (last - first) * (k / count) for k in range(count + 1)]
        offsets = sorted({int((x**power).real) for x in line})
        chosen = [0, *(offset + center for offset in offsets[1:-1])]
        if len(chosen) == count:
            return frozenset(chosen)
        power -= 0.02
    return frozenset(range(0, total, every))
