"""What users pass as options: numbers of any library, and lists and arrays of them."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def is_number(value: object) -> bool:
    """Whether `value` is a number, of numpy too, which a switch is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_count(value: object, least: int = 0) -> bool:
    """Whether `value` is a whole number from `least` on, of numpy too, which a switch is not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def frozen(value: Any) -> Any:
    """Python's own numbers, and tuples, in place of arrays, tensors and lists.

    So options can be hashed and written as JSON, and are told apart by their value.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    # Other kinds of tuples are made otherwise.
    return tuple(map(frozen, value)) if type(value) in (list, tuple) else value
