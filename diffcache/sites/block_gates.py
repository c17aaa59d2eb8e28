"""The gates of a stack's blocks, and which of them a call is served through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from diffcache.runtime.turn import Turn

from .gate import close_gate, open_gate
from .recording import Plan


class BlockGates:
    """Gates `blocks` and has their calls served by `serve(block, plain, args, kwargs)`.

    Of a block that neither begins nor ends what is bypassed of a list a full call has nothing to
    learn, once its output has been described. Such blocks then have no handler: in a stack of 57
    they would cost more than all the rest.
    """

    def __init__(self, blocks: Sequence[nn.Module], serve: Callable, handlers: dict) -> None:
        self.blocks, self.handlers = blocks, handlers
        self.serving = {id(block): partial(serve, block) for block in blocks}
        self.handlers.update(self.serving)
        self.quiet = False
        for block in blocks:
            open_gate(block)

    def settle(self, turn: Turn, plan: Plan | None) -> None:
        """Gives handlers to the blocks that the call needs, as far as its mask is known."""
        memory = turn.lane.memory
        full = plan is not None and turn.mask is not None and turn.full
        if full and "described" not in memory and memory.keys() >= plan.inner:
            memory["described"] = True
        quiet = full and "described" in memory
        if quiet and not self.quiet:
            for _, block in plan.inner:
                del self.handlers[block]
        elif self.quiet and not quiet:
            self.handlers.update(self.serving)
        self.quiet = quiet

    def close(self) -> None:
        """Leaves the blocks as they were found."""
        for block in self.blocks:
            close_gate(block)
