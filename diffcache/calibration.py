"""What was measured on a pipeline, and of which pipeline it tells."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .methods import Method, registry
from .options import is_number
from .policies import Statistics
from .policies.statistics import Curve
from .runtime.disguise import base_of
from .runtime.generation import Generation
from .saved import Saved, all_named
from .sites.discovery import plain_module

_PARAMETERS, _ELEMENTS = 32, 8
_GUIDANCE = re.compile(r"guidance_scale|cfg_scale")


@dataclass(frozen=True)
class Calibration(Saved):
    """Measured numbers with a fingerprint of what they were measured on.

    Attributes:
        method: name of the method that they were measured for.
        base: denoisers and schedulers, class and hash of the config of each: these must agree.
        weights: hash of sampled weights; empty if none were in memory.
        adapters: active adapters and their scales.
        setting: simple arguments of the calls.
        statistics: the numbers.
        guidance: the scales of guidance of each kind of call, by argument.
        shapes: those of a sample's latents, one for each resolution and length.
        lengths: steps of the runs.
    """

    kind: ClassVar[str] = "calibration"
    command: ClassVar[str] = "diffcache.calibrate(pipe, prompts, method=…).save(path)"

    method: str
    base: dict[str, str]
    weights: str
    adapters: dict[str, float]
    setting: dict[str, Any] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=lambda: Statistics(0))
    guidance: list[dict[str, float]] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @classmethod
    def restored(cls, found: dict[str, Any]) -> Calibration:
        all_named(found["base"], lambda value: isinstance(value, str))
        all_named(found["adapters"], is_number)
        return cls(**{**found, "statistics": _statistics(found["statistics"])})

    def check(self, modules: Iterable[nn.Module], schedulers: Iterable[Any]) -> None:
        """Raises ValueError where these denoisers or schedulers are not those measured."""
        if names := self._differing(modules, schedulers):
            raise ValueError(
                f"this calibration was measured on another configuration (differing: {names}); "
                f"call diffcache.calibrate(pipe, prompts, method={self.method!r})"
            )

    def _differing(self, modules: Iterable[nn.Module], schedulers: Iterable[Any]) -> str:
        """The names of denoisers and schedulers that were not measured, or are not any more."""
        differing = base_of_pipeline(modules, schedulers).items() ^ self.base.items()
        return ", ".join(sorted({name for name, _ in differing}))

    def drift(
        self,
        modules: Iterable[nn.Module],
        schedulers: Iterable[Any],
        guidance: dict[str, float],
    ) -> list[str]:
        """What differs from when it was measured, in words."""
        modules = list(modules)
        names = self._differing(modules, schedulers)
        found = [f"another configuration of {names}"] if names else []
        weights = weights_of(modules)
        if adapters_of(modules) != self.adapters:
            found.append(f"adapters {adapters_of(modules)} in place of {self.adapters}")
        elif weights and self.weights and weights != self.weights:
            found.append("other weights")
        if guidance and self.guidance and guidance not in self.guidance:
            found.append(f"guidance {guidance} in place of {self.guidance[0]}")
        return found


def _statistics(found: dict[str, Any]) -> Statistics:
    changes, errors = (
        {key: tuple(map(_curve, curves)) for key, curves in found[name].items()}
        for name in ("changes", "errors")
    )
    ratios = {key: _curve(curve) for key, curve in found["ratios"].items()}
    return Statistics(found["steps"], changes, ratios, errors)


def _curve(found: Any) -> Curve:
    if not all(number is None or is_number(number) for number in found):
        raise TypeError(f"{found!r} is no number a step")
    return tuple(found)


def fitted(
    method: Method,
    modules: list[nn.Module],
    schedulers: list[Any],
    calibration: Calibration | None,
) -> Method:
    """The method with what it needs measured: from `calibration`, or as published.

    Raises:
        ValueError: the calibration is of another pipeline or another method, or the method takes
            none, or needs one and none fits.
    """
    policy = method.policy
    if calibration is not None:
        if not isinstance(calibration, Calibration):
            raise ValueError(
                f"calibration={calibration!r} is none; pass what diffcache.calibrate returned, or "
                "diffcache.Calibration.load(path)"
            )
        calibration.check(modules, schedulers)
        if policy.measured is not None and calibration.method != method.name:
            raise ValueError(
                f"this calibration was measured for {calibration.method!r} and is given to "
                f"{method.name!r}; call diffcache.wrap(pipe, {calibration.method!r}, "
                f"calibration=calibration), or diffcache.calibrate(pipe, prompts, "
                f"method={_asked(method)})"
            )
        return replace(method, policy=policy.fit(calibration.statistics))
    if policy.measured is None or getattr(policy, policy.measured) is not None:
        return method
    for constants in method.published:
        if any(constants.fits(plain_module(m), s) for m in modules for s in schedulers):
            return method.configured(**constants.options)
    if policy.measured_is_needed:
        names = ", ".join(type(plain_module(module)).__name__ for module in modules)
        raise ValueError(
            f"{method.name!r} needs {policy.measured} measured on {names}, and none are published; "
            f"call calibration = diffcache.calibrate(pipe, prompts, method={_asked(method)}), then "
            f"diffcache.wrap(pipe, {_asked(method)}, calibration=calibration)"
        )
    return method


def base_of_pipeline(modules: Iterable[nn.Module], schedulers: Iterable[Any]) -> dict[str, str]:
    """Class and hash of the config of every denoiser and scheduler."""
    parts = [*map(plain_module, modules), *schedulers]
    return {f"{i} {base_of(part).__name__}": _config(part) for i, part in enumerate(parts)}


def _config(part: Any) -> str:
    entries = {k: v for k, v in dict(getattr(part, "config", {})).items() if k[:1] != "_"}
    text = json.dumps(entries, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_of(modules: Iterable[nn.Module]) -> str:
    """Hash of a few elements of a few parameters; adapters are left out.

    Empty where there is nothing to read, as of weights that accelerate keeps away.
    """
    digest = hashlib.sha256()
    read = False
    for module in modules:
        named = sorted(
            (name.replace(".base_layer", ""), parameter)
            for name, parameter in plain_module(module).named_parameters()
            if "lora_" not in name and not parameter.is_meta
        )
        for name, parameter in named[:: max(1, len(named) // _PARAMETERS)]:
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + _sampled(parameter))
            read = True
    return digest.hexdigest()[:16] if read else ""


def _sampled(parameter: Tensor) -> bytes:
    """A few elements of a parameter; none of one that is told by its name and shape alone."""
    if hasattr(parameter, "__tensor_flatten__"):
        # What is quantised may not be read itself, but it is made of tensors that may.
        parts, _ = parameter.__tensor_flatten__()
        return b"".join(_sampled(getattr(parameter, part)) for part in parts)
    try:
        flat = parameter.detach().reshape(-1)
        sampled = flat[:: max(1, flat.numel() // _ELEMENTS)].to("cpu", torch.float32)
    except RuntimeError:
        return b""
    return sampled.numpy().tobytes()


def adapters_of(modules: Iterable[nn.Module]) -> dict[str, float]:
    """Active adapters and their scales, as peft's layers have them."""
    found: dict[str, float] = {}
    for module in modules:
        for layer in plain_module(module).modules():
            scaling = getattr(layer, "scaling", None)
            if isinstance(scaling, dict) and not getattr(layer, "disable_adapters", False):
                active = getattr(layer, "active_adapters", [])
                found.update({name: float(scaling[name]) for name in active if name in scaling})
    return found


