"""Measures on a pipeline what a method needs to know of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .api import check_pipeline, restored
from .calibration import (
    Calibration,
    adapters_of,
    base_of_pipeline,
    guidance_of,
    weights_of,
)
from .methods import Method, find
from .requesting import unrequested
from .runtime.disguise import base_of
from .runtime.guards import Guards
from .runtime.recorder import Recorder, recording
from .sites.discovery import denoisers, schedulers
from .wrapping import PipelineWrapping

_EVERYTHING = Guards((sys.maxsize, 0), None, 0, False, True)


def calibrate(
    pipe: Any,
    prompts: str | Sequence[str | Mapping[str, Any]],
    method: str | Method,
    **pipe_kwargs: Any,
) -> Calibration:
    """Generates from `prompts` in full and measures what `method` needs.

    Args:
        pipe: a pipeline; what it was wrapped with, it is again afterwards.
        prompts: one prompt, or several, each a string or a mapping of arguments of the pipeline.
        method: one with numbers to be measured: "magcache", "smoothcache" or "teacache".
        pipe_kwargs: arguments of every call, for example `num_inference_steps=28`.

    Returns:
        What to pass as `diffcache.wrap(pipe, method, calibration=…)`.

    Raises:
        ValueError: the method has nothing to measure, cannot serve the pipeline, or nothing could
            be measured.
        TypeError: `pipe` is not a pipeline.
    """
    composed = find(method)
    if composed.policy.measured is None:
        raise ValueError(
            f"{composed.name!r} needs no calibration; call diffcache.wrap(pipe, {composed.name!r})"
        )
    check_pipeline(pipe, f"diffcache.calibrate(pipe, prompts, {composed.name!r})")
    entries = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
    calls = [
        {**pipe_kwargs, **(entry if isinstance(entry, Mapping) else {"prompt": entry})}
        for entry in entries
    ]
    modules = list(denoisers(pipe).values())
    for module in modules:
        composed.site.check(module)
    recorder = Recorder()
    guidance = []
    with unrequested(), restored(pipe):
        PipelineWrapping(composed.configured(guards=_EVERYTHING)).put_on(pipe)
        token = recording.set(recorder)
        try:
            for arguments in calls:
                pipe(**arguments)
                guidance.append(guidance_of(partial(base_of(pipe).__call__, pipe, **arguments)))
        finally:
            recording.reset(token)
    statistics = recorder.statistics()
    if not statistics.changes:
        raise ValueError(
            f"nothing could be measured in {len(calls)} generations of "
            f"{type(pipe).__name__}; calibrate before torch.compile, with at least one prompt"
        )
    composed.policy.fit(statistics)
    simple = (bool, int, float, str)
    return Calibration(
        composed.name,
        base_of_pipeline(modules, schedulers(pipe)),
        weights_of(modules),
        adapters_of(modules),
        {name: value for name, value in pipe_kwargs.items() if isinstance(value, simple)},
        statistics,
        guidance,
        recorder.shapes,
        recorder.lengths,
    )
