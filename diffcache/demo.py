"""Both tiny pipelines with and without a method, as tables and one picture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from . import tiny
from .api import wrapped
from .comparing import compare
from .plots import draw, new_figure, panel

CALLS: dict[str, dict[str, Any]] = {"unet": {"guidance_scale": 3.0}, "dit": {}}
"""What each tiny pipeline is called with."""


def _quietly(make: Callable[[str], Any], kind: str) -> Any:
    """`make(kind)`, without what libraries that diffusers looks for log as they are imported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return make(kind)
    finally:
        logging.disable(before)


def demo(
    out: str | Path = "out", steps: int = 50, prompts: int = 8, method: str = "adaptive"
) -> Path:
    """Compares a method with the plain tiny pipelines, prints the tables and draws `demo.png`.

    Args:
        out: folder of the picture, made if it does not exist.
        steps: scheduler steps of the plain pipelines.
        prompts: pictures a pipeline; captions repeat, with other seeds, where there are too few.
        method: a name of `diffcache.methods()`.

    Returns:
        Path of `demo.png`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: an unknown method, one that serves neither pipeline, or no steps or prompts.
    """
    if prompts < 1:
        raise ValueError(f"prompts={prompts} is not a count; try prompts=8")
    # A missing matplotlib is better found before two minutes of work than after.
    new_figure(1, 1)
    panels = []
    for kind, call in CALLS.items():
        pipe = _quietly(tiny.pipeline, kind)
        try:
            with wrapped(pipe, method):
                pass
        except ValueError as error:
            print(f"\n{kind}: {error}\n", flush=True)
            continue
        captions = list(islice(cycle(tiny.prompts), prompts))
        found = compare(pipe, captions, [method], num_inference_steps=steps, **call)
        print(f"\n{found}\n", flush=True)
        (row,) = found.methods
        panels.append(panel(found, row, list(range(prompts))))
    if not panels:
        raise ValueError(f"{method!r} serves neither tiny pipeline; 'adaptive' serves both")
    path = Path(out, "demo.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(panels, path)
    return path
