"""What `wrap` puts on a pipeline or a bare denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from .calibration import Calibration, cautious, watch
from .methods import Method
from .refining import Draft
from .requesting import requests
from .runtime import clock
from .runtime.checking import Checked
from .runtime.disguise import base_of, disguised
from .runtime.generation import Generation, current
from .runtime.names import Names, timestep_of
from .runtime.reading import waits
from .runtime.report import Report
from .runtime.timetable import number_of
from .sites import gate
from .sites.discovery import (
    denoisers,
    foreign_cache,
    own_processors,
    plain_module,
    schedulers,
    version,
)
from .sites.helpers import helpers, on_demand

wrappings: WeakKeyDictionary[Any, PipelineWrapping | ModelWrapping] = WeakKeyDictionary()

_CALLBACKS = {"callback_on_step_end", "callback"}


def requested(method: Method) -> Method:
    """The method with the options of the request that is open, if any."""
    request = requests.get()
    return request.configured(method) if request is not None else method


def _put_on(
    stack: ExitStack,
    generation: Generation,
    method: Method,
    modules: dict[str, nn.Module],
    draft: Draft | None = None,
) -> None:
    """Puts a method's site on the denoisers, and tells the generation of a smaller one."""
    parts = modules.values()
    generation.trained = cache(lambda: any(p.requires_grad for m in parts for p in m.parameters()))
    sites = stack.enter_context(ExitStack())
    _attach(sites, generation, method, modules, draft)
    smaller = method.on_output()

    def fall_back() -> Method:
        sites.close()
        _attach(sites, generation, smaller, modules, draft)
        return smaller

    if smaller is not None:
        generation.fall_back = fall_back


def _attach(
    stack: ExitStack,
    generation: Generation,
    method: Method,
    modules: dict[str, nn.Module],
    draft: Draft | None,
) -> None:
    for name, module in modules.items():
        if (other := foreign_cache(module)) is not None:
            generation.report.note(f"computed in full: another cache is active: {other}")
            continue
        gate.open_gate(module)
        stack.callback(gate.close_gate, module)
        attachment = method.site.attach(module, generation.handlers)
        stack.callback(attachment.detach)
        serve = partial(generation.call, attachment, Names(plain_module(module).forward))
        if draft is not None:
            serve = draft.keeping(name, generation.report, serve)
        generation.handlers[id(module)] = serve


def _help_on_demand(stack: ExitStack, generation: Generation, modules: Iterable[nn.Module]) -> None:
    """Makes helpers run no sooner than a denoiser computes with what they give."""
    for module in modules:
        gate.open_gate(module)
        stack.callback(gate.close_gate, module)
        generation.handlers[id(module)] = on_demand(generation)


class PipelineWrapping:
    """A method on one pipeline instance; nothing but the instance's class differs outside calls."""

    def __init__(self, method: Method, calibration: Calibration | None = None) -> None:
        self.method = method
        self.calibration = calibration
        self.checked = Checked()
        self.report: Report | None = None

    def put_on(self, pipe: Any) -> None:
        """Makes calls of `pipe` generations."""
        wrappings[pipe] = self
        pipe.__class__ = disguised(base_of(pipe), _scoped)

    def take_off(self, pipe: Any) -> None:
        """Leaves `pipe` a plain pipeline."""
        pipe.__class__ = base_of(pipe)
        del wrappings[pipe]

    def generate(self, pipe: Any, call: partial) -> Any:
        """Runs one pipeline call inside of a generation's scope."""
        own = own_processors(pipe)
        named = {} if own else denoisers(pipe)
        modules = tuple(named.values())
        method, note = cautious(
            requested(self.method), self.calibration, modules, schedulers(pipe), call
        )
        # A pipeline sets its step count in each call; the last call's must not stand in for it.
        stale = pipe.__dict__.pop("_num_timesteps", None)
        self.checked.refresh(tuple(map(version, modules)))
        generation = Generation(method, self.checked, lambda: pipe.__dict__.get("_num_timesteps"))
        watch(self.calibration, generation)
        if note is not None:
            generation.report.note(note)
        if own:
            generation.report.note(f"computed in full: what {own} keeps, the pipeline may read")
        request = requests.get()
        drafted = request is not None and request.keep_prefix
        draft = Draft(pipe, call, method.guards.max_cache_bytes) if drafted else None
        with ExitStack() as stack:
            stack.callback(self._finish, pipe, generation, stale, draft)
            for scheduler in schedulers(pipe):
                clock.watch(scheduler)
                stack.callback(clock.unwatch, scheduler)
            _put_on(stack, generation, method, named, draft)
            if modules and all(id(each) in generation.handlers for each in modules):
                _help_on_demand(stack, generation, helpers(pipe))
            # Nobody but a callback has a chance to change a denoiser during the call.
            if any(map(call.keywords.get, _CALLBACKS)):
                generation.version = lambda: tuple(map(version, modules))
            token = current.set(generation)
            stack.callback(current.reset, token)
            return call()

    def _finish(
        self, pipe: Any, generation: Generation, stale: int | None, draft: Draft | None
    ) -> None:
        if stale is not None:
            pipe.__dict__.setdefault("_num_timesteps", stale)
        self.report = generation.finish()
        # The handlers and the generation hold each other, and through them a draft.
        generation.handlers.clear()
        generation.fall_back = generation.told = None
        if draft is not None:
            self.report.prefix, self.report.prefix_bytes = draft.rows, draft.bytes
        if (request := requests.get()) is not None:
            request.finished(self.report, draft)


