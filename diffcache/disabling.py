"""`DIFFCACHE_DISABLE=1`: nothing is wrapped."""

import os

from .runtime.report import Report


def disabled() -> bool:
    """Whether the environment says so, now."""
    return os.environ.get("DIFFCACHE_DISABLE") == "1"


def refuse_disabled(action: str) -> None:
    """Raises ValueError where the environment says so: there is then nothing for `action`."""
    if disabled():
        raise ValueError(f"DIFFCACHE_DISABLE=1 leaves nothing to {action}; unset it first")


def no_report() -> Report:
    """What stands for the account of a generation that nobody watched."""
    return Report("disabled", notes=["DIFFCACHE_DISABLE=1: nothing was wrapped"])
