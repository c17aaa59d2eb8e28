"""What a generation did, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Rule = Literal["skip", "policy", "first", "protect", "cap", "full"]
"""What bound at a step for a sample; `Event` says what each means."""


Outcome = tuple[list[bool], list[Rule | None]]
"""The mask of a step, and by sample what had it computed whatever the policy said."""


class Event(NamedTuple):
    """One step of a generation, and why each sample was computed or skipped.

    Attributes:
        step: its index in the report's mask.
        timestep: the scheduler's.
        rules: by sample, "skip" where it was skipped; else why it was computed. "policy": by the
            method's policy, such as a tolerance, an interval or a mask, or along with samples that
            it must not be set apart from; "first": nothing was known yet, or any more; "protect":
            the step is one of those that `protect` names; "cap": as many steps in a row were
            skipped as `max_consecutive_skips` allows; "full": all of the run is computed, and a
            note says why.
    """

    step: int
    timestep: float
    rules: tuple[Rule, ...]

    @classmethod
    def of(
        cls, step: int, timestep: float, mask: Sequence[bool], forced: Sequence[Rule | None]
    ) -> Event:
        """The event of a step with this `mask`, computed in part whatever the policy said."""
        pairs = zip(mask, forced, strict=True)
        rules = ((rule or "policy") if done else "skip" for done, rule in pairs)
        return cls(step, timestep, tuple(rules))


@dataclass(eq=False)
class Report:
    """The account of one generation.

    Attributes:
        method: name of the method.
        steps: scheduler steps made, as far as they were observed; those of a scheduler that a
            callback puts in are not.
        rows: denoiser rows a full step has (samples × guidance branches).
        computed: row-steps that the denoiser really computed; where a policy decides by group of
            modules, by the share of the modules that computed. The check that rows are
            independent, which a note tells of, is left out.
        total: row-steps that a plain pipeline would have computed.
        calls: denoiser calls that ran the denoiser at all.
        mask: `[steps, samples]` bool, True = computed, of all runs where the call denoised several
            times; `wrap(pipe, mask=report.mask)` replays it, but for methods that decide by module,
            role or guidance branch, for which it says less than was decided. Steps from the one at
            which a cache was given up count as computed. Empty where the number of samples
            changed, which a note tells of, or the cache was given up before the first step.
        trace: one `Event` a step, until a cache is given up.
        cache_bytes: most memory the caches held.
        host_reads: how often the host waited for a value from the denoiser's device; counted on
            the CPU too, where there is nothing to wait for.
        prefix: row-steps whose outputs were kept for `refine`; in the report of a refined
            generation, those that were taken from there in place of being computed.
        prefix_bytes: memory that they hold as long as the request does.
        seconds: wall time of the generation.
        notes: every time a cache was refused and why, and a warning when nothing was skipped.
    """

    method: str
    steps: int = 0
    rows: int = 0
    computed: float = 0
    total: int = 0
    calls: int = 0
    mask: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.bool))
    trace: list[Event] = field(default_factory=list)
    cache_bytes: int = 0
    host_reads: int = 0
    prefix: int = 0
    prefix_bytes: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def compute_fraction(self) -> float:
        """Row-steps computed over row-steps of the plain pipeline; 1 where nothing ran."""
        return self.computed / self.total if self.total else 1.0

    def called(self, rows: int, computed: float, ran: bool = True) -> None:
        """Counts a denoiser call of so many rows, and whether it ran the denoiser at all."""
        self.total += rows
        self.computed += computed
        self.calls += ran

    def note(self, text: str | None) -> None:
        """Adds a note once, where there is something to note."""
        if text is not None and text not in self.notes:
            self.notes.append(text)

    def enter(self, masks: list[list[bool]], computed: int) -> None:
        """Makes the mask of those of the steps, and of as many `computed` ones after them."""
        batches = list(dict.fromkeys(map(len, masks)))
        if len(batches) == 1:
            self.mask = torch.tensor(masks + [[True] * batches[0]] * computed)
        elif batches:
            self.note(
                f"no mask: the call denoised batches of {' and of '.join(map(str, batches))}; a "
                "list of steps, as in mask=[True, False, True], plays for batches of any size"
            )

    def timeline(self, sample: int = 0) -> str:
        """One character a step: █ computed, · skipped."""
        steps = self.mask[:, sample].tolist() if self.mask.numel() else []
        return "".join("█" if computed else "·" for computed in steps)

    def bound(self) -> dict[Rule, int]:
        """How often each rule bound, over steps and samples."""
        counts: dict[Rule, int] = {}
        for event in self.trace:
            for rule in event.rules:
                counts[rule] = counts.get(rule, 0) + 1
        return counts

    def __str__(self) -> str:
        notes = [f"  note     {text}" for text in self.notes]
        if not self.total:
            return "\n".join([f"diffcache {self.method}: no denoiser call was observed", *notes])
        rules = ", ".join(f"{rule} {count}" for rule, count in sorted(self.bound().items()))
        lines = [
            f"diffcache {self.method}: {self.computed:.0f} of {self.total} row-steps computed "
            f"({self.compute_fraction:.0%})",
            f"  steps    {self.steps} × {self.rows} rows, {self.calls} denoiser calls",
            f"  rules    {rules or 'none'}",
            f"  cache    {self.cache_bytes / 2**20:.2f} MiB",
            f"  waits    {self.host_reads} for the device",
            f"  seconds  {self.seconds:.2f}",
        ]
        if self.prefix:
            size = f"{self.prefix_bytes / 2**20:.2f} MiB"
            lines.append(f"  prefix   {self.prefix} row-steps before the first skip, {size}")
        shown = min(self.mask.shape[1], 8)
        lines += [f"  sample {i} {self.timeline(i)}" for i in range(shown)]
        return "\n".join(lines + notes)
