"""What every policy shares: the step it is asked about, the evidence it reads, its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nan
from typing import Any, ClassVar

import torch
from torch import Tensor

from .statistics import Statistics

State = dict[str, Any]
"""A policy's memory by name: tensors or lists, each with an entry a sample."""

Decision = Tensor | list[bool]
"""Whether to compute, by sample: a list or a tensor `[samples]`; with groups, a tensor alone."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The steps of a run, for policies that plan ahead; runs over the same steps share one.

    Attributes:
        times: of each step, the coordinate of its noise.
        weights: of each step, as in `Step`.
        protected: whether a guard computes the step whatever the policy says.
        cap: how many steps in a row may be skipped at most.
    """

    times: tuple[float, ...]
    weights: tuple[float, ...]
    protected: tuple[bool, ...]
    cap: float = inf


@dataclass(frozen=True)
class Step:
    """Where a run stands.

    Attributes:
        index: scheduler steps made before this one.
        total: scheduler steps of the run.
        weight: how far the scheduler moves the sample at this step for a unit prediction, in
            units of the clean sample, over the median of the run's steps.
        timestep: from 1000 at pure noise to 0, as most schedulers count; timesteps of another kind
            are spread over it. NaN where the scheduler has none.
        grid: all steps of the run; None before its length is known.
        earlier: steps of the runs before, where one call denoises several times.
        rows: denoiser rows of the step over those of the run's first, which guidance that ends or
            begins on the way changes; until it is made, of the step before.
    """

    index: int
    total: int
    weight: float = 1.0
    timestep: float = nan
    grid: Grid | None = None
    earlier: int = 0
    rows: float = 1.0


class Evidence:
    """Base of what a policy may read. Every tensor is `[samples]`, float64 unless said.

    Attributes:
        groups: the groups of modules that the evidence tells apart; empty for most.
        inside: whether it is measured inside of the denoiser, and not on what that gives.
    """

    inside: ClassVar[bool] = False
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoEvidence(Evidence):
    """For policies that decide from the step alone. `samples` is the batch size."""

    samples: int


@dataclass(frozen=True)
class DraftError(NoEvidence):
    """For policies that decide from the step alone, and then `accept` drafts by their error.

    The error is mean |forecast − computed| / |computed| of the last block's output, computed from
    what was forecast to enter it.
    """

    inside: ClassVar[bool] = True


@dataclass(frozen=True)
class ForecastError(Evidence):
    """The relative error ‖truth − forecast‖ / ‖truth‖ that forecasting this step would make.

    Attributes:
        predicted: a number a sample, from the errors measured at computed steps; NaN where none was
            measured yet. On the host, a tensor this small costs more than its arithmetic.
    """

    predicted: Sequence[float]


@dataclass(frozen=True)
class LatentChange(Evidence):
    """Differences of the latents x after the last step, AdaptiveDiffusion's evidence.

    Attributes:
        first: mean |x_i - x_{i-1}|.
        third: mean |x_i - 3 x_{i-1} + 3 x_{i-2} - x_{i-3}|, or None before four latents exist.
    """

    first: Tensor
    third: Tensor | None


@dataclass(frozen=True)
class ProbeChange(Evidence):
    """Relative L1 change of a probe (a first block's residual) since its last computed value."""

    inside: ClassVar[bool] = True
    change: Tensor


@dataclass(frozen=True)
class PredictedChange(Evidence):
    """Relative change of the output that the latents' last move lets expect; NaN if unknown."""

    change: Tensor


@dataclass(frozen=True)
class ModuleChange(Evidence):
    """Mean squared change of each module's output between the last two times it was computed.

    Attributes:
        change: `[samples, groups]`, the mean over guidance branches; NaN where it is not known.
        groups: the modules, by path, in the order they were first measured in; later steps append.
    """

    inside: ClassVar[bool] = True
    change: Tensor
    groups: tuple[str, ...]


