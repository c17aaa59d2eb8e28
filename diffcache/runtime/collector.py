"""What gathers one kind of evidence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from diffcache.policies import Evidence
from diffcache.predictors import Predictor

from .history import Anchor, History
from .lanes import Lane
from .reading import Reader


class Collector(ABC):
    """Gathers one kind of evidence over a run, for `samples` samples.

    It may read the `past`: the predictions that earlier steps were made with, where they were
    computed. Where it is `lagged`, policies read what was measured a step before the newest, so
    that nobody waits for the device.

    Attributes:
        remark: what the report is to say of the evidence; None where there is nothing.
    """

    remark: str | None = None

    def __init__(self, samples: int, predictor: Predictor, past: History, lagged: bool) -> None:
        self.samples = samples
        self.predictor = predictor
        self.past = past
        self.reader = Reader(lagged)
        self._unknown = torch.full((samples,), float("nan"), dtype=torch.float64)

    def attend(self, lane: Lane) -> None:
        """Takes in that a call of the step to come continues `lane`."""

    @abstractmethod
    def before(self, now: Anchor) -> Evidence:
        """What a policy may read before the step that is `now` made."""

    def after(
        self, now: Anchor, prediction: Tensor, latents: Tensor, computed: Sequence[bool]
    ) -> list[float] | None:
        """Takes in a step: the guided prediction, the latents it gave, who was computed.

        Returns the measured relative error of each sample's forecast, NaN where it had none; None
        where nothing was measured.
        """
        return None

    @property
    def bytes(self) -> int:
        return 0
