"""Policies that read no evidence: a fixed or growing interval, and a mask played back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffcache.options import are_numbers, check_count, check_number

from .base import (
    Decision,
    NoEvidence,
    Policy,
    State,
    Step,
    all_or_none,
    decides_alone,
    labelled,
    part_of,
)


@dataclass(frozen=True)
class Interval(Policy):
    """Computes one step in `every`, counted from `phase` steps after step `start`.

    The steps before `start` are computed.

    Args:
        every: the interval in steps; None never computes from `start` on.
        start: the first step that may be skipped.
        phase: steps from `start` to the one that the interval is counted from.
        within: skips only at timesteps between these two of 1000, both exclusive; None for
            anywhere.
    """

    every: int | None = 2
    start: int = 0
    phase: int = 0
    within: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            check_count("every", self.every, 2, least=1)
        check_count("start", self.start, 3)
        check_count("phase", self.phase, 0)
        pair = are_numbers(self.within) and len(self.within) == 2
        if self.within is not None and not pair:
            raise ValueError(f"within={self.within!r} is not a pair; try within=(100, 800)")

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        counted = step.index - self.start
        due = self.every is not None and (counted - self.phase) % self.every == 0
        compute = counted < 0 or due or not self._inside(step)
        return torch.full((evidence.samples,), compute), state

    def row_counts(self, samples: int) -> tuple[int, ...]:
        return all_or_none(samples)

    def _inside(self, step: Step) -> bool:
        return self.within is None or self.within[0] < step.timestep < self.within[1]


@dataclass(frozen=True)
class Gated(Policy):
    """Asks one policy before step `gate` and another from it on.

    Args:
        gate: the first step of the second phase.
        before: the first phase's policy, which reads no evidence.
        after: the second phase's, likewise.

    Raises:
        ValueError: `gate` is no count, or a phase's policy reads evidence.
    """

    gate: int
    before: Policy
    after: Policy

    def __post_init__(self) -> None:
        check_count("gate", self.gate, 10)
        for phase in (self.before, self.after):
            if not decides_alone(phase):
                raise ValueError(
                    f"Gated: {phase!r} is no policy that decides from the step alone; "
                    f"try Gated({self.gate}, Interval(2), Interval(5))"
                )

    def init(self, samples: int) -> State:
        # Whether the last decision was the second phase's, for what is asked without a step.
        state: State = {"late": [False] * samples}
        for name, phase in map(self._phase, (False, True)):
            state |= labelled(name, phase.init(samples))
        return state

    def _phase(self, late: bool) -> tuple[str, Policy]:
        return ("after", self.after) if late else ("before", self.before)

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Decision, State]:
        late = step.index >= self.gate
        name, phase = self._phase(late)
        mask, own = phase.decide(step, evidence, part_of(state, name))
        return mask, {**state, **labelled(name, own), "late": [late] * len(mask)}

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        name, phase = self._phase(step.index >= self.gate)
        own = phase.observe(step, error, computed, part_of(state, name))
        return {**state, **labelled(name, own)}

    def fill(self, mask: list[bool], must: Sequence[bool], state: State) -> list[bool]:
        name, phase = self._phase(any(state["late"]))
        return phase.fill(mask, must, part_of(state, name))

    def row_counts(self, samples: int) -> tuple[int, ...]:
        phases = self.before.row_counts(samples), self.after.row_counts(samples)
        return tuple(sorted(set().union(*phases)))


@dataclass(frozen=True)
class GrowingInterval(Policy):
    """Computes one step in `window`, which grows with every step computed (Spectrum, CVPR 2026).

    Args:
        window: steps from one computed step to the next, rounded down.
        growth: what `window` gains after a computed step; published 0.75 and 3.
        start: the steps before it are computed and leave the window as it is.
    """

    window: float = 2.0
    growth: float = 0.75
    start: int = 5

    def __post_init__(self) -> None:
        check_number("window", self.window, 2.0)
        check_number("growth", self.growth, 0.75)
        check_count("start", self.start, 5)
        if self.window < 1:
            raise ValueError(f"window={self.window!r} is less than a step; try window=2.0")

    def init(self, samples: int) -> State:
        return {
            "window": torch.full((samples,), float(self.window), dtype=torch.float64),
            "since": torch.zeros(samples, dtype=torch.float64),
        }

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        since = state["since"] + 1
        compute = (since >= state["window"].floor()) | (step.index < self.start)
        return compute, {**state, "since": since}

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        renewed = torch.as_tensor(computed)
        grown = renewed & (step.index >= self.start)
        return {
            "window": state["window"] + self.growth * grown,
            "since": state["since"].masked_fill(renewed, 0.0),
        }


@dataclass(frozen=True)
class Mask(Policy):
    """Plays back the decisions of an earlier run: `report(pipe).mask`, a schedule, a list.

    Args:
        mask: rows are the steps of a call, those of all its runs where it denoises several times;
            columns are samples, True = compute. One flat list of steps serves any batch. Steps
            beyond its end are computed, and so is a batch of another size.
    """

    mask: tuple[tuple[bool, ...], ...]

    def __post_init__(self) -> None:
        try:
            rows = torch.as_tensor(self.mask)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"mask={self.mask!r} is no table of decisions; pass steps × samples or a list of "
                "steps, for example mask=[True, False, True]"
            ) from error
        if rows.ndim not in (1, 2) or rows.numel() == 0:
            raise ValueError(
                f"mask has shape {tuple(rows.shape)}; pass steps × samples or a list of steps, for "
                "example mask=[True, False, True]. A report's mask is empty where the call "
                "denoised batches of several sizes or was given up at once, as its notes say"
            )
        rows = rows.bool().reshape(len(rows), -1).tolist()
        object.__setattr__(self, "mask", tuple(tuple(row) for row in rows))

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        place = step.earlier + step.index
        row = self.mask[place] if place < len(self.mask) else (True,)
        if len(row) == 1:
            row = row * evidence.samples
        if len(row) != evidence.samples:
            row = (True,) * evidence.samples
        return torch.tensor(row), state

    def row_counts(self, samples: int) -> tuple[int, ...]:
        played = {sum(row) for row in self.mask if len(row) == samples}
        return tuple(sorted({*all_or_none(samples), *played}))

    def remark(self, steps: int, samples: int) -> str | None:
        columns = len(self.mask[0])
        if columns not in (1, samples):
            return (
                f"the mask is of {columns} samples and the batch was of {samples}, so everything "
                "was computed; one list of steps serves any batch"
            )
        if len(self.mask) != steps:
            return (
                f"the mask is of {len(self.mask)} steps and the generation made {steps}: it was "
                "played from the first, and steps beyond its end were computed"
            )
        return None
