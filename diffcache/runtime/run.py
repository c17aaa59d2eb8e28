"""One pass over a scheduler's timesteps: decisions, evidence and caches of its samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from math import nan
from typing import Any

import torch
from torch import Tensor

from diffcache.policies import DraftError, ForecastError, ModuleChange, ProbeChange

from .composition import Composition, Stage
from .corrections import Corrections
from .decisions import Decisions
from .lanes import Lanes
from .recorder import recording
from .repeats import Repeats
from .report import Outcome
from .rows import joined
from .schedulers import stochastic_by_call, stochastic_by_kind
from .timetable import Timetable


class Run:
    """The mutable state between one `set_timesteps` and the next.

    Attributes:
        total: steps of the run; None before the first was seen.
        index: steps made, which is the current step's number.
        now, step: when that is, and what policies are told of it.
        predictor: the method's, on this run's timetable.
        in_forward: whether the policy's evidence appears inside the denoiser's forward.
        verifies: whether the policy accepts or rejects forecasts inside the denoiser's forward.
        measures_modules: whether the policy reads how far each module's output is from its last.
        corrections: made to the samples, where that is known how.
        keeps_past: whether evidence, corrections or damping read earlier predictions.
        decisions: what is computed of each step.
        step_rows, widest: denoiser rows of the current step so far, and of the run's largest call.
        stage: what is known of the evaluation that is being made, once the batch size is.
        awaiting: told the guided prediction of the step that is being made, once.
        repeats: of scheduler steps that are made more than once.
    """

    def __init__(self, method: Composition, scheduler: Any, kind: str, earlier: int = 0) -> None:
        self.method = method
        self.scheduler = scheduler
        # As Heun does. Of an instance, diffusers would look for it in its configuration, at length.
        self.evaluates_twice = hasattr(type(scheduler), "state_in_first_order")
        self.timetable = Timetable(scheduler, earlier)
        self.total: int | None = None
        self.decisions = Decisions(method)
        self._enter(0)
        self.predictor = method.predictor
        self.in_forward = method.policy.evidence is ProbeChange
        self.verifies = method.policy.evidence is DraftError
        self.measures_modules = method.policy.evidence is ModuleChange
        course = self.timetable.course if self.predictor.corrects else None
        self.corrections = None if course is None else Corrections(self.predictor, course)
        measured = method.damps or method.policy.evidence is ForecastError
        self.keeps_past = measured or self.corrections is not None
        self.awaiting: list[Callable[[Tensor], None]] = []
        self.repeats = Repeats(self.timetable)
        # What the scheduler was last given in place of its arguments.
        self._given: dict[str, Tensor] = {}
        self._version: Hashable = None
        self._moved: Tensor | None = None
        self._edited = nan
        self.samples: int | None = None
        self.lanes = Lanes(self.predictor.anchors)
        self.stages: dict[int, Stage] = {}
        self.stage: Stage | None = None
        self.stage_number = 0
        self.step_rows = self.widest = self._most = 0
        # Whether the scheduler steps the frames of videos, all of which are taken for one sample.
        self._folds = False
        self.lane_masks: list[list[bool]] = []
        self.books: list[Outcome] = []
        self.notes: list[str] = []
        if method.guards.stochastic:
            self.decisions.unless_forced(stochastic_by_kind(scheduler, kind))

    def revise(self, method: Composition) -> None:
        """Goes on with other guards or options of the same parts."""
        self.method = self.decisions.method = method

    @property
    def bytes(self) -> int:
        kept = (tensor.nbytes for tensor in self._given.values())
        return self.lanes.bytes + sum(stage.bytes for stage in self.stages.values()) + sum(kept)

    @property
    def most_bytes(self) -> int:
        """The most that `bytes` was where caches were dropped, or is now."""
        return max(self._most, self.lanes.most, self.bytes)

    def _enter(self, index: int) -> None:
        """Makes `index` the current step."""
        self.index = index
        self.now, self.step = self.timetable.at(index)
        self._settled: tuple[list[bool], list[bool]] | None = None

    def follow(self, timestep: Tensor | float | None) -> None:
        """Computes everything where `timestep` is surely not that of the current step."""
        if self.decisions.full is None and self.timetable.elsewhere(timestep, self.index):
            why = "the scheduler is not stepped from each timestep to the next"
            self.decisions.unless_forced(why)

    def _locate(self, timestep: Any, total: int | None) -> None:
        """Settles where in the timetable the run is, with its first step."""
        guards, timetable = self.method.guards, self.timetable
        timetable.locate(timestep, total, guards, self.scheduler)
        self.total = timetable.total
        self.predictor = self.predictor.over(tuple(timetable.scaled[timetable.begin :]))
        self._enter(self.index)
        self.lanes.restamp(self.now.time)
        if self.total <= guards.few_steps:
            self.decisions.unless_forced(f"a run of {self.total} steps has too few to skip any")

    def _enter_stage(self) -> None:
        """Makes the stage of the current number, of a known batch size, the one that is used."""
        if self.stage_number not in self.stages:
            self.stages[self.stage_number] = Stage.of(self.method, self.samples)
        self.stage = self.stages[self.stage_number]

    def note(self, text: str | None) -> None:
        """Says something once in the generation's report, where there is something to say."""
        if text is not None and text not in self.notes:
            self.notes.append(text)

    def compare(self, version: Hashable) -> None:
        """Starts afresh where a callback has changed the denoiser since the last step."""
        if self.index and self._version not in (None, version):
            self.forget("weights, adapters or attention processors changed", self.index)
        self._version = version

    def forget(self, why: str, step: int) -> None:
        """Drops what was computed and measured, for what happened before `step`."""
        self._most = self.most_bytes
        self.lanes = Lanes(self.predictor.anchors)
        self._begin_with(self.samples)
        if self.decisions.full is None:
            self.note(f"{why} before step {step}, so the caches were started afresh")

    def edited(self) -> None:
        """Starts afresh where the latents were edited after the last step."""
        if self.samples is not None and self.index < self.total:
            # Who edits them after each step goes the way of any sampler, which may be forecast.
            last, self._edited = self._edited, self.index
            if not self.index - last <= getattr(self.scheduler, "order", 1):
                self.forget("latents were edited", self.index)

    def _begin_with(self, samples: int) -> None:
        """Makes this step the first one of so many samples, of which nothing was measured."""
        self.samples = samples
        self._unmeasured = torch.full((samples,), nan, dtype=torch.float64)
        self.stages.clear()
        self.stage = None
        # What is folded may yet turn out not to be the step that counts.
        if self.index or not self._folds:
            self._enter_stage()
        self.decisions.begin(samples)
        self.lane_masks, self._settled = [], None

    def echoes(self, arguments: dict[str, Any]) -> bool:
        """Whether the last step is made once more, of the same prediction."""
        return not self.step_rows and self.repeats.echo(arguments)

    def restarts(self, arguments: dict[str, Any]) -> bool:
        """Whether the first step is made once more."""
        return self.index == 1 and not self.step_rows and self.repeats.again(arguments)

    def _retake(self) -> None:
        """Takes the first step back, for one that is made in its place."""
        self.repeats.expect(more=True)
        self.samples, self.timetable.rows = None, 0.0
        self.books.clear()
        self._enter(0)

    def attend(self, timestep: Tensor | float | None) -> None:
        """Makes ready for a call at `timestep`, of a later step than the first."""
        self.follow(timestep)
        if not self.widest:
            # Others made the steps before, of which nothing is known.
            self._begin_with(self.samples)
        elif self.stage is None:
            self._keep_folded()

    def _keep_folded(self) -> None:
        """Takes in that the first step was the one that counts, though it is of frames."""
        self._enter_stage()
        first, everyone = self.timetable.at(0)[1], [True] * self.samples
        stage, policy = self.stage, self.method.policy
        stage.state = policy.observe(first, self._unmeasured, everyone, stage.state)
        self.note(
            "the scheduler steps more rows than the denoiser is given, so all are decided on "
            "together"
        )

    def corrected(self, arguments: dict[str, Any]) -> dict[str, Tensor]:
        """What to give the scheduler's step in place of some of its arguments."""
        if self.echoes(arguments):
            return self._given
        self._given = {}
        if self.repeats.ahead or self.restarts(arguments):
            return {}
        if self.index:
            self.follow(arguments.get("timestep"))
        # A loop may step again after an error, and make calls before it does.
        self._settled = self._moved = None
        known = self.corrections is not None and self.stage is not None and not self._folds
        if not (known and self.decisions.full is None and any(self.stage.skipped)):
            return {}
        self._given = self.corrections.step(
            self.scheduler, arguments, self._outcome()[1], self.stage, self.lanes, self.now
        )
        self._moved = self._given.get("model_output")
        return self._given

    def stepped(
        self, arguments: dict[str, Any], latents: Tensor, total: Callable[[Any], int | None]
    ) -> None:
        """Takes in a scheduler step; the next denoiser call belongs to the next step.

        `total` gives the own count of steps of the pipeline that steps a scheduler, if it has one.
        """
        prediction = arguments["model_output"]
        if self.restarts(arguments):
            self._retake()
        if not self.index:
            self._folds = 0 < self.widest < prediction.shape[0]
        if self._folds:
            prediction, latents = prediction[None], latents[None]
        before, samples = self.samples, prediction.shape[0]
        if samples != before:
            self._begin_with(samples)
        if self.total is None:
            self._locate(arguments.get("timestep"), total(self.scheduler))
        if self.decisions.full is None and self.method.guards.stochastic:
            self.decisions.unless_forced(stochastic_by_call(arguments))
        while self.awaiting:
            self.awaiting.pop()(prediction)
        if (recorder := recording.get()) is not None:
            recorder.predicted(prediction, self.total)
        if self.timetable.counts_anew(self.step_rows / self.samples):
            self._enter(self.index)
        self._observe(prediction, latents)
        self.note(self.lanes.next_step())
        self._enter(self.index + 1)
        if self.evaluates_twice and self.stage is not None:
            self.stage_number = 0 if self.scheduler.state_in_first_order else 1
            self._enter_stage()
        self.step_rows = 0
        self.repeats.took(arguments, self.index == 1)
        self.decisions.next_step()
        if before not in (None, samples):
            # The step's calls were still taken for those of the other samples.
            self.forget(f"the number of samples changed from {before} to {samples}", self.index - 1)

    def _observe(self, prediction: Tensor, latents: Tensor) -> None:
        """Evidence and books for the step just made."""
        (mask, truth), stage = self._outcome(), self.stage
        self.books.append((mask, self.decisions.forced))
        self.lane_masks = []
        if stage is None:
            return
        if self.decisions.full is None and (not self.in_forward or any(truth)):
            policy = self.method.policy
            found = stage.collector.after(self.now, prediction, latents, truth)
            error = self._unmeasured
            if found is not None and policy.reads_error:
                error = torch.tensor(found, dtype=torch.float64)
            stage.state = policy.observe(self.step, error, truth, stage.state)
            if self.keeps_past and any(truth):
                # What is forecast from, and so what a forecast's error is to be measured by.
                made_with = prediction if self._moved is None else self._moved
                stage.keep(made_with, self.now, truth)
        self._moved = None
        stage.skipped = [0 if done else n + 1 for done, n in zip(mask, stage.skipped, strict=True)]

    def _outcome(self) -> tuple[list[bool], list[bool]]:
        """The step's mask, and whose predictions come of nothing but computed calls."""
        if self._settled is None:
            mask, seen = self.decisions.mask, self.lane_masks
            if mask is None or self.verifies or seen.count(mask) < len(seen):
                decided = None if self.verifies else mask
                unasked = decided is None and not (self.in_forward or self.verifies)
                mask = joined([] if unasked else seen, decided, self.samples)
            alike = seen.count(mask) == len(seen)
            truth = mask if alike else [all(each) for each in zip(mask, *seen, strict=True)]
            self._settled = mask, truth
        return self._settled
