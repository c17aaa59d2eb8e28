"""What a calibration has measured, as numbers that policies fit themselves to."""

from __future__ import annotations

from dataclasses import dataclass, field

Curve = tuple[float | None, ...]
"""A number a step; None where there was nothing to compare with."""


@dataclass(frozen=True)
class Statistics:
    """How values of full runs change from step to step, averaged over samples and prompts.

    Attributes:
        steps: of a run.
        changes: by key, for lags of 1, 2, … steps: mean |v_i − v_{i−lag}| / mean |v_{i−lag}|.
        ratios: by key: mean of ‖v_i‖ / ‖v_{i−1}‖ over the vectors of the last axis.
        errors: by key, for lags of 1, 2, … steps: mean |v_i − v_{i−lag}| / mean |v_i|.
    """

    steps: int
    changes: dict[str, tuple[Curve, ...]] = field(default_factory=dict)
    ratios: dict[str, Curve] = field(default_factory=dict)
    errors: dict[str, tuple[Curve, ...]] = field(default_factory=dict)

    def change(self, key: str, lag: int) -> Curve:
        """The change of `key` at that lag.

        Raises:
            ValueError: `key` was not recorded.
        """
        if key not in self.changes:
            found = ", ".join(sorted(self.changes)) or "nothing"
            raise ValueError(
                f"the calibration has no {key!r}, only {found}; "
                "calibrate with the method that it is for"
            )
        return self.changes[key][lag - 1]
