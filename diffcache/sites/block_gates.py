"""Which of a stack's blocks a call is served through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from diffcache.runtime.turn import Turn

from .gate import lift_gates, lower_gates
from .recording import Plan


class BlockGates:
    """The gates of `blocks`, of which a call meets those that it needs.

    Of a block that neither begins nor ends what is bypassed of a list a full call has nothing to
    learn, once its output has been described, and nothing of a head that is no probe. Such blocks
    then have no gate: in a stack of 57 they would cost more than all the rest. Where the policy is
    asked inside of the call, they get theirs with an answer that bypasses.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.plan: Plan | None = None
        self.needless: list[nn.Module] = []
        self.lifted: list[tuple[nn.Module, Any]] = []

    def settle(self, turn: Turn, plan: Plan | None) -> None:
        """Gates the blocks that the call needs, as far as its mask is known."""
        quiet = plan is not None and (turn.mask is None or turn.full) and _described(turn, plan)
        if not quiet:
            return self.lower()
        if self.plan is not plan:
            self.plan, probed = plan, turn.run.in_forward
            self.needless = [block for block in self.blocks if not plan.serves(block, probed)]
        if not self.lifted:
            self.lifted = lift_gates(self.needless)

    def lower(self) -> None:
        """Gates all blocks."""
        if self.lifted:
            lower_gates(self.lifted)
            self.lifted = []


def _described(turn: Turn, plan: Plan) -> bool:
    """Whether the lane knows what the outputs of the blocks without a gate would look like."""
    memory = turn.lane.memory
    if "described" not in memory and memory.keys() >= plan.inner:
        memory["described"] = True
    return "described" in memory
