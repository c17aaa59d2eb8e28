"""What a pipeline's call takes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from .options import meant
from .runtime.disguise import base_of


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Parameters of a pipeline's call, and of the calls that its **kwargs are handed to."""
    found: dict[str, inspect.Parameter] = {}
    for cls in kind.__mro__:
        if "__call__" not in vars(cls):
            continue
        own = inspect.signature(cls.__call__).parameters
        found = {**own, **found}
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in own.values()):
            break
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {n: p for n, p in found.items() if p.kind not in variadic and n != "self"}


def check_taken(pipe: Any, names: Iterable[str], owned: Iterable[str] = ()) -> None:
    """Raises ValueError where a call of the pipeline takes not all of these arguments.

    Pipelines that hand on `**kwargs` would take a misspelt one, and do without it.

    Args:
        pipe: the pipeline.
        names: of the arguments.
        owned: what may be passed beside them to the call that asks.
    """
    kind = base_of(pipe)
    known = parameters(kind)
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"{kind.__name__} takes no {', '.join(unknown)}; it takes {', '.join(known)}, "
            "and an entry of prompts may be a mapping of those" + meant(unknown, {*known, *owned})
        )
