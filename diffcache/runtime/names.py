"""Arguments by name, a few times faster than `inspect.Signature.bind`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_TIMESTEPS = ("timestep", "timesteps", "t")


class Names:
    """The parameter names of a callable; calling it names the arguments of a call.

    Attributes:
        first: the first parameter, which of a denoiser is its sample.
    """

    def __init__(self, function: Callable) -> None:
        parameters = inspect.signature(function).parameters.values()
        self.positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        self.first = self.positional[0] if self.positional else ""

    def __contains__(self, name: str) -> bool:
        return name in self.positional

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name; defaults are left out."""
        named = dict(zip(self.positional, args, strict=False))
        named.update(kwargs)
        return named


def timestep_of(arguments: dict[str, Any]) -> Tensor | float | None:
    """The timestep among a denoiser call's bound arguments, wherever it is."""
    value = arguments.get(next(filter(arguments.__contains__, _TIMESTEPS), ""))
    if isinstance(value, Tensor):
        count = value.numel()
        return value if count == 1 else value[(0,) * value.ndim] if count else None
    return float(value) if isinstance(value, (int, float)) else None
