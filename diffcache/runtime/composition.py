"""What a run is made of: a method's parts, and what it holds for each evaluation of a step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffcache.kernels import forecast_error
from diffcache.kernels.transfer import sent
from diffcache.policies import Policy, State
from diffcache.predictors import Predictor, damping

from .collector import Collector
from .evidence import collector_for
from .guards import Guards
from .history import Anchor, History


class Composition(Protocol):
    """What a run needs of a method."""

    policy: Policy
    predictor: Predictor
    guards: Guards
    lagged: bool

    @property
    def damps(self) -> bool: ...


@dataclass
class Stage:
    """What is known of one of the evaluations that a sampler makes in a step.

    Attributes:
        past: the predictions that its steps were made with, where they were computed.
        collector: gathers the policy's evidence.
        state: the policy's memory.
        skipped: how many steps in a row each sample has skipped.
        correction: what each sample was last corrected by, `[samples, elements]`, if at all.
        damps: whether forecasts are damped.
    """

    past: History
    collector: Collector
    state: State
    skipped: list[int]
    correction: Tensor | None = None
    damps: bool = False
    # Nothing until it is asked for, and then what was found.
    _damping: tuple[Tensor | None, ...] = ()

    @classmethod
    def of(cls, method: Composition, samples: int) -> Stage:
        """What is known before the first step of a run of so many samples.

        Raises:
            ValueError: an option is for another number of samples, of which a warning tells too.
        """
        policy, predictor = method.policy, method.predictor
        past = History(predictor.anchors + method.damps)
        collector = collector_for(policy.evidence, samples, predictor, past, method.lagged)
        try:
            state = policy.init(samples)
        except ValueError as error:
            # The generation survives it with a note, which nobody may read.
            warnings.warn(f"diffcache computes everything: {error}", stacklevel=2)
            raise
        return cls(past, collector, state, [0] * samples, damps=method.damps)

    def keep(self, prediction: Tensor, now: Anchor, computed: Sequence[bool]) -> None:
        """Takes in what a step was made with, of the samples that were computed."""
        # Another batch may have come in the middle of a run.
        some = prediction.shape[0] == len(computed) and not all(computed)
        self.past.append([prediction], now, computed if some else None)
        self._damping = ()

    def damping(self, predictor: Predictor) -> Tensor | None:
        """By sample, the factor of how far forecasts go from the newest value, `[samples]`.

        It is told by the newest value and those before it alone, so that a replay finds the same.
        None where nothing is damped, or of no sample enough values are known.
        """
        if not self.damps:
            return None
        if not self._damping:
            self._damping = (self._measured(predictor),)
        return self._damping[0]

    def _measured(self, predictor: Predictor) -> Tensor | None:
        weights, known = self.past.hindsight(predictor)
        if not any(known):
            return None
        newest, *before = (slot[0] for slot in self.past.slots)
        off, moved = (forecast_error(value, before, weights)[0] for value in (newest, before[0]))
        changed = forecast_error(newest, before[:1], (1.0,))[0]
        found = damping(off, moved, changed)
        return found if all(known) else found.where(sent(torch.tensor(known), found.device), 1.0)

    @property
    def bytes(self) -> int:
        """What is kept of tensors."""
        last = 0 if self.correction is None else self.correction.nbytes
        return self.past.bytes + self.collector.bytes + last
