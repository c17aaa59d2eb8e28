"""What may never be skipped, whatever a policy says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from diffcache.options import check_count, check_switch

from .report import Rule


@dataclass(frozen=True)
class Guards:
    """Limits on skipping.

    Args:
        protect: how many steps at the start and at the end of a run are always computed.
        max_consecutive_skips: after this many skips in a row a step is computed; None for no cap.
        few_steps: runs of this many steps or fewer are computed in full.
        stochastic: compute runs of samplers that draw noise in full; their predictions do not
            continue one another.
        force: lift `few_steps` and `stochastic`.
        max_cache_bytes: a run whose caches grow past this keeps whole outputs alone from there,
            and is computed in full where these are more as well.
    """

    protect: tuple[int, int] = (3, 1)
    max_consecutive_skips: int | None = 8
    few_steps: int = 8
    stochastic: bool = True
    force: bool = False
    max_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        pair = tuple(map(_plain, self.protect)) if isinstance(self.protect, (tuple, list)) else ()
        if len(pair) != 2 or any(type(n) is not int or n < 0 for n in pair):
            raise ValueError(
                f"protect={self.protect!r} is not a pair of step counts; try protect=(1, 0)"
            )
        object.__setattr__(self, "protect", pair)
        for name in ("few_steps", "max_consecutive_skips", "max_cache_bytes"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        check_count("few_steps", self.few_steps, 8)
        for name, example in (("max_consecutive_skips", 8), ("max_cache_bytes", 2**30)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), example)
        for name in ("stochastic", "force"):
            check_switch(name, getattr(self, name))

    @classmethod
    def none(cls) -> Guards:
        """No guard at all: the policy has the only word."""
        return cls((0, 0), None, 0, False, True)

    def protects(self, index: int, total: int) -> bool:
        """Whether step `index` of `total` is protected."""
        first, last = self.protect
        return index < first or index >= total - last

    def bound(self, index: int, total: int, skipped: Sequence[int]) -> list[Rule | None]:
        """What has step `index` computed whatever the policy says, by sample.

        `skipped` says how many steps in a row each sample has skipped.
        """
        if self.protects(index, total):
            return ["protect"] * len(skipped)
        cap = self.max_consecutive_skips
        return [None if cap is None or n < cap else "cap" for n in skipped]


def _plain(value: object) -> object:
    """A count as an int, whatever library it is an integer of; other values as they are."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
