"""The catalogue: one file a method, found by being here."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from diffcache.options import meant

from .base import Method

__all__ = ["DEFAULT", "Method", "find", "registry"]

DEFAULT = "adaptive"


@cache
def registry() -> dict[str, Method]:
    """All methods of the catalogue by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "base":
            method = importlib.import_module(f"{__name__}.{module.name}").METHOD
            found[method.name] = method
    return found


def find(method: str | Method) -> Method:
    """The method of that name, or the method itself.

    Raises:
        ValueError: there is no method of that name.
        TypeError: `method` is neither a name nor a `Method`.
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"method={method!r} is neither a name nor a diffcache.Method; "
            f"use one of {', '.join(map(repr, registry()))}"
        )
    if method not in registry():
        raise ValueError(
            f"there is no method {method!r}; use one of {', '.join(map(repr, registry()))}"
            + meant([method], registry())
        )
    return registry()[method]
