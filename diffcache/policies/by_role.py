"""One policy a role: attention, cross-attention and MLPs go stale at different rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import (
    NoEvidence,
    Policy,
    State,
    Step,
    compute_all,
    decides_alone,
    labelled,
    part_of,
)


@dataclass(frozen=True)
class ByRole(Policy):
    """Asks a policy of its own for each role of a module site, once a step (scope "site").

    `decide` gives `[samples, roles]`, which the site applies to every module of a role. In the mask
    of a report a step counts as computed where all roles compute; guards make all roles compute. A
    role without a policy is always computed, and one that a denoiser has no module of counts for
    nothing.

    Args:
        policies: a mapping from role ("self", "cross", "temporal", "mlp") to a policy that reads
            no evidence and has no groups of its own.

    Raises:
        ValueError: no policy was given, or one reads evidence or has groups.
    """

    policies: tuple[tuple[str, Policy], ...]

    def __post_init__(self) -> None:
        given = self.policies
        try:
            named = given.items() if isinstance(given, Mapping) else given
            pairs = tuple((role, policy) for role, policy in named)
        except (TypeError, ValueError):
            pairs = ()
        if not pairs:
            raise ValueError(
                f"policies={given!r} has no policy for a role; try ByRole({{'self': Interval(2)}})"
            )
        for role, policy in pairs:
            if not decides_alone(policy):
                raise ValueError(
                    f"ByRole: {policy!r} for {role!r} is no policy that decides from the step "
                    f"alone; try ByRole({{{role!r}: Interval(2)}})"
                )
        object.__setattr__(self, "policies", pairs)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(role for role, _ in self.policies)

    def init(self, samples: int) -> State:
        # Of each role, who was computed because its own policy wanted to.
        state: State = {}
        for role, policy in self.policies:
            state |= labelled(role, {**policy.init(samples), "wanted": compute_all(samples)})
        return state

    def decide(self, step: Step, evidence: NoEvidence, state: State) -> tuple[Tensor, State]:
        masks, after = [], {}
        for role, policy in self.policies:
            mask, own = policy.decide(step, evidence, part_of(state, role))
            masks.append(torch.as_tensor(mask))
            after |= labelled(role, {**own, "wanted": masks[-1]})
        return torch.stack(masks, 1), after

    def observe(self, step: Step, error: Tensor, computed: Sequence[bool], state: State) -> State:
        after: State = {}
        for role, policy in self.policies:
            own = part_of(state, role)
            wanted = own.pop("wanted")
            done = torch.as_tensor(computed) | wanted
            learnt = policy.observe(step, error, done.tolist(), own)
            after |= labelled(role, {**learnt, "wanted": wanted})
        return after
