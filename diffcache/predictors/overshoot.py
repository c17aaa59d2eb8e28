"""How far a forecast may go from the newest value, told by how the last one went wrong."""

from __future__ import annotations

from torch import Tensor

# Of a forecast's move: what is kept at least, and what each part of the last one costs by which the
# value went the other way. docs/design.md has what others give.
_LEAST = -0.5
_COST = 2.0


def damping(off: Tensor, moved: Tensor, changed: Tensor) -> Tensor:
    """By how much to multiply the next forecast's move from the newest value, `[rows]`.

    A predictor that extrapolates is an explicit solver, and where predictions turn fast with the
    sample, as under strong guidance, it is unstable: values go back and forth from step to step,
    and each forecast overshoots by more than the last. So where the newest value went against the
    move that was forecast, the next forecast keeps less of its own, and goes half-way back if need
    be, which is the mean about which values alternate. Ours.

    Args:
        off: squared norm `[rows]` of the newest value minus its forecast.
        moved: of that forecast minus the value before, the newest that it was made from.
        changed: of the newest value minus the value before.
    """
    # The part of the forecast's move that the value made, by the inner product of both.
    along = (changed + moved - off) / (2 * moved)
    # Nothing is told where nothing was forecast to move.
    return (1 + _COST * along).clamp(_LEAST, 1).where(moved > 0, 1.0)


def damped(weights: Tensor, factors: Tensor) -> Tensor:
    """Weights `[rows, K]`, newest first, with the moves from the newest value times `factors`."""
    found = weights * factors[:, None]
    found[:, 0] += 1 - factors
    return found
