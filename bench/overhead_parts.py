"""Where the time of a denoiser call at tolerance 0 goes, part by part.

    python bench/overhead_parts.py

The models, and the loop, are those of `bench/test_overhead.py`. Each part's own time, without that
of the parts it calls, is summed over a generation; clocks add about half a microsecond to each
call of a part.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import record
import timing
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from overhead_worker import SIZES, arguments, build, generation, put_on

from diffcache.policies import ErrorBudget
from diffcache.runtime import evidence
from diffcache.runtime.decisions import Decisions
from diffcache.runtime.generation import Generation
from diffcache.runtime.history import History
from diffcache.runtime.lanes import Lanes
from diffcache.runtime.names import Names
from diffcache.runtime.run import Run
from diffcache.runtime.turn import Turn
from diffcache.sites.block_gates import BlockGates
from diffcache.sites.block_stack import _BlockStackAttachment
from diffcache.sites.output import OutputAttachment

Collector = evidence.ForecastErrorCollector
PARTS: dict[str, list[tuple[Any, str]]] = {
    "error of the forecast: torch": [(evidence, "forecast_error")],
    "error of the forecast: the rest": [(Collector, "after"), (Collector, "before")],
    "weights and growth": [(History, "outlook")],
    "keeping values": [(History, "append")],
    "policy and guards": [
        (ErrorBudget, "decide"),
        (ErrorBudget, "observe"),
        (Decisions, "decide"),
        (Run, "_observe"),
    ],
    "which branch a call continues": [
        (Lanes, "find"),
        (Lanes, "next_step"),
        (Names, "__call__"),
    ],
    "blocks that are still gated": [
        (_BlockStackAttachment, "_serve"),
        (BlockGates, "settle"),
    ],
    "the rest of a step": [(Generation, "scheduler_stepped")],
    "the rest of a call": [
        (Generation, "_turn"),
        (Generation, "_serve"),
        (OutputAttachment, "run"),
        (_BlockStackAttachment, "run"),
    ],
}
LIBRARIES = {"4": "adaptive", "57": "stack"}
GENERATIONS = 12
MODEL = "the model"


class Clock:
    """Own times of nested parts, in nanoseconds."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self._inside: list[int] = []

    def timed(self, part: str, function: Callable) -> Callable:
        """`function`, whose own time counts for `part`."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0)
            began = time.thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                taken = time.thread_time_ns() - began
                within = self._inside.pop()
                self.spent[part] = self.spent.get(part, 0) + taken - within
                if self._inside:
                    self._inside[-1] += taken

        return run


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Every part is timed."""
    places = [*(place for each in PARTS.values() for place in each), (Turn, "compute")]
    plain = [(owner, name, getattr(owner, name)) for owner, name in places]
    for part, places in PARTS.items():
        for owner, name in places:
            setattr(owner, name, clock.timed(part, getattr(owner, name)))
    # Blocks that gated ones call are none of ours.
    Turn.compute = clock.timed(MODEL, Turn.compute)
    try:
        yield
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)


def measure(size: str) -> list[dict[str, Any]]:
    """A row for each part of what diffcache does around a model of that many blocks."""
    model, scheduler, steps = build(size), FlowMatchEulerDiscreteScheduler(), SIZES[size][-1]
    clock, found = Clock(), {}
    with watched(clock):
        # Calls of the model itself are none of ours.
        model.forward = clock.timed(MODEL, model.forward)
        put_on(LIBRARIES[size], model, scheduler, steps)
        for number in range(GENERATIONS + 1):
            clock.spent.clear()
            generation(model, scheduler, steps, arguments())
            for part in PARTS if number else ():
                found.setdefault(part, []).append(clock.spent.get(part, 0) / steps / 1e3)
    name = f"{size} blocks, {'output' if size == '4' else 'block stack'}"
    return [
        {"model": name, "part": part, **timing.quantiles("us", each, 2)}
        for part, each in found.items()
        if max(each)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for size in LIBRARIES:
        rows = measure(size)
        record.append("overhead_parts", rows)
        for row in rows:
            print(f"{row['model']:24} {row['part']:34} {row['us_p50']:8.1f} µs a step")
