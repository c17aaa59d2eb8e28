"""What is computed of a step: what the policy wants, under the guards, for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffcache.policies import Decision, ProbeChange, State, Step

from .composition import Composition, Stage
from .history import Anchor
from .report import Rule


class Decisions:
    """Takes the decisions of a run, one a step, and holds that of the step being made.

    Attributes:
        method: whose policy and guards are asked.
        full: why all of the run is computed; None where it is not.
        uniform: whether all samples are computed together or none is.
        mask: the step's, `[samples]`; None where it has none yet.
        groups: where the policy decides by group of modules, each one's mask.
        present: the groups that there are any modules of.
        forced: by sample, what has the step computed whatever the policy says.
    """

    def __init__(self, method: Composition) -> None:
        self.method = method
        self.full: str | None = None
        self.uniform = False
        self.mask: list[bool] | None = None
        self.groups: dict[str, list[bool]] = {}
        self.present: set[str] = set()
        self.forced: list[Rule | None] = []

    def begin(self, samples: int) -> None:
        """Makes this step the first one of so many samples, which is computed."""
        self.mask, self.groups = [True] * samples, {}
        self.forced = ["first"] * samples

    def next_step(self) -> None:
        """Makes way for the decision of the next step."""
        self.mask, self.groups = None, {}

    def couple(self) -> None:
        """From this step on, all samples are computed together or none is."""
        self.uniform = True
        if self.groups or any(self.mask or ()):
            self._compute_all()

    def differentiate(self) -> None:
        """Computes everything, as nobody could go back through a forecast."""
        self.full = "gradients flow through the denoiser; torch.no_grad() lets it skip"
        if self.mask is not None:
            self._compute_all()

    def unless_forced(self, why: str | None) -> None:
        """Computes everything for this reason, if it is one, which `force` overrules."""
        if self.full is None and why is not None and not self.method.guards.force:
            self.full = f"{why}; force=True skips all the same"

    def _compute_all(self) -> None:
        self.mask, self.groups = [True] * len(self.mask), {}

    def decide(self, step: Step, now: Anchor, stage: Stage | None) -> list[bool] | None:
        """The step's mask `[samples]`, taken once a step; None where a probe is to be asked.

        Before the batch size is known, for which there is no `stage`, everything is computed.
        """
        if self.mask is not None or stage is None:
            return self.mask
        skipped = stage.skipped
        if self.full is None:
            self.forced = self.method.guards.bound(step.index, step.total, skipped)
        else:
            self.forced = ["full"] * len(skipped)
        if self.method.policy.evidence is ProbeChange:
            if all(self.forced):
                self.mask = [True] * len(skipped)
            return self.mask
        evidence = stage.collector.before(now)
        wanted, stage.state = self.method.policy.decide(step, evidence, stage.state)
        self.mask = self._bind(wanted, stage.state, self.method.policy.groups or evidence.groups)
        return self.mask

    def ask(self, step: Step, change: Tensor, state: State | None) -> tuple[list[bool], State]:
        """Mask `[samples]` of a lane whose probe changed by `change` `[samples]`, and its state."""
        policy = self.method.policy
        state = policy.init(len(change)) if state is None else state
        wanted, state = policy.decide(step, ProbeChange(change), state)
        mask = self._bind(wanted, state)
        return mask, policy.observe(step, torch.full_like(change, torch.nan), mask, state)

    def rejected(self, step: Step, error: Tensor) -> list[bool]:
        """Which samples' drafts are not accepted, by their `error` `[samples]`."""
        found = (~self.method.policy.accept(step, error)).tolist()
        return [True] * len(found) if self.uniform and any(found) else found

    def _bind(self, wanted: Decision, state: State, groups: Sequence[str] = ()) -> list[bool]:
        wants = wanted.tolist() if isinstance(wanted, Tensor) else wanted
        if isinstance(wants[0], list):
            columns = dict(zip(groups, map(list, zip(*wants, strict=True)), strict=True))
            self.groups = {group: self._bound(column) for group, column in columns.items()}
            # A step counts as computed where nothing of it was bypassed.
            seen = [c for group, c in columns.items() if group in self.present or not self.present]
            wants = [all(column[sample] for column in seen) for sample in range(len(wants))]
        mask = self._bound(wants)
        if not self.groups and any(mask) and not all(mask):
            must = [rule is not None for rule in self.forced]
            mask = self.method.policy.fill(mask, must, state)
        return mask

    def _bound(self, wanted: list[bool]) -> list[bool]:
        """What a policy wants, under the guards, and alike for samples that must not differ."""
        mask = wanted
        if any(self.forced):
            mask = [rule is not None or want for rule, want in zip(self.forced, mask, strict=True)]
        return [True] * len(mask) if self.uniform and any(mask) else mask
