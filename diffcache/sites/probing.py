"""How the policy is asked from inside of a forward, with what was read there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from diffcache.kernels import forecast_error
from diffcache.runtime.turn import Turn

from .modulated import ModulatedInput
from .recording import Recording


def ask(turn: Turn, probe: Tensor) -> Tensor | None:
    """Asks the policy with a probe, where it is to be asked; what the probe last was."""
    known = turn.lane.memory.get("probe")
    if known is not None and (turn.mask is None or turn.lagged):
        turn.ask(forecast_error(known, (probe,), (1.0,), absolute=True))
    elif turn.mask is None:
        turn.compute_all()
    return known


def moved(turn: Turn, recording: Recording) -> bool:
    """Whether a probe that has not changed at all was moved to a later list of blocks.

    The first may refine the text alone. The rest of the call is then computed by a new plan.
    """
    reader = turn.lane.memory.get("reader") if turn.asked and turn.full else None
    if reader is None or reader.found is None or reader.found[0].any():
        return False
    if not recording.probe_later():
        turn.run.note("no later block has a probe; diffcache.wrap(pipe, 'adaptive') needs none")
        return False
    # Nothing that was kept by the old plan fits the new one.
    turn.lane.memory.clear()
    why = "the probe was moved past blocks that the sample does not enter"
    turn.run.forget(why, turn.run.index)
    return True


def ask_ahead(
    turn: Turn,
    modulated: ModulatedInput | None,
    block: nn.Module,
    plain: Callable,
    args: tuple,
    kwargs: dict[str, Any],
) -> None:
    """Asks the policy with the modulated input, before `block`, the first that is bypassed."""
    if modulated is None:
        turn.run.note("a call that leaves out its first blocks has no probe and was computed")
        return turn.compute_all()
    if modulated.value is None and block is modulated.block:
        turn.compute(modulated.look, plain, args, kwargs)
    if _readable(turn, modulated):
        ask(turn, modulated.value)
    else:
        turn.compute_all()
        turn.run.note(
            "computed: the first block has no attention whose modulated input could be read; "
            "diffcache.wrap(pipe, 'fbcache') needs none"
        )


def keep(turn: Turn, modulated: ModulatedInput) -> None:
    """Keeps the modulated input for the next step to compare with."""
    if _readable(turn, modulated):
        if turn.lagged and not turn.asked:
            ask(turn, modulated.value)
        turn.lane.memory["probe"] = modulated.value
        turn.record("probe", [modulated.value])


def _readable(turn: Turn, modulated: ModulatedInput) -> bool:
    value = modulated.value
    return value is not None and value.ndim > 0 and value.shape[0] == turn.rows
