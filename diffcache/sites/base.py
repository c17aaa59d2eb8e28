"""The contract of a site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

from torch import nn

from diffcache.policies import Evidence
from diffcache.runtime.turn import Turn

ELSEWHERE = "use a method on the output site, for example diffcache.wrap(pipe, 'adaptive')"
"""What to do where a site does not fit: that one takes any denoiser."""


class Attachment(ABC):
    """A site on one denoiser, for the length of one generation."""

    key: Hashable

    @abstractmethod
    def run(self, turn: Turn) -> Any:
        """Serves one denoiser call and returns what the denoiser would have returned."""

    def plan(self, turn: Turn) -> None:
        """Changes which rows of a call compute, before it is served."""

    def detach(self) -> None:
        """Leaves the denoiser as it was found."""


class Site(ABC):
    """Where in a denoiser work is avoided.

    Attributes:
        keeps_differences: whether what is forecast are differences of guidance branches.
        keeps_predictions: whether what is forecast are whole predictions.
    """

    provides: ClassVar[frozenset[type[Evidence]]]
    keeps_differences: ClassVar[bool] = False

    @property
    def keeps_predictions(self) -> bool:
        return False

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of modules that a policy may decide on one by one; most sites have none."""
        return ()

    @abstractmethod
    def attach(self, denoiser: nn.Module, handlers: dict[int, Callable]) -> Attachment:
        """Puts the site on `denoiser` for a generation with these gate handlers."""

    def check(self, denoiser: nn.Module) -> None:
        """Raises ValueError where this site cannot serve `denoiser`, saying what would fit."""
