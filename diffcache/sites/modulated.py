"""What the first block hands its attention: its input, normalised and modulated by the timestep."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from diffcache.runtime.names import Names

from .gate import close_gate, is_compiled, open_gate


class _Reached(Exception):
    """Ends a block's forward where its attention would begin."""


class ModulatedInput:
    """Reads the hidden states that `block` gives its first attention, with or without running it.

    Attributes:
        value: what was read since it was last set to None.
        hidden: whether the block is compiled, and nothing read while it runs.
    """

    def __init__(self, block: nn.Module, handlers: dict[int, Callable]) -> None:
        self.block = block
        self.value: Tensor | None = None
        self.hidden = is_compiled(block)
        self._stopping = False
        self._attentions = _attentions(block)
        for module in self._attentions:
            open_gate(module)
            handlers[id(module)] = partial(self._serve, Names(module.forward))

    def close(self) -> None:
        """Leaves the block as it was found."""
        for module in self._attentions:
            close_gate(module)

    def look(self, plain: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        """Runs the block, by `plain` or uncompiled, no further than to its attention."""
        self._stopping = bool(self._attentions)
        run = self.block.forward if self.hidden else plain
        try:
            if self._stopping:
                run(*args, **kwargs)
        except _Reached:
            pass
        finally:
            self._stopping = False

    def _serve(self, names: Names, plain: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.value is None:
            read = names(args, kwargs).get(names.first)
            self.value = read if isinstance(read, Tensor) else None
        if self._stopping:
            raise _Reached
        return plain(*args, **kwargs)


def _attentions(module: nn.Module) -> list[nn.Module]:
    """The outermost modules inside that are attention by name."""
    found = []
    for child in module.children():
        name = type(child).__name__
        inner = [child] if "Attention" in name or "Attn" in name else _attentions(child)
        found.extend(inner)
    return found
