"""What a run is made of: a method's parts, and what it holds for each evaluation of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from diffcache.policies import Policy, State
from diffcache.predictors import Predictor

from .collector import Collector
from .guards import Guards


class Composition(Protocol):
    """What a run needs of a method."""

    policy: Policy
    predictor: Predictor
    guards: Guards
    lagged: bool


@dataclass
class Stage:
    """Evidence and policy state of one of the evaluations that a sampler makes in a step."""

    collector: Collector
    state: State
    skipped: list[int]
