"""What `wrap` puts on a pipeline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from .calibration import Calibration, cautious, watch
from .callbacks import outside
from .methods import Method
from .refining import Draft
from .requesting import requests
from .runtime import clock
from .runtime.checking import Checked
from .runtime.disguise import base_of, disguised
from .runtime.generation import Generation, current
from .runtime.names import Names
from .runtime.report import Report
from .sites import gate
from .sites.discovery import (
    denoisers,
    foreign_cache,
    own_processors,
    plain_module,
    schedulers,
    sharded,
    version,
)
from .sites.helpers import helpers, on_demand

if TYPE_CHECKING:
    from .looping import ModelWrapping

wrappings: WeakKeyDictionary[Any, PipelineWrapping | ModelWrapping] = WeakKeyDictionary()

_COUNT = "_num_timesteps"
_CALLBACK = re.compile(r"callback|\w*callback_on_step_end")


def requested(method: Method) -> Method:
    """The method with the options of the request that is open, if any."""
    request = requests.get()
    return request.configured(method) if request is not None else method


def prepare(
    wrapping: PipelineWrapping | ModelWrapping,
    generation: Generation,
    modules: Sequence[nn.Module],
    stepped: Sequence[Any],
    call: partial | None = None,
) -> None:
    """Tells a generation what is known of its denoisers and the schedulers that are `stepped`."""
    calibration = wrapping.calibration
    generation.method, note = cautious(generation.method, calibration, modules, stepped, call)
    wrapping.checked.refresh(tuple(map(version, modules)))
    watch(calibration, generation)
    generation.report.note(note)


def put_on(
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
        if method.policy.evidence.inside and sharded(module):
            # Processes that decide by their own part would wait for each other for ever.
            generation.report.note(
                f"computed in full: {method.name} decides by what is inside of the denoiser, which "
                "context parallelism shards; diffcache.wrap(pipe, 'adaptive') reads whole outputs"
            )
            continue
        gate.open_gate(module)
        stack.callback(gate.close_gate, module)
        attachment = method.site.attach(module, generation.handlers)
        stack.callback(attachment.detach)
        serve = partial(generation.call, attachment, Names(plain_module(module).forward))
        if draft is not None:
            serve = draft.keeping(name, generation.report, serve)
        generation.handlers[id(module)] = serve


def _drafted(pipe: Any, call: partial, generation: Generation) -> Draft | None:
    """The call as a draft, where the open request keeps them; no error of ours may cost it."""
    request = requests.get()
    if request is None or not request.keep_prefix:
        return None
    try:
        return Draft(pipe, call, generation.method.guards.max_cache_bytes)
    except Exception as error:
        if os.environ.get("DIFFCACHE_STRICT"):
            raise
        generation.report.note(f"nothing was kept to refine: {type(error).__name__}: {error}")
        return None


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
        method = requested(self.method)
        counting = _counting(pipe)
        # A pipeline sets its step count in each call; the last call's must not stand in for it.
        stale = [vars(each).pop(_COUNT, None) for each in counting]
        generation = Generation(method, self.checked, partial(_counted, counting))
        draft = _drafted(pipe, call, generation)
        with ExitStack() as stack:
            stack.callback(self._finish, generation, draft)
            stack.callback(_put_back, counting, stale)
            scope = stack.enter_context(ExitStack())
            try:
                self._enter(scope, pipe, call, generation, draft)
            except Exception as error:
                scope.close()
                generation.survive(error)
            return call()

    def _enter(
        self,
        scope: ExitStack,
        pipe: Any,
        call: partial,
        generation: Generation,
        draft: Draft | None,
    ) -> None:
        """Makes `generation` the one that observes the pipeline, to the end of `scope`."""
        scope.callback(current.reset, current.set(generation))
        if own := own_processors(pipe):
            generation.report.note(
                f"computed in full, and not observed: what {own} keeps, the pipeline may read"
            )
            return
        named = denoisers(pipe)
        modules, stepped = tuple(named.values()), schedulers(pipe)
        prepare(self, generation, modules, stepped, call)
        for scheduler in stepped:
            clock.watch(scheduler)
            scope.callback(clock.unwatch, scheduler)
        put_on(scope, generation, generation.method, named, draft)
        if modules and all(id(each) in generation.handlers for each in modules):
            _help_on_demand(scope, generation, helpers(pipe))
        # Nobody but a callback has a chance to change a denoiser, or what it is told, in the call.
        if any(map(call.keywords.get, _callbacks(call.keywords))):
            generation.watched = True
            generation.version = lambda: tuple(map(version, modules))

    def _finish(self, generation: Generation, draft: Draft | None) -> None:
        self.report = generation.finish()
        # The handlers and the generation hold each other, and through them a draft.
        generation.handlers.clear()
        generation.fall_back = generation.told = None
        if draft is not None:
            self.report.prefix, self.report.prefix_bytes = draft.rows, draft.bytes
        if (request := requests.get()) is not None:
            request.finished(self.report, draft)


def _counting(pipe: Any) -> list[Any]:
    """The pipeline, and those that a combined one is made of."""
    return [pipe, *(each for each in vars(pipe).values() if hasattr(type(each), "components"))]


def _counted(pipes: Sequence[Any], scheduler: Any) -> int | None:
    """How many steps the pipeline that steps `scheduler` counts; the last, where several have."""
    own = [each for each in pipes if getattr(each, "scheduler", None) is scheduler] or pipes[:1]
    counts = [vars(each)[_COUNT] for each in own if vars(each).get(_COUNT) is not None]
    return counts[-1] if counts else None


def _put_back(pipes: Sequence[Any], counts: Sequence[int | None]) -> None:
    for pipe, count in zip(pipes, counts, strict=True):
        if count is not None:
            vars(pipe).setdefault(_COUNT, count)


def _callbacks(keywords: Iterable[str]) -> list[str]:
    """Those that name a callback; a combined pipeline's for its prior has a prefix."""
    return [name for name in keywords if _CALLBACK.fullmatch(name)]


def _scoped(base: type) -> dict[str, Callable]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        wrapping = wrappings.get(self)
        if wrapping is None:
            return base.__call__(self, *args, **kwargs)
        for name in _callbacks(kwargs):
            kwargs[name] = outside(kwargs[name])
        call = partial(base.__call__, self, *args, **kwargs)
        return wrapping.generate(self, call)

    return {"__call__": __call__}
