"""Which of a stack's blocks a call is served through."""

from __future__ import annotations

from collections.abc import Callable

from diffcache.runtime.turn import Turn

from .recording import Plan


class BlockGates:
    """The `handlers` of gated blocks, of which a call is given those that it needs.

    Of a block that neither begins nor ends what is bypassed of a list a full call has nothing to
    learn, once its output has been described. Such blocks then have no handler: in a stack of 57
    they would cost more than all the rest.
    """

    def __init__(self, handlers: dict[int, Callable]) -> None:
        self.handlers = handlers
        self.quiet: dict[int, Callable] = {}

    def settle(self, turn: Turn, plan: Plan | None) -> None:
        """Gives handlers to the blocks that the call needs, as far as its mask is known."""
        memory = turn.lane.memory
        full = plan is not None and turn.mask is not None and turn.full
        if full and "described" not in memory and memory.keys() >= plan.inner:
            memory["described"] = True
        quiet = full and "described" in memory
        if quiet and not self.quiet:
            self.quiet = {block: self.handlers.pop(block) for _, block in plan.inner}
        elif self.quiet and not quiet:
            self.handlers.update(self.quiet)
            self.quiet = {}
