"""The public functions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import nn

from .calibration import Calibration, fitted
from .disabling import disabled, no_report
from .looping import ModelWrapping
from .methods import DEFAULT, Method, find, registry
from .options import frozen, meant
from .policies import Mask
from .requesting import Request, requests
from .runtime.guards import Guards
from .runtime.report import Report
from .sites.discovery import denoisers, foreign_cache, schedulers
from .wrapping import PipelineWrapping, wrappings

T = TypeVar("T")
# What would have been wrapped, had DIFFCACHE_DISABLE not been set, with which method.
_disabled: WeakKeyDictionary[Any, Method] = WeakKeyDictionary()


def wrap(
    target: T,
    method: str | Method = DEFAULT,
    *,
    scheduler: Any = None,
    mask: Any = None,
    calibration: Calibration | None = None,
    **options: Any,
) -> T:
    """Makes a diffusers pipeline, or a bare denoiser, skip work it can predict.

    Args:
        target: a pipeline; or a denoiser module called in a hand-written loop over `scheduler`.
        method: a name from `methods()`, or a `Method`.
        scheduler: the scheduler of that loop; only for a bare denoiser.
        mask: decisions to play back in place of the method's policy, `[steps, samples]` bool as in
            `report(pipe).mask`, without guards; the steps are those of a whole call, which may
            denoise several times.
        calibration: what `diffcache.calibrate` has measured for the method.
        options: options of the method's parts, for example `tolerance=0.08`,
            `max_consecutive_skips=8`, `protect=(1, 0)`, `force=True`.

    Returns:
        `target` itself, changed in place; wrapping again replaces the earlier method.

    Raises:
        ValueError: an unknown method or option, an impossible composition, no denoiser, another
            cache that is active, or a calibration that is missing or of something else. `target`
            is then as it was.
        TypeError: `target` is neither a pipeline nor a module.
    """
    composed = find(method)
    if mask is not None:
        own = isinstance(composed.policy, Mask)
        name = composed.name if own else f"{composed.name}, mask played back"
        composed = composed.configured(policy=Mask(frozen(mask)), guards=Guards.none())
        composed = replace(composed, name=name)
    composed = composed.configured(**options)
    if mask is None and "mask" in (method, options.get("policy")):
        raise ValueError(
            "there is no mask to play back; pass one, for example "
            "diffcache.wrap(pipe, mask=report.mask)"
        )
    if isinstance(target, nn.Module):
        _check([target], composed)
        instance = not isinstance(scheduler, type)
        if not (instance and hasattr(scheduler, "step") and hasattr(scheduler, "set_timesteps")):
            raise ValueError(
                f"a bare {type(target).__name__} needs the scheduler of its loop, got "
                f"scheduler={scheduler!r}; call diffcache.wrap(model, scheduler=scheduler)"
            )
        composed = fitted(composed, [target], [scheduler], calibration)
    else:
        _check_pipeline(target, scheduler, composed)
        modules = list(denoisers(target).values())
        composed = fitted(composed, modules, schedulers(target), calibration)
    unwrap(target)
    if disabled():
        _say_disabled()
        _disabled[target] = composed
        return target
    if isinstance(target, nn.Module):
        ModelWrapping(composed, scheduler, calibration).put_on(target)
    else:
        PipelineWrapping(composed, calibration).put_on(target)
    return target


def check_pipeline(pipe: Any, call: str) -> None:
    """Raises TypeError, naming a `call` that would work, where `pipe` is no diffusers pipeline."""
    if isinstance(pipe, type):
        raise TypeError(f"{pipe.__name__} is a class; pass an instance to {call}")
    if isinstance(pipe, nn.Module):
        raise TypeError(
            f"{type(pipe).__name__} is a bare denoiser; call {call} with the pipeline it belongs to"
        )
    if not callable(pipe) or not hasattr(pipe, "components"):
        raise _neither(pipe, call)


def check_kept(target: Any, call: str) -> None:
    """Raises TypeError, naming a `call` that would work, where `target` can never be wrapped."""
    try:
        hash(ref(target))
    except TypeError as error:
        raise _neither(target, call) from error


def _neither(target: Any, call: str) -> TypeError:
    return TypeError(
        f"{type(target).__name__} is neither a diffusers pipeline nor a module; call {call}"
    )


def _check_pipeline(pipe: Any, scheduler: Any, method: Method) -> None:
    check_pipeline(pipe, "diffcache.wrap(pipe), or diffcache.wrap(model, scheduler=scheduler)")
    if scheduler is not None:
        raise ValueError(
            "a pipeline brings its own scheduler; assign it as pipe.scheduler and call "
            "diffcache.wrap(pipe)"
        )
    found = denoisers(pipe)
    if not found or not schedulers(pipe):
        raise ValueError(
            f"{type(pipe).__name__} has no denoiser with a timestep and a scheduler among its "
            f"components {sorted(pipe.components)}; diffcache.wrap takes diffusion pipelines, or "
            "diffcache.wrap(model, scheduler=scheduler) a module"
        )
    _check(list(found.values()), method)


def _check(modules: list[nn.Module], method: Method) -> None:
    for module in modules:
        if (other := foreign_cache(module)) is not None:
            raise ValueError(
                f"another cache is active on {type(module).__name__}: {other}, then "
                "diffcache.wrap(pipe)"
            )
        method.site.check(module)


@cache
def _say_disabled() -> None:
    logging.getLogger("diffcache").warning(
        "DIFFCACHE_DISABLE=1: diffcache.wrap leaves everything as it is"
    )


def unwrap(target: T) -> T:
    """Makes a wrapped pipeline or denoiser plain again; one that is not wrapped stays as it is.

    Raises:
        TypeError: `target` is neither.
    """
    check_kept(target, "diffcache.unwrap(pipe)")
    _disabled.pop(target, None)
    wrapping = wrappings.get(target)
    if wrapping is not None:
        wrapping.take_off(target)
    return target


@contextmanager
def wrapped(target: T, method: str | Method = DEFAULT, **options: Any) -> Iterator[T]:
    """`wrap` for the length of a `with` block; what was wrapped before is so again after it."""
    with restored(target):
        wrap(target, method, **options)
        yield target


@contextmanager
def restored(target: T) -> Iterator[T]:
    """Wraps `target` again as it was before, at the end of a `with` block."""
    check_kept(target, "diffcache.wrapped(pipe)")
    before, denied = wrappings.get(target), _disabled.get(target)
    try:
        yield target
    finally:
        unwrap(target)
        if before is not None:
            before.put_on(target)
        if denied is not None:
            _disabled[target] = denied


@contextmanager
def request(*, keep_prefix: bool = False, **options: Any) -> Iterator[Request]:
    """Options for the generations inside a `with` block, for each sample where a list is given.

    `request(tolerance=[0.04, 0.16, None])` gives each of three samples its own tolerance; None
    computes all of that sample; a list of another length computes everything, with a warning. The
    block's `run.report` is the newest generation's. Inside of another request, whose options hold
    where these say nothing, only the inner one has the report. A loop by hand that began in the
    block and has not ended with it is reported as far as it came.

    With `keep_prefix=True`, `run.refine()` makes a pipeline's draft exact, computing again nothing
    that was computed before its first skip. Until `run` is let go this holds the call's arguments
    and a copy of every denoiser output up to there (`run.report.prefix_bytes`), at most
    `max_cache_bytes`; a step then also takes checksums of what the denoiser is given.

    Raises:
        ValueError: no method has such an option, or (at the generation) the wrapped one has not.
    """
    own = [wrapping.method for wrapping in wrappings.values()]
    asked = [*registry().values(), *own, *_disabled.values()]
    known = {name for method in asked for name in method.options()}
    if unknown := [name for name in options if name not in known]:
        parts = {"site", "policy", "predictor", "guards"}
        raise ValueError(
            f"no method has an option {', '.join(map(repr, unknown))}; "
            f"known options: {', '.join(sorted(known))}; site, policy, predictor and guards are "
            "for diffcache.wrap" + meant(set(unknown) - parts, {*known, "keep_prefix"})
        )
    opened = Request(options, keep_prefix, requests.get())
    token = requests.set(opened)
    try:
        yield opened
    finally:
        requests.reset(token)
        opened.close()


def report(target: Any) -> Report:
    """The account of the last generation.

    Raises:
        ValueError: `target` is not wrapped, or has not generated yet.
        TypeError: `target` is neither a pipeline nor a module.
    """
    check_kept(target, "diffcache.report(pipe)")
    if target in _disabled:
        return no_report()
    wrapping = wrappings.get(target)
    if wrapping is None or wrapping.report is None:
        state = "is not wrapped" if wrapping is None else "has not generated since it was wrapped"
        advice = "pipe = diffcache.wrap(pipe), generate, then diffcache.report(pipe)"
        if isinstance(target, nn.Module):
            advice = (
                "diffcache.wrap(model, scheduler=scheduler), run the loop to the last step of that "
                "scheduler, then diffcache.report(model)"
            )
        raise ValueError(f"this {type(target).__name__} {state}; call {advice}")
    return wrapping.report


def methods() -> dict[str, str]:
    """The catalogue: every method's name and what it does."""
    return {name: method.summary for name, method in registry().items()}


def cite(method: str | Method = DEFAULT) -> str:
    """BibTeX of the paper a method is from; empty for a method that is nobody's."""
    return find(method).paper
