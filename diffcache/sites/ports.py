"""Modules inside of compiled regions: what they do there is traced, and set from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from diffcache.runtime.rows import map_leaves
from diffcache.runtime.turn import Turn

from .discovery import plain_module
from .gate import close_gate, is_compiled, open_gate, queue


class Port:
    """Stands in a module's `forward`, where dynamo looks: it never sees a gate below the root.

    What is read here is guarded, so that a call that computes and one that skips have a graph each;
    all else that differs between calls is a tensor. What is written leaves the graph as an output.

    Attributes:
        handler: a gate's handler, for calls that are not compiled.
        open: whether it is called.
        stand_in: what a skip returns; None where the module is computed.
        keep: whether `output` is to be filled.
        output: what the module gave, in memory of its own.
    """

    def __init__(self, module: nn.Module, handler: Callable) -> None:
        self.module, self.handler = module, handler
        self.open = self.keep = False
        self.stand_in: Any = None
        self.output: Any = None

    def enter(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Sees the arguments of a call before anything else happens."""

    def bridge(self) -> Any:
        """The output of a skip."""
        return self.stand_in

    def take(self, output: Any) -> Any:
        """What is kept of an output."""
        return map_leaves(output, _cloned)

    def clear(self) -> None:
        """Lets the module compute, and lets go of what it was given and gave."""
        self.open = self.keep = False
        self.stand_in = self.output = None


def _cloned(leaf: Any) -> Any:
    # Parents write in place into what a module returns (FreeU).
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _forward_through(port: Port, plain: Callable) -> Callable:
    # Other generations find their names by a module's signature meanwhile.
    @wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if port.open:
            return port.handler(partial(plain, self), args, kwargs)
        port.enter(args, kwargs)
        if port.stand_in is not None:
            return port.bridge()
        output = plain(self, *args, **kwargs)
        if port.keep:
            port.output = port.take(output)
        return output

    return forward


class Ports:
    """The ports of one denoiser, which its modules have while one of our calls runs.

    A graph is made for all rows of a batch and for one pattern of modules, so samples are computed
    together or not at all. Calls from other threads wait for ours, by `turnstile`: they would meet
    what is set for it.
    """

    def __init__(self, ports: Sequence[Port], turnstile: AbstractContextManager) -> None:
        self.all = ports
        self._turnstile = turnstile
        self._forwards = [
            MethodType(_forward_through(port, type(port.module).forward), port.module)
            for port in ports
        ]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The modules have their ports, and then are as they were found."""
        with self._turnstile:
            if any("forward" in vars(port.module) for port in self.all):
                raise RuntimeError("a module of a compiled region was hooked during the generation")
            for forward in self._forwards:
                forward.__self__.__dict__["forward"] = forward
            try:
                yield
            finally:
                self.clear()
                for forward in self._forwards:
                    # Somebody who hooked the module meanwhile has replaced it; theirs stays.
                    if forward.__self__.__dict__.get("forward") is forward:
                        del forward.__self__.__dict__["forward"]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Runs nothing compiled, and hands the modules' calls to their handlers."""
        with self._in_place():
            for port in self.all:
                port.open = True
            with torch.compiler.set_stance("force_eager"):
                yield

    @contextmanager
    def set_for(self, turn: Turn) -> Iterator[None]:
        """The ports may be set for a compiled call, which computes all samples or none."""
        decisions = turn.run.decisions
        if turn.run.samples is not None and turn.run.samples > 1 and not decisions.uniform:
            decisions.couple()
            turn.run.note("inside of a compiled denoiser all samples are computed together")
        if turn.mixed:
            turn.compute_all()
        with self._in_place():
            try:
                yield
            except Exception:
                # What is traced here may be to blame, so that the call is made once more without.
                turn.in_model = False
                raise

    def clear(self) -> None:
        """Lets all modules compute."""
        for port in self.all:
            port.clear()


def attach(
    denoiser: nn.Module,
    served: Sequence[tuple[nn.Module, Callable]],
    handlers: dict[int, Callable],
    kind: type[Port] = Port,
) -> Ports | None:
    """Sends the calls of modules to handlers: through gates, or ports where these are needed."""
    if _can_suspend() and _within_compiled(denoiser, [module for module, _ in served]):
        turnstile = queue(denoiser)
        with turnstile:
            # A module with a `forward` of its own has hooks.
            if not any("forward" in vars(module) for module, _ in served):
                return Ports([kind(module, handler) for module, handler in served], turnstile)
    for module, handler in served:
        open_gate(module)
        handlers[id(module)] = handler
    return None


def detach(ports: Ports | None, modules: Iterable[nn.Module]) -> None:
    """Takes back `attach`."""
    for module in modules if ports is None else ():
        close_gate(module)


def _within_compiled(denoiser: nn.Module, modules: Sequence[nn.Module]) -> bool:
    """Whether any of `modules` is called from a compiled region, which passes its gate by."""
    inner = set(map(id, modules))
    regions = filter(is_compiled, [denoiser, *plain_module(denoiser).modules()])
    return any(
        id(module) in inner and module is not plain_module(region)
        for region in regions
        for module in plain_module(region).modules()
    )


def _can_suspend() -> bool:
    # Since torch 2.6.
    return hasattr(torch.compiler, "set_stance")
