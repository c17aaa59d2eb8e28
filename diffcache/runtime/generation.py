"""The scope of one pipeline call, and the loop that serves denoiser calls inside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .checking import Checked, run_first, unchecked
from .names import Names, timestep_of
from .promises import kept
from .reading import waits
from .report import Report
from .rows import sample_of, tensor_leaves
from .run import Run
from .turn import Turn

current: ContextVar[Generation | None] = ContextVar("diffcache_generation", default=None)
"""The generation this thread or task is inside of."""


class Generation:
    """Serves denoiser calls and scheduler steps of one pipeline call and keeps its report.

    Attributes:
        runs: all passes over the scheduler's timesteps so far; `run` is the one under way.
        version: gives a value that changes with the denoisers' adapters, and in a pipeline's call
            with their weights; None where nobody can change them during the generation.
        watched: whether somebody may write to conditioning between the steps.
        fall_back: puts a site that keeps less on the denoisers, and gives the method with it; None
            where there is none.
        told: told the guided prediction of a run's first step, and how many steps the run has.
        trained: whether gradients are asked of a denoiser's parameters.

    Nothing that goes wrong in here costs the generation: the denoiser is then computed as plain
    diffusers would, to the end of the generation, and the report says why.
    """

    def __init__(
        self,
        method: Any,
        checked: Checked,
        expected_steps: Callable[[Any], int | None],
    ) -> None:
        self.method = method
        self.checked = checked
        self.expected_steps = expected_steps
        self.report = Report(method.name)
        self.runs: list[Run] = []
        self.run: Run | None = None
        self.handlers: dict[int, Callable] = {}
        self.version: Callable[[], Hashable] | None = None
        self.watched = False
        self.fall_back: Callable[[], Any] | None = None
        self.told: Callable[[Tensor, int], None] | None = None
        self.trained: Callable[[], bool] = lambda: False
        # A step that another one at its timestep is expected to follow.
        self._held: tuple | None = None
        self.broken = False
        self.steps_seen = 0
        self.masks: list[list[bool]] = []
        self.turn: Turn | None = None
        self._started = time.perf_counter()

    def timesteps_set(self, scheduler: Any, kind: str) -> None:
        """Starts a run; called after `set_timesteps`."""
        self.turn = None
        try:
            if self.run is not None and self.run.index == 0:
                self.runs.pop()
            if not self.broken:
                self._open_run(scheduler, kind)
        except Exception as error:
            self.survive(error)

    def scheduler_steps(self, scheduler: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """What to step `scheduler` with in place of some of these arguments."""
        self.turn = None
        try:
            known = self.run is not None and self.run.scheduler is scheduler
            if known and self._held is not None:
                self._catch_up(arguments.get("timestep"))
            return self.run.corrected(arguments) if known else {}
        except Exception as error:
            self.survive(error)
            return {}

    def scheduler_stepped(
        self, scheduler: Any, kind: str, arguments: dict[str, Any], latents: Any
    ) -> None:
        """Takes in a step of an observed scheduler."""
        if self.broken:
            self.steps_seen += 1
            return
        self.turn = None
        before = waits.count
        try:
            self._stepped(scheduler, kind, arguments, latents)
        except Exception as error:
            self.survive(error)
        self.report.host_reads += waits.count - before

    def _stepped(self, scheduler: Any, kind: str, arguments: dict[str, Any], latents: Any) -> None:
        if self.run is None:
            self._open_run(scheduler, kind)
        run = self.run
        if run.scheduler is not scheduler:
            return
        if run.echoes(arguments):
            return
        repeated = run.restarts(arguments)
        if run.repeats.ahead and not repeated:
            run.repeats.ahead -= 1
            self._held = scheduler, kind, arguments, latents
            return
        self.steps_seen += not repeated
        if not isinstance(arguments.get("model_output"), Tensor):
            return self._give_up("the scheduler steps something that is not one tensor")
        limit = self.method.guards.max_cache_bytes
        outgrown = limit is not None and run.bytes > limit
        if outgrown and self.fall_back is None:
            return self._give_up(f"the caches outgrew max_cache_bytes={limit}")
        run.stepped(arguments, latents, self.expected_steps)
        if self.told is not None and run.index == 1:
            self.told(arguments["model_output"], run.total)
        if outgrown:
            self._shrink(limit, scheduler, kind)

    def _catch_up(self, timestep: Any) -> None:
        """Takes in a held step, unless the next one's `timestep` is the same."""
        held, self._held = self._held, None
        if not self.run.repeats.at_same(held[2].get("timestep"), timestep):
            self.run.repeats.expect(more=False)
            self._stepped(*held)

    def _open_run(self, scheduler: Any, kind: str) -> None:
        made = len(self.masks) + sum(run.index for run in self.runs)
        self.run, self._held = Run(self.method, scheduler, kind, made), None
        self.runs.append(self.run)

    def _shrink(self, limit: int, scheduler: Any, kind: str) -> None:
        """Goes on with a site that keeps less, from the next step on."""
        self._close_runs()
        self.method, self.fall_back, self.told = self.fall_back(), None, None
        # The pipeline's count of steps is not that of the rest.
        self.expected_steps = lambda _: None
        self._open_run(scheduler, kind)
        self.report.note(
            f"the caches outgrew max_cache_bytes={limit}, so only whole outputs were kept from "
            f"step {self.steps_seen} on"
        )

    def call(
        self,
        attachment: Any,
        names: Names,
        invoke: Callable,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Any:
        """Serves one denoiser call: computes it, forecasts it, or some rows of each."""
        self.turn = None
        if not self.broken:
            before = waits.count
            try:
                self.turn = turn = self._turn(attachment, invoke, names, args, kwargs)
                if turn is not None:
                    with turn:
                        return self._serve(attachment, turn)
            except Exception as error:
                self.survive(error)
            finally:
                self.report.host_reads += waits.count - before
        return self._plainly(names, invoke, args, kwargs)

    def _serve(self, attachment: Any, turn: Turn) -> Any:
        attachment.plan(turn)
        turn.proven = turn.rows == 1 or not unchecked(attachment, turn, self.checked)
        if turn.proven:
            output = attachment.run(turn)
        else:
            output = run_first(attachment, turn, self.checked, self.report)
        report, run = self.report, turn.run
        report.called(turn.rows, turn.computed, turn.ran)
        run.step_rows += turn.rows
        run.widest = max(run.widest, turn.rows)
        report.rows = max(report.rows, run.step_rows)
        if run.samples is not None:
            run.lane_masks.append(turn.sample_mask)
        return output

    def _plainly(self, names: Names, invoke: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Computes a call that no run serves."""
        sample, _ = sample_of(names(args, kwargs).get(names.first))
        rows = 1 if sample is None else len(sample)
        self.report.called(rows, rows)
        args, kwargs = kept((args, kwargs))
        return invoke(*args, **kwargs)

    def _turn(
        self,
        attachment: Any,
        invoke: Callable,
        names: Names,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Turn | None:
        run = self.run
        if run is None:
            return None
        if self._held is not None:
            self._catch_up(None)
        arguments = names(args, kwargs)
        sample, listed = arguments.pop(names.first, None), False
        if type(sample) is not Tensor or not sample.ndim:
            sample, listed = sample_of(sample)
        if sample is None:
            return self._give_up("the denoiser's first argument is no sample of one shape")
        if run.samples is None:
            if not run.timetable.opens(timestep_of(arguments)):
                return self._give_up(
                    "the denoiser is called at another timestep, and no scheduler step was "
                    "observed, as where a pipeline steps copies of its scheduler"
                )
            run.decisions.uniform = self.checked.why_coupled is not None
        elif run.index:
            run.attend(timestep_of(arguments))
        if self.version is not None and not run.step_rows:
            run.compare(self.version())
        place = (attachment.key, run.stage_number, sample.shape, sample.dtype, sample.device)
        lane = run.lanes.find(place, arguments, self.watched)
        if torch.is_grad_enabled() and (
            self.trained() or any(leaf.requires_grad for leaf in tensor_leaves((args, kwargs)))
        ):
            run.decisions.differentiate()
        turn = Turn(run, lane, invoke, args, kwargs, sample.shape[0], listed)
        if not (lane.histories or lane.memory or turn.mask is None or turn.full):
            self.report.note(lane.shortage)
        return turn

    def edited(self) -> None:
        """Takes in that somebody has edited the latents since the last step."""
        if self.run is not None:
            self.run.edited()

    def finish(self) -> Report:
        """Closes the books and lets go of all memory."""
        report = self.report
        report.seconds = time.perf_counter() - self._started
        for run in self.runs:
            report.note(run.timetable.shortfall(run.index))
        self._close_runs()
        # A cache that was given up saw no more steps, which count as computed.
        report.enter(self.masks, self.steps_seen - len(self.masks))
        if report.mask.numel() and not self.broken:
            report.note(self.method.policy.remark(*report.mask.shape))
        report.steps = max(len(self.masks), self.steps_seen)
        if report.calls and not self.steps_seen:
            report.note("no scheduler step was observed, so every call was computed")
        if self.steps_seen and self.handlers and not report.total:
            report.note(
                "the scheduler stepped, but the denoiser that was wrapped was not called; wrap "
                "what is, for example diffcache.wrap(torch.compile(model), scheduler=scheduler)"
            )
        if report.total and report.computed == report.total:
            report.note("nothing was skipped")
        return report

    def _close_runs(self) -> None:
        """Takes the books of the runs over and lets go of their memory."""
        for run in self.runs:
            self.report.cache_bytes = max(self.report.cache_bytes, run.most_bytes)
            self.report.trace.extend(run.timetable.trace(run.books))
            self.masks.extend(mask for mask, _ in run.books)
            for text in (*run.notes, *(each.collector.remark for each in run.stages.values())):
                self.report.note(text)
            self.report.note(run.decisions.full and f"computed in full: {run.decisions.full}")
            if (run.samples or 1) > 1:
                self.report.note(self.checked.why_coupled)
        self.runs.clear()
        self.run = None

    def survive(self, error: Exception) -> None:
        """Turns an error of ours into a note and a full computation; raises the model's."""
        if os.environ.get("DIFFCACHE_STRICT") or (self.turn is not None and self.turn.in_model):
            raise error
        self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, why: str) -> None:
        self.broken = True
        self._close_runs()
        self.report.note(f"the cache was given up and everything computed from there: {why}")
