"""A user's callbacks: run outside of the generation, which is told where they edit latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor

from .runtime.disguise import base_of, disguised
from .runtime.generation import current
from .runtime.reading import on_host


def outside(callback: Any) -> Any:
    """A user's callback that runs outside of the generation: its denoiser calls are its own."""
    if not callable(callback):
        return callback
    # Pipelines tell diffusers' own callback objects by their class.
    if not any(kind.__module__ == "diffusers.callbacks" for kind in type(callback).__mro__):
        return partial(_called, callback)
    twin = object.__new__(disguised(base_of(callback), _outside))
    # What the callback remembers is to be found on the user's own object.
    twin.__dict__ = vars(callback)
    return twin


def _outside(base: type) -> dict[str, Callable]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _called(partial(base.__call__, self), *args, **kwargs)

    return {"__call__": __call__}


def _called(callback: Callable, *args: Any, **kwargs: Any) -> Any:
    generation = current.get()
    given = _latents((*args, *kwargs.values()))
    written = None if given is None else _writes(given)
    token = current.set(None)
    try:
        result = callback(*args, **kwargs)
    finally:
        current.reset(token)
    if generation is not None:
        returned = _latents([result])
        replaced = returned is not None and (given is None or _differ(returned, given))
        if replaced or (given is not None and _writes(given) != written):
            generation.edited()
    return result


def _latents(values: Iterable[Any]) -> Tensor | None:
    """What a callback is given, or gives back, as the latents: by name, or as they are."""
    values = list(values)
    named = [value.get("latents") for value in values if isinstance(value, dict)]
    # A timestep may be a tensor without axes.
    found = [each for each in named or values if isinstance(each, Tensor) and each.ndim]
    return found[0] if found else None


def _writes(latents: Tensor) -> int:
    # Tensors made in inference mode count no writes.
    return 0 if latents.is_inference() else latents._version


def _differ(new: Tensor, old: Tensor) -> bool:
    """Whether the values differ; a batch of another size is told by the denoiser's calls."""
    if new is old or new.shape != old.shape:
        return False
    return not bool(on_host((new == old).all()))
