"""What `wrap` puts on a bare denoiser, which a hand-written loop calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import ref

from torch import nn

from .calibration import Calibration
from .methods import Method
from .requesting import Request, requests
from .runtime import clock
from .runtime.checking import Checked
from .runtime.disguise import base_of
from .runtime.generation import Generation
from .runtime.names import Names, timestep_of
from .runtime.reading import waits
from .runtime.report import Report
from .runtime.run import Run
from .runtime.timetable import number_of
from .sites import gate
from .sites.discovery import glance, plain_module
from .wrapping import prepare, put_on, requested, wrappings


class ModelWrapping:
    """A method on a bare denoiser in a hand-written loop over `scheduler`.

    A generation starts at `scheduler.set_timesteps`, or when the loop begins again, and ends with
    the last step of the timetable.
    """

    def __init__(
        self, method: Method, scheduler: Any, calibration: Calibration | None = None
    ) -> None:
        self.method = method
        self.calibration = calibration
        self.checked = Checked()
        self.report: Report | None = None
        # Weak, because the tables that lead here must not keep what they are keyed by. For the same
        # reason the generation, which holds both, is kept by the module's gate.
        self._scheduler = ref(scheduler)
        self._loop = clock.Loop()
        self._passed = 0
        self._request: Callable[[], Request | None] = lambda: None

    def put_on(self, module: nn.Module) -> None:
        """Gates `module` and observes the scheduler."""
        self._module = ref(module, self._unwatch)
        self._names = Names(plain_module(module).forward)
        self._gate = ref(gate.open_gate(module, self.running))
        if (scheduler := self._scheduler()) is not None:
            clock.watch(scheduler, self)
        wrappings[module] = self

    def take_off(self, module: nn.Module) -> None:
        """Leaves the module and the scheduler plain."""
        self._end()
        self._unwatch()
        # One that is gone later has nothing more to take back.
        self._module = ref(module)
        gate.close_gate(module)
        del wrappings[module]

    def _unwatch(self, _: ref | None = None) -> None:
        if (scheduler := self._scheduler()) is not None:
            clock.unwatch(scheduler, self)

    @property
    def _generation(self) -> Generation | None:
        kept = self._gate()
        return None if kept is None or kept.held is None else kept.held[0]

    @property
    def serving(self) -> bool:
        """Whether the denoiser was called since the last step."""
        generation = self._generation
        return generation is not None and (generation.run is None or generation.run.step_rows > 0)

    def running(self, args: tuple, kwargs: dict[str, Any]) -> Generation | None:
        """The generation that serves a call of the denoiser with these arguments.

        None serves one whose timestep has no value, as on the meta device: it is of no loop.
        """
        generation = self._generation
        before, run = waits.count, generation and generation.run
        # The first argument is the sample.
        given = timestep_of(kwargs if len(args) < 2 else self._names(args, kwargs))
        try:
            timestep = number_of(given, run and run.timetable)
        except RuntimeError:
            return None
        waited = waits.count - before
        again = timestep is not None and self._loop.begins_again(timestep)
        if again or (generation is not None and self._asked_anew(generation)):
            self._end()
            generation = None
        if generation is None:
            generation = self._begin()
            scheduler = self._scheduler()
            generation.timesteps_set(scheduler, base_of(scheduler).__name__)
        generation.report.host_reads += waited
        return generation

    def _asked_anew(self, generation: Generation) -> bool:
        """Whether the loop begins in another request than its timetable was set in."""
        # A thread that calls the model alone knows of no request.
        asked = requests.get()
        return not generation.report.calls and asked is not None and asked is not self._request()

    def timesteps_set(self, scheduler: Any, kind: str) -> None:
        """Starts a generation; the scheduler has a new timetable."""
        self._end()
        self._loop = clock.Loop()
        self._begin().timesteps_set(scheduler, kind)

    def scheduler_steps(self, scheduler: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """What to step with in place of some of these arguments."""
        generation = self._generation
        return {} if generation is None else generation.scheduler_steps(scheduler, arguments)

    def scheduler_stepped(
        self, scheduler: Any, kind: str, arguments: dict[str, Any], latents: Any
    ) -> None:
        """Takes in a step; the timetable's last one ends the generation."""
        if (generation := self._generation) is None:
            return
        generation.scheduler_stepped(scheduler, kind, arguments, latents)
        # A generation that gave up has no run any more that would know where it began.
        if generation.run is None:
            timesteps = getattr(scheduler, "timesteps", None)
            self._finish_if(timesteps is not None and generation.steps_seen >= len(timesteps))
        else:
            self._finish_if(self._made(generation.run))

    def passed_over(self) -> None:
        """Takes in that another denoiser made a step alone; the last one ends the generation."""
        generation = self._generation
        run = generation and generation.run
        # Until its own first step, a run does not know which one that will be.
        if run is not None and run.total is not None:
            self._passed += 1
            self._finish_if(self._made(run))

    def _made(self, run: Run) -> bool:
        """Whether the timetable's last step is made, by this denoiser or by others."""
        return run.total is not None and run.index + self._passed >= run.total

    def _finish_if(self, made: bool) -> None:
        if made:
            self._end()
            self._loop = clock.Loop()

    def _begin(self) -> Generation:
        module, scheduler, request = self._module(), self._scheduler(), requests.get()
        generation = Generation(requested(self.method), self.checked, lambda _: None)
        # Whoever writes the loop may write over a prompt in it, or switch adapters.
        generation.watched, self._passed = True, 0
        # Whoever compiled the module since the last generation has replaced its gate.
        kept = gate.open_gate(module, self.running)
        scope = ExitStack()
        scope.callback(self._finish, generation, request)
        scope.callback(gate.close_gate, module)
        self._gate, kept.held = ref(kept), (generation, scope)
        try:
            prepare(self, generation, [module], [scheduler])
            generation.version = glance(module)
            put_on(scope, generation, generation.method, {"": module})
        except Exception as error:
            generation.survive(error)
        self._request = (lambda: None) if request is None else ref(request)
        if request is not None:
            begun = ref(generation)
            request.began(self, lambda: self._end() if self._generation is begun() else None)
        return generation

    def _end(self) -> None:
        kept = self._gate()
        if kept is None or kept.held is None:
            return
        (_, scope), kept.held = kept.held, None
        scope.close()

    def _finish(self, generation: Generation, request: Request | None) -> None:
        report = generation.finish()
        generation.handlers.clear()
        generation.fall_back = generation.told = None
        if request is not None:
            request.ended(self)
        # A timetable may be set without a loop, or in one request and the loop begin in another.
        if not (report.calls or report.steps):
            return
        self.report = report
        if request is not None:
            request.finished(report)
