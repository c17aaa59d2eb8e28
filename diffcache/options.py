"""What users pass as options: numbers of any library, and lists and arrays of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

# How alike names are of which one is taken for the other misspelt, from 0 to 1.
_LIKE = 0.7


def is_number(value: object) -> bool:
    """Whether `value` is a number, of numpy too, which a switch is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_count(value: object, least: int = 0) -> bool:
    """Whether `value` is a whole number from `least` on, of numpy too, which a switch is not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def are_numbers(value: object) -> bool:
    """Whether `value` is a list or tuple of numbers, one at least."""
    return isinstance(value, (list, tuple)) and bool(value) and all(map(is_number, value))


def frozen(value: Any) -> Any:
    """Python's own numbers, and tuples, in place of arrays, tensors and lists.

    So options can be hashed and written as JSON, and are told apart by their value.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    # Other kinds of tuples are made otherwise.
    return tuple(map(frozen, value)) if type(value) in (list, tuple) else value


def meant(unknown: Iterable[str], known: Collection[str]) -> str:
    """What an error ends in: the `known` names that are spelt like `unknown` ones, if any are."""
    near = [match for name in unknown for match in get_close_matches(name, known, 1, _LIKE)]
    return f"; did you mean {' and '.join(map(repr, dict.fromkeys(near)))}?" if near else ""


def check_switch(name: str, value: object) -> None:
    """Raises ValueError, naming `value`, where it is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is neither True nor False; try {name}=True")


def check_number(name: str, value: object, example: float) -> None:
    """Raises ValueError, naming `value` and an `example`, where it is no number or negative."""
    if not is_number(value) or not value >= 0:
        raise ValueError(f"{name}={value!r} is not a number of 0 or more; try {name}={example}")


def check_count(name: str, value: object, example: int, least: int = 0) -> None:
    """Raises ValueError, naming `value` and an `example`, where it is no count from `least` on."""
    if not is_count(value, least):
        raise ValueError(
            f"{name}={value!r} is not a count of {least} or more; try {name}={example}"
        )
