"""Instances of a stateless subclass that everything else takes for its base class."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any

_subclasses: dict[tuple[type, Callable], type] = {}


def disguised(base: type, override: Callable[[type], dict[str, Callable]]) -> type:
    """The subclass of `base` with the methods that `override(base)` gives, made once.

    Names and signatures are the base's, which it equals, because pipelines inspect them; copies
    and pickles of an instance are of the base class.
    """
    key = (base, override)
    if key not in _subclasses:
        methods = {
            name: functools.wraps(getattr(base, name))(method)
            for name, method in override(base).items()
        }
        namespace = {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": _reduce_as_base,
            "_diffcache_base": base,
            **methods,
        }
        _subclasses[key] = _alike(type(base))(base.__name__, (base,), namespace)
    return _subclasses[key]


@functools.cache
def _alike(metaclass: type) -> type:
    """A metaclass whose classes equal what they pass for: Bria asks `type(scheduler) != …`."""
    return type(metaclass.__name__, (metaclass,), {"__eq__": _equals, "__hash__": _hash})


def _equals(cls: type, other: object) -> bool:
    return isinstance(other, type) and _passes_for(cls) is _passes_for(other)


def _hash(cls: type) -> int:
    return type.__hash__(_passes_for(cls))


def _passes_for(cls: type) -> type:
    return cls.__dict__.get("_diffcache_base", cls)


def base_of(instance: Any) -> type:
    """The class of an instance as plain diffusers would see it."""
    return _passes_for(type(instance))


def _reduce_as_base(self: Any, protocol: int) -> Any:
    base = base_of(self)
    reduced = super(type(self), self).__reduce_ex__(protocol)
    if isinstance(reduced, str):
        return reduced
    function, arguments, *rest = reduced
    if function is copyreg.__newobj__:
        # pickle insists that what it builds this way is of the instance's own class.
        function = base.__new__
    return (function, tuple(base if a is type(self) else a for a in arguments), *rest)
