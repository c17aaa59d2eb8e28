"""Puts a function in front of a module instance's call: the one place that uses private API."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from copy import deepcopy
from threading import RLock
from typing import Any

import torch
from torch import nn

from diffcache.runtime.generation import Generation, current

Handler = Callable[[Callable, tuple, dict[str, Any]], Any]
"""Called with the plain call and the call's arguments."""

Resident = Callable[[tuple, dict[str, Any]], Generation | None]
"""Gives the generation that serves a call from outside of any pipeline's call, if one does."""

_PRIVATE = "_compiled_call_impl"
_lock = RLock()


def _itself(plain: Callable) -> Callable:
    """What a pickled gate is read as: the module's own call."""
    return plain


class _Gate:
    """Sends the calls of one module to the handler of the generation that is running, if any.

    `nn.Module.__call__` looks for `_compiled_call_impl` on the instance before anything else. A
    gate there runs outside of compiled regions and of accelerate's hooks, and is in neither
    `state_dict`, copies nor pickles. With `DIFFCACHE_GATE=forward` the instance's `forward` is
    overridden instead, which needs no private API and runs inside of both.
    """

    def __init__(self, module: nn.Module, attribute: str) -> None:
        self.identity = id(module)
        self.uses = 0
        self.resident: Resident | None = None
        # The resident's open generation, and what ends it.
        self.held: tuple[Generation, ExitStack] | None = None
        self.previous = module.__dict__.get(attribute)
        plain = module._call_impl if attribute == _PRIVATE else module.forward
        self.plain: Callable = self.previous or plain
        self.turnstile: AbstractContextManager | None = None
        # Whoever inspects the signature of `forward` sees the denoiser's own.
        self.__wrapped__ = self.plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Traced into a graph, a gate would be a break in it and could skip nothing.
        if torch.compiler.is_compiling():
            return self.plain(*args, **kwargs)
        generation = current.get()
        if generation is None:
            return self._outside(args, kwargs)
        handler = generation.handlers.get(self.identity)
        return self.plain(*args, **kwargs) if handler is None else handler(self.plain, args, kwargs)

    def __del__(self) -> None:
        # Somebody has replaced the gate, as `module.compile()` does, or the module is gone.
        if self.held is not None:
            self.held[1].close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable:
        return deepcopy(self.plain, memo)

    def __reduce__(self) -> tuple[Callable, tuple[Callable]]:
        return _itself, (self.plain,)

    def _outside(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Serves a call that no pipeline makes."""
        generation = None if self.resident is None else self.resident(args, kwargs)
        if generation is None:
            return self.plain(*args, **kwargs)
        handler = generation.handlers.get(self.identity)
        token = current.set(generation)
        try:
            if handler is None:
                return self.plain(*args, **kwargs)
            return handler(self.plain, args, kwargs)
        finally:
            current.reset(token)


def _attribute() -> str:
    return "forward" if os.environ.get("DIFFCACHE_GATE") == "forward" else _PRIVATE


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of `module` are compiled: by `torch.compile(module)` or `module.compile()`."""
    call = module.__dict__.get(_PRIVATE)
    call = call.previous if isinstance(call, _Gate) else call
    return hasattr(module, "dynamo_ctx") or hasattr(call, "_torchdynamo_orig_callable")


def open_gate(module: nn.Module, resident: Resident | None = None) -> _Gate:
    """Gates `module`; calls nest, and every generation has handlers of its own."""
    with _lock:
        attribute = _attribute()
        gate = module.__dict__.get(attribute)
        if not isinstance(gate, _Gate):
            gate = _Gate(module, attribute)
            # An OptimizedModule forwards setattr to what it wraps; its own dict is meant here.
            module.__dict__[attribute] = gate
        gate.uses += 1
        gate.resident = resident or gate.resident
        return gate


def queue(module: nn.Module) -> AbstractContextManager:
    """Lets one thread at a time into a gated `module`, until its gate is closed for good.

    Returns what a thread enters to have it for itself.
    """
    with _lock:
        gate = module.__dict__[_attribute()]
        if gate.turnstile is None:
            gate.turnstile = RLock()
            gate.plain = _one_by_one(gate.plain, gate.turnstile)
        return gate.turnstile


def _one_by_one(plain: Callable, turnstile: AbstractContextManager) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        with turnstile:
            return plain(*args, **kwargs)

    return call


def close_gate(module: nn.Module) -> None:
    """Takes back one `open_gate`; the last one leaves the module as it was found."""
    with _lock:
        attribute = _attribute()
        gate = module.__dict__.get(attribute)
        # Somebody who compiled the module meanwhile has replaced the gate; theirs stays.
        if not isinstance(gate, _Gate):
            return
        gate.uses -= 1
        if gate.uses == 0:
            _take_off(module, attribute, gate)


def _take_off(module: nn.Module, attribute: str, gate: _Gate) -> None:
    if gate.previous is None:
        del module.__dict__[attribute]
    else:
        module.__dict__[attribute] = gate.previous


def lift_gates(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, _Gate]]:
    """Takes the gates off modules that are gated once, for as long as their calls need none.

    Gives them, for `lower_gates`; in between the modules' calls cost what plain ones do.
    """
    with _lock:
        attribute = _attribute()
        gates = ((module, module.__dict__.get(attribute)) for module in modules)
        lifted = [(m, gate) for m, gate in gates if isinstance(gate, _Gate) and gate.uses == 1]
        for module, gate in lifted:
            _take_off(module, attribute, gate)
    return lifted


def lower_gates(lifted: Iterable[tuple[nn.Module, _Gate]]) -> None:
    """Puts back the gates that `lift_gates` gave."""
    with _lock:
        attribute = _attribute()
        for module, gate in lifted:
            present = module.__dict__.get(attribute)
            if isinstance(present, _Gate):
                # Another generation has gated the module meanwhile.
                present.uses += 1
            elif present is gate.previous:
                module.__dict__[attribute] = gate
