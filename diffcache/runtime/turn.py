"""One denoiser call, as a site sees it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

from .lanes import Lane
from .promises import kept
from .reading import Reader, on_host
from .recorder import recording
from .rows import as_index, map_leaves, samples_to_rows
from .run import Run

Decided = tuple[list[bool] | None, dict[str, list[bool]], list[list[bool]]]
"""Who computes: the mask of the call, that of each group, and those that modules were given."""


class Turn:
    """What a site needs to serve one call: the call, who computes, and the lane's values.

    Attributes:
        args, kwargs: the call's arguments.
        rows: batch rows of the call.
        listed: whether the sample is a list with a tensor a row, and the output then one too.
        lane: the guidance branch that the call continues.
        mask: one bool a row, True = compute; None until a probe has been asked. Where the policy
            decides by group of modules, True = every group computes.
        groups: the mask of each group, where the policy decides by group.
        parts: the masks that modules were given, where the policy decides by group.
        asked: whether a probe was measured in the call.
        trial: whether who computes is not as decided, and drafts are not verified.
        proven: whether the denoiser is known to take gathered rows of such a call.
        in_model: whether the denoiser's own code is running, with nothing of it replaced: what it
            raises then it would raise in a plain pipeline too.
    """

    def __init__(
        self,
        run: Run,
        lane: Lane,
        invoke: Callable,
        args: tuple,
        kwargs: dict,
        rows: int,
        listed: bool = False,
    ) -> None:
        self.run, self.lane, self.rows, self.listed = run, lane, rows, listed
        self.args, self.kwargs = args, kwargs
        self._invoke = invoke
        self.ran = self.trial = False
        self.proven = self.in_model = self.asked = False
        self.mask: list[bool] | None = None
        self.groups: dict[str, list[bool]] = {}
        self.parts: list[list[bool]] = []
        self._settle(run.decisions.decide(run.step, run.now, run.stage))
        if run.measures_modules and run.samples is not None:
            run.stage.collector.attend(lane)

    def __enter__(self) -> None:
        """Serves the call; where that fails, one in its place continues the lane."""

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if error is not None:
            self.lane.release()

    def _settle(self, decision: list[bool] | None) -> None:
        samples = self.run.samples
        if samples is None or self.rows % samples:
            self.compute_all()
            if samples is not None:
                self.run.note(
                    f"a call of {self.rows} rows was computed, as they are not those of the "
                    f"{samples} samples that the scheduler steps"
                )
        elif decision is not None:
            self.mask = samples_to_rows(decision, self.rows)
            if groups := self.run.decisions.groups:
                self.groups = {name: samples_to_rows(m, self.rows) for name, m in groups.items()}

    def ask(self, sums: Tensor) -> None:
        """Asks the policy with a probe's absolute change and size, each summed, `[2, rows]`.

        The mask then holds for the call. A probe that has not changed at all sees neither the
        sample nor the timestep, as the first block of a text refiner: every row then computes.
        """
        samples = self.run.samples
        memory = self.lane.memory
        reader = memory.get("reader")
        if reader is None:
            reader = memory["reader"] = Reader(self.lagged)
        found = reader.read(sums)
        self.asked = True
        if self.mask is not None:
            # A guard has decided; the next step reads this one's probe and no older one.
            return
        if found is None:
            return self.compute_all()
        totals = found.double()
        if self.rows > samples:
            totals = totals.reshape(2, -1, samples).sum(1)
        change, size = totals.unbind()
        if not change.any():
            self.run.note("the first block gave the same at two steps, so all blocks were computed")
            return self.compute_all()
        # Branches see different changes, so that each has a policy's memory of its own.
        run, known = self.run, memory.get("policy")
        mask, memory["policy"] = run.decisions.ask(run.step, change / size, known)
        self._settle(mask)

    @property
    def lagged(self) -> bool:
        """Whether policies read what was measured a step before the newest."""
        return self.run.method.lagged

    @property
    def sample_mask(self) -> list[bool]:
        """The mask by sample: True where all of its rows compute."""
        samples = self.run.samples
        if self.rows == samples:
            return self.mask
        if self.rows % samples:
            return [True] * samples
        return [all(self.mask[sample::samples]) for sample in range(samples)]

    def compute_all(self) -> None:
        """Makes every row compute."""
        self.decided = [True] * self.rows, {}, []

    def mask_of(self, *groups: str) -> list[bool]:
        """One bool a row for a module of these `groups`, once a call, as the books count it.

        A module that no policy decides on computes.
        """
        if not self.groups:
            return self.mask
        decided = (self.groups[group] for group in groups if group in self.groups)
        self.parts.append(next(decided, [True] * self.rows))
        return self.parts[-1]

    @property
    def decided(self) -> Decided:
        """Who computes, and the books of it."""
        return self.mask, self.groups, self.parts

    @decided.setter
    def decided(self, decided: Decided) -> None:
        self.mask, self.groups, self.parts = decided
        self.trial = False

    def leave_first_out(self) -> bool:
        """Makes as many rows compute as do, the last ones of each branch, and one at least.

        It is the first one that others may take from (OmniGen's rotary embedding), and a full run
        is to be compared with a row that computed everything. Returns whether that makes others
        compute.
        """
        groups = {name: self._last(mask) for name, mask in self.groups.items()}
        masks = groups.values() or [self._last(self.mask)]
        mask = list(map(all, zip(*masks, strict=True)))
        if groups == self.groups and mask == self.mask:
            return False
        self.decided = mask, groups, []
        self.trial = True
        return True

    def _last(self, mask: list[bool]) -> list[bool]:
        samples = self.run.samples
        branches = [sorted(mask[at : at + samples]) for at in range(0, self.rows, samples)]
        *others, _ = (row for branch in sorted(branches) for row in branch)
        return [*others, True]

    def invoke(self, args: tuple, kwargs: dict) -> Any:
        """Runs the denoiser."""
        self.ran = True
        plainly = self.proven or (args is self.args and kwargs is self.kwargs)
        if not self.proven:
            # The call may be made once more to check it, and UNets pop adapter residuals off.
            args, kwargs = map_leaves((args, kwargs), lambda leaf: leaf)
        self.in_model = plainly
        args, kwargs = kept((args, kwargs))
        output = self._invoke(*args, **kwargs)
        self.in_model = False
        return output

    def compute(self, part: Callable, *args: Any, **kwargs: Any) -> Any:
        """Runs a part of the denoiser with the arguments that the denoiser gives it."""
        self.in_model = True
        output = part(*args, **kwargs)
        self.in_model = False
        return output

    @property
    def computed(self) -> float:
        """How many rows compute; one that computes some of its modules counts in part."""
        return sum(map(sum, self.parts)) / len(self.parts) if self.parts else sum(self.mask)

    @property
    def full(self) -> bool:
        return all(self.mask)

    @property
    def none(self) -> bool:
        return not any(self.mask)

    @property
    def mixed(self) -> bool:
        """Whether some rows compute what others do not."""
        masks = self.groups.values() or [self.mask or []]
        return any(any(mask) and not all(mask) for mask in masks)

    @property
    def keeps(self) -> bool:
        """Whether anything is stored; not where all of the run is computed."""
        return self.run.decisions.full is None

    @property
    def verifies(self) -> bool:
        """Whether forecasts are drafts, to be verified inside the call."""
        return self.run.verifies

    def reject(self, error: Tensor) -> bool:
        """Makes rows compute whose samples' drafts erred too much, by `error` `[rows]`.

        Returns whether there are any that did not compute before.
        """
        if self.trial:
            return False
        samples = self.run.samples
        errors = on_host(error).double().reshape(-1, samples).mean(0)
        rejected = samples_to_rows(self.run.decisions.rejected(self.run.step, errors), self.rows)
        before, self.mask = self.mask, [a or b for a, b in zip(self.mask, rejected, strict=True)]
        return self.mask != before

    def index(self) -> Tensor:
        """The rows that compute."""
        return as_index(self.mask)

    def remember(
        self,
        key: Hashable,
        values: Sequence[Tensor],
        mask: list[bool] | None = None,
        group: str | None = None,
        own: bool = False,
        corrected: bool = False,
    ) -> None:
        """Stores `values` `[rows, ...]` of the rows that computed: in the call, or in `mask`.

        Args:
            key: what they are stored under.
            values: copied, unless they may be kept.
            mask: who computed, where it is not the call's.
            group: a calibration averages over the keys of one.
            own: whether nobody else has, or will have, memory of `values`.
            corrected: whether as many are kept as corrections read.
        """
        run, lane = self.run, self.lane
        if not self.keeps:
            return self.record(key, values, group)
        mask = self.mask if mask is None else mask
        rows = None if all(mask) else mask
        if run.measures_modules:
            lane.measure(key, values, rows)
        more = corrected and run.corrections is not None
        lane.history(key, more).append(values, run.now, rows, own)
        self.record(key, values, group)

    def record(self, key: Hashable, values: Sequence[Tensor], group: str | None = None) -> None:
        """Shows `values` `[rows, ...]` to the calibration that is running, if any."""
        if (recorder := recording.get()) is not None:
            recorder.take(self.lane, key, values, self.run.index, group)

    def can_forecast(self, key: Hashable, rows: int | None = None) -> bool:
        """Whether every row has a value stored under `key`, which has as many `rows` as the call,
        if not others."""
        history = self.lane.histories.get(key)
        wanted = self.rows if rows is None else rows
        return history is not None and history.rows == wanted and history.depth > 0

    def forecast(self, key: Hashable) -> list[Tensor]:
        """Forecasts `[rows, ...]` of what is stored under `key`, in new memory."""
        run = self.run
        factors = run.stage.damping(run.predictor)
        return self.lane.history(key).forecast(run.predictor, run.now, factors)
