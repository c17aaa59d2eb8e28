"""The structure of an output, with its tensors taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffcache.runtime.rows import map_leaves


@dataclass(frozen=True)
class _Slot:
    index: int


class Structure:
    """An output's nesting and plain leaves; `fill` puts tensors where tensors were."""

    def __init__(self, output: Any) -> None:
        self.count = 0
        self.tree = map_leaves(output, self._take_out)

    def _take_out(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        self.count += 1
        return _Slot(self.count - 1)

    def fill(self, tensors: Sequence[Tensor]) -> Any:
        """The output with `tensors` in the order of its tensor leaves."""
        return map_leaves(
            self.tree, lambda leaf: tensors[leaf.index] if isinstance(leaf, _Slot) else leaf
        )
