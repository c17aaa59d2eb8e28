"""What a run is made of: a method's parts, and what it holds for each evaluation of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from diffcache.policies import Policy, State
from diffcache.predictors import Predictor

from .collector import Collector
from .evidence import collector_for
from .guards import Guards
from .history import History


class Composition(Protocol):
    """What a run needs of a method."""

    policy: Policy
    predictor: Predictor
    guards: Guards
    lagged: bool


@dataclass
class Stage:
    """What is known of one of the evaluations that a sampler makes in a step.

    Attributes:
        past: the predictions that its steps were made with, where they were computed.
        collector: gathers the policy's evidence.
        state: the policy's memory.
        skipped: how many steps in a row each sample has skipped.
        correction: what each sample was last corrected by, `[samples, elements]`, if at all.
    """

    past: History
    collector: Collector
    state: State
    skipped: list[int]
    correction: Tensor | None = None

    @classmethod
    def of(cls, method: Composition, samples: int) -> Stage:
        """What is known before the first step of a run of so many samples."""
        policy, predictor = method.policy, method.predictor
        past = History(predictor.anchors)
        collector = collector_for(policy.evidence, samples, predictor, past, method.lagged)
        return cls(past, collector, policy.init(samples), [0] * samples)

    @property
    def bytes(self) -> int:
        """What is kept of tensors."""
        last = 0 if self.correction is None else self.correction.nbytes
        return self.past.bytes + self.collector.bytes + last
