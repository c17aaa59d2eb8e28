"""Clocks of the benches: wall time, and on CUDA the device's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

QUANTILES = (20, 50, 80)


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
    """Time a call on the CUDA device alone: `calls` of them, captured in a graph and replayed."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            function()
    found = []
    for _ in range(rounds + 1):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        found.append(1e3 * began.elapsed_time(ended) / calls)
    return found[1:]


def launches(function: Callable[[], Any]) -> int:
    """Kernels and copies that one call puts on the CUDA device."""
    function()
    _wait()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        _wait()
    return sum(event.device_type is torch.autograd.DeviceType.CUDA for event in profile.events())


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