def guidance_of(call: partial) -> dict[str, float]:
    """The scales of guidance that a pipeline's `call` is made with, by argument or by default."""
    try:
        bound = inspect.signature(call.func).bind(*call.args, **call.keywords)
    except TypeError:
        # The pipeline says better what is wrong with such a call.
        return {}
    bound.apply_defaults()
    return {
        name: float(value)
        for name, value in bound.arguments.items()
        if _GUIDANCE.search(name) and isinstance(value, (int, float))
    }


def cautious(
    method: Method,
    calibration: Calibration | None,
    modules: Iterable[nn.Module],
    schedulers: Iterable[Any],
    call: partial | None = None,
) -> tuple[Method, str | None]:
    """The method, and where the calibration no longer fits, one that skips once at a time."""
    if calibration is None:
        return method, None
    guidance = {} if call is None else guidance_of(call)
    drift = calibration.drift(modules, schedulers, guidance)
    return _careful(method, drift) if drift else (method, None)


def watch(calibration: Calibration | None, generation: Generation) -> None:
    """Has a generation of other steps or sizes than were measured skip once at a time."""
    if calibration is None:
        return

    def told(prediction: Tensor, steps: int) -> None:
        shape, drift = list(prediction.shape[1:]), []
        if calibration.lengths and steps not in calibration.lengths:
            drift.append(f"{steps} steps in place of {calibration.lengths[0]}")
        if calibration.shapes and shape not in calibration.shapes:
            drift.append(f"latents {shape} in place of {calibration.shapes[0]}")
        if drift:
            generation.method, note = _careful(generation.method, drift)
            generation.run.revise(generation.method)
            generation.report.note(note)

    generation.told = told


def _asked(method: Method) -> str:
    """How `calibrate` is asked for a method: by its name, where the catalogue's has its policy."""
    named = registry().get(method.name)
    same = named is not None and type(named.policy) is type(method.policy)
    return repr(method.name) if same else "method"


def _careful(method: Method, drift: list[str]) -> tuple[Method, str]:
    note = (
        f"the calibration was measured otherwise ({'; '.join(drift)}), so that no two steps in a "
        "row are skipped; "
        f"diffcache.calibrate(pipe, prompts, method={_asked(method)}) measures anew"
    )
    return method.configured(max_consecutive_skips=1), note
