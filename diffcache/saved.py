"""What was measured, in JSON files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

T = TypeVar("T", bound="Saved")


class Saved(ABC):
    """A dataclass that `save` writes and `load` reads.

    Attributes:
        kind: what it is, for errors.
        command: the call that makes and saves one.
    """

    kind: ClassVar[str]
    command: ClassVar[str]

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls: type[T], path: str | Path) -> T:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            return cls.restored(json.loads(Path(path).read_text(encoding="utf-8")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no {cls.kind}; write one with {cls.command}") from error

    @classmethod
    @abstractmethod
    def restored(cls: type[T], found: dict[str, Any]) -> T:
        """The instance whose fields, as JSON keeps them, are `found`.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: they are of something else.
        """


def all_named(found: Any, fits: Callable[[Any], bool]) -> None:
    """Raises TypeError where `found` is no mapping from names to what `fits`."""
    if not isinstance(found, dict) or not all(map(fits, found.values())):
        raise TypeError(f"{found!r} names what does not belong there")