class Policy(ABC):
    """Decides, for each sample of a batch on its own, whether a step is computed.

    A policy is frozen; what it remembers travels through `State`, so that an engine can snapshot,
    branch and reorder samples. `evidence` names the type that `decide` reads. A policy with
    numbers to be measured names their field in `measured`. One whose `observe` has no use for the
    error says so in `reads_error`, and is spared the tensor. Options that say the same in other
    ways, of which only one can be followed, are its `alternatives`.

    A policy of scope "step" has no `groups`: it takes one decision for all that its site avoids.
    One of scope "site" names the groups of modules that the columns of its masks stand for, such as
    the roles of `diffcache.sites.Modules`, or decides on those that its evidence names. One that
    learns their names from a calibration says so in `by_group`.
    """

    evidence: ClassVar[type[Evidence]] = NoEvidence
    measured: ClassVar[str | None] = None
    measured_is_needed: ClassVar[bool] = False
    reads_error: ClassVar[bool] = True
    alternatives: ClassVar[tuple[str, ...]] = ()
    by_group: ClassVar[bool] = False
    groups: tuple[str, ...] = ()

    def revised(self, **options: Any) -> Policy:
        """The policy with these options replaced, and with them their alternatives."""
        defaults = {name: getattr(type(self), name) for name in self.alternatives}
        # What is None by default is left out by None.
        if any(n in options and not (options[n] is defaults[n] is None) for n in defaults):
            options = defaults | options
        return replace(self, **options)

    def init(self, samples: int) -> State:
        """State of a run of `samples` samples before its first decision."""
        return {}

    @abstractmethod
    def decide(self, step: Step, evidence: Evidence, state: State) -> tuple[Decision, State]:
        """The decision, True = compute this step, and the state after deciding.

        It is `[samples, groups]` where the policy or its evidence has groups.
        """

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        """Learns from a step that was computed for the samples whose entry in `computed` is True.

        `error` `[samples]` is the measured relative error ‖truth − forecast‖ / ‖truth‖ of the
        forecast that would have stood in for the step, NaN where none could be made.
        """
        return state

    def fill(self, mask: list[bool], must: Sequence[bool], state: State) -> list[bool]:
        """The `mask` to run, for one that guards have added to.

        It may compute more, and fewer of those samples that do not `must` compute by a guard.
        """
        return mask

    def row_counts(self, samples: int) -> tuple[int, ...]:
        """How many samples of a batch of `samples` a step may compute, ascending."""
        return tuple(range(samples + 1))

    def remark(self, steps: int, samples: int) -> str | None:
        """What the report of a generation of so many steps and samples is to say, if anything."""
        return None

    def fit(self, statistics: Statistics) -> Policy:
        """The policy with what a calibration has measured.

        Raises:
            ValueError: there is nothing to measure, or `statistics` lacks it.
        """
        raise ValueError(f"{type(self).__name__} takes no calibration; leave out calibration=")


def decides_alone(policy: object) -> bool:
    """Whether this is a policy that takes one decision a sample from the step alone."""
    if not isinstance(policy, Policy) or policy.evidence is not NoEvidence:
        return False
    return not (policy.groups or policy.by_group)


def labelled(label: str, state: State) -> State:
    """The state of one of several policies, for the state of what asks them all."""
    return {f"{label}.{name}": value for name, value in state.items()}


def part_of(state: State, label: str) -> State:
    """Takes back `labelled`."""
    prefix = f"{label}."
    return {k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)}


def compute_all(samples: int) -> Tensor:
    """The mask that skips nothing."""
    return torch.ones(samples, dtype=torch.bool)


def all_or_none(samples: int) -> tuple[int, ...]:
    """The row counts of a policy that decides alike for every sample."""
    return (0, samples)


def per_sample(name: str, value: float | tuple[float | None, ...], samples: int) -> list[float]:
    """A knob as a number a sample; None computes all, which is a knob of 0.

    Raises:
        ValueError: a sequence was given whose length is not the number of samples.
    """
    values = value if isinstance(value, (tuple, list)) else (value,) * samples
    if len(values) != samples:
        raise ValueError(
            f"{name}={list(values)} has {len(values)} entries for a batch of {samples}; "
            f"pass one number, or one for each of the {samples} samples"
        )
    return [0.0 if v is None else float(v) for v in values]