def _scoped(base: type) -> dict[str, Callable]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        wrapping = wrappings.get(self)
        if wrapping is None:
            return base.__call__(self, *args, **kwargs)
        for name in _CALLBACKS & kwargs.keys():
            kwargs[name] = _outside(kwargs[name])
        call = partial(base.__call__, self, *args, **kwargs)
        return wrapping.generate(self, call)

    return {"__call__": __call__}


def _outside(callback: Any) -> Any:
    """A user's callback that runs outside of the generation: its denoiser calls are its own."""
    # Pipelines tell diffusers' own callback objects, which have this attribute, by their class.
    if not callable(callback) or hasattr(callback, "tensor_inputs"):
        return callback

    def call(*args: Any, **kwargs: Any) -> Any:
        token = current.set(None)
        try:
            return callback(*args, **kwargs)
        finally:
            current.reset(token)

    return call


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
        # Weak, because the tables that lead here must not keep what they are keyed by.
        self._scheduler = ref(scheduler)
        self._generation: Generation | None = None
        self._open = ExitStack()
        self._loop = clock.Loop()

    def put_on(self, module: nn.Module) -> None:
        """Gates `module` and observes the scheduler."""
        self._module = ref(module)
        self._names = Names(plain_module(module).forward)
        gate.open_gate(module, self.running)
        clock.watch(self._scheduler(), self)
        wrappings[module] = self

    def take_off(self, module: nn.Module) -> None:
        """Leaves the module and the scheduler plain."""
        self._end()
        if (scheduler := self._scheduler()) is not None:
            clock.unwatch(scheduler)
        gate.close_gate(module)
        del wrappings[module]

    def running(self, args: tuple, kwargs: dict[str, Any]) -> Generation:
        """The generation that serves a call of the denoiser with these arguments."""
        before, run = waits.count, self._generation and self._generation.run
        # The first argument is the sample.
        given = timestep_of(kwargs if len(args) < 2 else self._names(args, kwargs))
        timestep = number_of(given, run and run.timetable)
        waited = waits.count - before
        if timestep is not None and self._loop.begins_again(timestep):
            self._end()
        if self._generation is None:
            self._begin()
            scheduler = self._scheduler()
            self._generation.timesteps_set(scheduler, base_of(scheduler).__name__)
        self._generation.report.host_reads += waited
        return self._generation

    def timesteps_set(self, scheduler: Any, kind: str) -> None:
        """Starts a generation; the scheduler has a new timetable."""
        self._end()
        self._begin()
        self._loop = clock.Loop()
        self._generation.timesteps_set(scheduler, kind)

    def scheduler_steps(self, scheduler: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """What to step with in place of some of these arguments."""
        if self._generation is None:
            return {}
        return self._generation.scheduler_steps(scheduler, arguments)

    def scheduler_stepped(
        self, scheduler: Any, kind: str, arguments: dict[str, Any], latents: Any
    ) -> None:
        """Takes in a step; the timetable's last one ends the generation."""
        if self._generation is None:
            return
        self._generation.scheduler_stepped(scheduler, kind, arguments, latents)
        run = self._generation.run
        if run is None:
            # A generation that gave up has no run any more that would know where it began.
            finished = self._generation.steps_seen >= len(scheduler.timesteps)
        else:
            finished = run.total is not None and run.index >= run.total
        if finished:
            self._end()
            self._loop = clock.Loop()

    def _begin(self) -> None:
        module, scheduler = self._module(), self._scheduler()
        method, note = cautious(requested(self.method), self.calibration, [module], [scheduler])
        self.checked.refresh(version(module))
        self._generation = Generation(method, self.checked, lambda: None)
        watch(self.calibration, self._generation)
        if note is not None:
            self._generation.report.note(note)
        # Whoever compiled the module since the last generation has replaced its gate.
        gate.open_gate(module, self.running)
        self._open.callback(gate.close_gate, module)
        _put_on(self._open, self._generation, method, {"": module})

    def _end(self) -> None:
        if self._generation is not None:
            self._open.close()
            self.report = self._generation.finish()
            self._generation.handlers.clear()
            self._generation.fall_back = self._generation.told = None
            self._generation = None
            if (request := requests.get()) is not None:
                request.finished(self.report)
