"""Denoiser calls made ahead of time, at every size that generations will make them in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any

import torch

from .api import check_kept
from .disabling import disabled
from .methods import Method
from .policies import Mask
from .requesting import unrequested
from .runtime.guards import Guards
from .runtime.report import Report
from .sites.discovery import denoisers
from .wrapping import PipelineWrapping, wrappings


def warmup(pipe: Any, shapes: Sequence[Mapping[str, Any]]) -> None:
    """Runs a wrapped pipeline such that its later generations compile nothing.

    For each of `shapes` the denoiser is called with every number of rows that the wrapped method
    may compute in a step, and not at all: what `torch.compile` will need is then compiled, and that
    rows may be computed apart from each other has been checked. Methods that decide for each sample
    may compute any number of them; `wrap(pipe, compute_rows=(2, 4))` makes those numbers few. The
    last report, and torch's own random states, are left as they were.

    Args:
        pipe: a wrapped pipeline.
        shapes: arguments of calls to come, one dict a shape, as in
            `[{"prompt": ["a cat"] * 8, "height": 512, "width": 512}]`. Steps are as few as will do,
            whatever `num_inference_steps` says; methods that decide by role take all of them. A
            `generator` is drawn from.

    Raises:
        ValueError: `pipe` is no wrapped pipeline, or one of `shapes` is no dict of arguments.
        TypeError: `pipe` is none at all.
    """
    if disabled():
        return
    check_kept(pipe, "diffcache.warmup(diffcache.wrap(pipe), shapes)")
    several = isinstance(shapes, Iterable) and not isinstance(shapes, (str, Mapping))
    shapes = list(shapes) if several else [shapes]
    for arguments in shapes:
        if not isinstance(arguments, Mapping):
            raise ValueError(
                f"{arguments!r} among shapes is no dict of a call's arguments; call "
                'diffcache.warmup(pipe, [{"prompt": "a cat", "height": 512}])'
            )
    wrapping = wrappings.get(pipe)
    if not isinstance(wrapping, PipelineWrapping):
        raise ValueError(
            f"this {type(pipe).__name__} is no wrapped pipeline; call "
            'diffcache.warmup(diffcache.wrap(pipe), [{"prompt": "a cat", "height": 512}])'
        )
    try:
        with unrequested(), torch.random.fork_rng():
            for arguments in shapes:
                _warm(pipe, wrapping, arguments)
    finally:
        wrappings[pipe] = wrapping


def _warm(pipe: Any, wrapping: PipelineWrapping, arguments: Mapping[str, Any]) -> None:
    if wrapping.method.policy.groups:
        # Which groups are skipped together, each of which is a graph, depends on the timetable.
        _generate(pipe, wrapping, wrapping.method, arguments)
        return
    # Every branch computes once before it may skip, and the first generation tells the batch size.
    played = _play(pipe, wrapping, arguments, [(True,), (False,)])
    # A generation that gave up skips nothing later either.
    if not played:
        return
    samples = len(played[0])
    counts = set(wrapping.method.policy.row_counts(samples)) - {0, samples}
    while counts:
        plan = [tuple(row < count for row in range(samples)) for count in sorted(counts)]
        # Where one denoiser hands over to another, each has to come by every count.
        turns = 2 * len(denoisers(pipe)) - 1
        played = _play(pipe, wrapping, arguments, [(True,) * samples, *plan * turns])
        done = {sum(row) for row in played}
        # Nothing is mixed where rows turned out to depend on each other.
        if not counts & done:
            return
        counts -= done


def _play(
    pipe: Any, wrapping: PipelineWrapping, arguments: Mapping[str, Any], mask: Sequence[Any]
) -> list[list[bool]]:
    """Generates by `mask`; returns the mask that was played."""
    method = wrapping.method.configured(policy=Mask(mask), guards=Guards.none())
    # Image to image leaves out the first steps.
    steps = ceil(len(mask) / (arguments.get("strength") or 1))
    few = {**arguments, "num_inference_steps": steps}
    return _generate(pipe, wrapping, method, few).mask.tolist()


def _generate(
    pipe: Any, wrapping: PipelineWrapping, method: Method, arguments: Mapping[str, Any]
) -> Report:
    """Generates with `method` in place of the wrapped one."""
    wrappings[pipe] = playing = PipelineWrapping(method)
    playing.checked = wrapping.checked
    pipe(**arguments)
    return playing.report
