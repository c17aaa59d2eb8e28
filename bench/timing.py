"""Clocks of the benches: wall time, and on CUDA the device's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

QUANTILES = (20, 50, 80)

_CYCLES_A_SECOND = 2e9
"""Of a GPU at its highest clock; at a lower one the device sleeps longer than it is asked to."""


def quantiles(name: str, values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """`{name}_p20`, `_p50` and `_p80` of `values`."""
    return {f"{name}_p{q}": round(float(np.percentile(values, q)), digits) for q in QUANTILES}


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call that waits for the device itself."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def microseconds(function: Callable[[], Any], calls: int, rounds: int) -> list[float]:
    """Wall time a call, of `rounds` rounds of `calls` calls one after another.

    On CUDA the longer of what the host takes to queue a call and the device to run it.
    """
    found = []
    for _ in range(rounds + 1):
        _wait()
        began = time.perf_counter()
        for _ in range(calls):
            function()
        _wait()
        found.append(1e6 * (time.perf_counter() - began) / calls)
    return found[1:]


def device_microseconds(function: Callable[[], Any], calls: int, rounds: int) -> list[float]:
    """Time a call takes the CUDA device alone: of `calls` that are queued while it still sleeps.

    Launches are those of real calls; a captured graph would run them closer together.
    """
    function()
    _wait()
    queueing = seconds(lambda: [function() for _ in range(calls)])
    _wait()
    cycles = int(_CYCLES_A_SECOND * (2 * queueing + 1e-3))
    found = []
    for _ in range(rounds + 1):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(cycles)
        began.record()
        for _ in range(calls):
            function()
        ended.record()
        ended.synchronize()
        found.append(1e3 * began.elapsed_time(ended) / calls)
    return found[1:]


def launches(function: Callable[[], Any]) -> int | None:
    """Kernels and copies that one call puts on the CUDA device; None where no profiler sees any."""
    function()
    _wait()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    counts = []
    # What the first session of a process sees of the device may not be all.
    for _ in range(2):
        with torch.profiler.profile(activities=activities) as profile:
            function()
            _wait()
        on_device = (e.device_type is torch.autograd.DeviceType.CUDA for e in profile.events())
        counts.append(sum(on_device))
    return max(counts) or None


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
