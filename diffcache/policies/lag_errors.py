"""Static schedules by role, from errors that were measured beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from diffcache.options import check_number, is_number

from .base import NoEvidence, Policy, State, Step, compute_all
from .statistics import Statistics


def largest_lags(errors: Sequence[Sequence[float]], alpha: float, steps: int) -> tuple[bool, ...]:
    """SmoothCache's schedule `[steps]`, True = compute.

    From a computed step i, the largest lag whose error is at most `alpha` is skipped, and the step
    after it is computed. The first step and the last are always computed.

    Args:
        errors: relative L1 change between the outputs of steps i and i + lag, `errors[lag − 1][i]`.
        alpha: the largest error allowed.
        steps: steps of the run.
    """
    mask = [False] * steps
    step = 0
    while step < steps:
        mask[step] = True
        allowed = [
            lag for lag, row in enumerate(errors, start=1) if step < len(row) and row[step] <= alpha
        ]
        step += max(allowed, default=0) + 1
    mask[-1] = True
    return tuple(mask)


@dataclass(frozen=True)
class LagErrors(Policy):
    """SmoothCache: each role skips as far as its measured change allows (arXiv 2411.10510).

    Scope "site": `decide` gives `[samples, roles]`. The schedule is that of `largest_lags`.

    Args:
        alpha: largest relative L1 change; published 0.08 or 0.18 for 50 DDIM steps of DiT-XL, 0.35
            for 30 or 50 steps of rectified flow and DPM-Solver.
        errors: a mapping from role to `errors[lag − 1][step]`, the mean over a role's modules; None
            computes all until they are measured.

    Raises:
        ValueError: `errors` is empty or of something else, or `alpha` is no number.
    """

    alpha: float = 0.08
    errors: tuple[tuple[str, tuple[tuple[float, ...], ...]], ...] | None = None
    measured: ClassVar[str] = "errors"
    measured_is_needed: ClassVar[bool] = True
    by_group: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0.08)
        if self.errors is None:
            return
        given = self.errors.items() if isinstance(self.errors, Mapping) else self.errors
        try:
            frozen = tuple((role, tuple(map(tuple, rows))) for role, rows in given)
        except (TypeError, ValueError):
            frozen = ()
        numbers = (error for _, rows in frozen for row in rows for error in row)
        if not frozen or not all(map(is_number, numbers)):
            raise ValueError(
                f"errors={self.errors!r} has no measured errors; pass errors={{'self': [[…], …]}}, "
                "one row a lag, one number a step"
            )
        object.__setattr__(self, "errors", frozen)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(role for role, _ in self.errors or ())

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        if self.errors is None:
            return compute_all(evidence.samples), state
        masks = [largest_lags(rows, self.alpha, step.total) for _, rows in self.errors]
        row = [mask[step.index] if step.index < len(mask) else True for mask in masks]
        return torch.tensor(row).expand(evidence.samples, -1), state

    def fit(self, statistics: Statistics) -> LagErrors:
        """The policy with the errors that were measured; steps that were not are not skipped."""
        errors = {
            role: [
                [inf if error is None else error for error in curve[lag:]]
                for lag, curve in enumerate(curves, start=1)
            ]
            for role, curves in statistics.errors.items()
        }
        return replace(self, errors=errors)
