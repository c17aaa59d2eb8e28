"""The same prompts and seeds through a pipeline, again and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle, islice
from operator import index
from typing import Any, NamedTuple

import numpy as np
import torch

from . import metrics
from .api import report
from .arguments import check_taken, parameters
from .options import is_count
from .runtime.report import Report

_RESERVED = {
    "generator": "seeds=[...] makes one a picture",
    "output_type": "floats are asked for, because bytes would hide small errors",
    "return_dict": "leave it out",
    "num_images_per_prompt": "list a prompt twice, with two seeds",
    "num_videos_per_prompt": "list a prompt twice, with two seeds",
    "num_waveforms_per_prompt": "list a prompt twice, with two seeds",
}

# What `compare` and `tune` take beside arguments of the call.
_ASKED = ("batch_size", "beside", "methods", "minutes", "psnr", "seeds", "speedup")


class Run(NamedTuple):
    """All pictures once.

    Attributes:
        pictures: `[N, ...]` float32 on the CPU.
        seconds: wall time of a picture, the median over batches.
        reports: one a batch; none of a plain pipeline.
    """

    pictures: np.ndarray
    seconds: float
    reports: list[Report]


class Trial:
    """What to generate, checked against the pipeline's signature.

    Arguments and errors are those of `diffcache.compare`. Without seeds, prompts are repeated in
    turn until there are `pictures`.

    Attributes:
        prompts: how many there are.
        entries: what each picture is made of.
        seeds: of each.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Any,
        seeds: Any,
        batch_size: int,
        call_kwargs: dict[str, Any],
        pictures: int = 1,
    ) -> None:
        self.pipe = pipe
        given = _entries(prompts)
        self.prompts = len(given)
        count = max(pictures, self.prompts) if seeds is None else self.prompts
        self.entries = list(islice(cycle(given), count))
        self.seeds = _seeds(seeds, len(self.entries))
        if not is_count(batch_size, 1):
            raise ValueError(f"batch_size={batch_size!r} is not a count; try batch_size=4")
        self.batch_size = int(batch_size)
        self.call_kwargs = call_kwargs
        self.parameters = parameters(type(pipe))
        self._check_arguments()
        self.steps = self._steps()
        self.names = [
            str(entry.get("prompt", f"picture {i}")) for i, entry in enumerate(self.entries)
        ]

    def _check_arguments(self) -> None:
        own = set(self.entries[0])
        for name in (*own, *self.call_kwargs):
            if name in _RESERVED:
                raise ValueError(f"{name} cannot be given: {_RESERVED[name]}")
        if twice := own & set(self.call_kwargs):
            raise ValueError(
                f"{', '.join(sorted(twice))} is given with the prompts and for every call; "
                "leave one of them out"
            )
        check_taken(self.pipe, own | set(self.call_kwargs), _ASKED)

    def _steps(self) -> int | None:
        """Steps of a plain call; None where they cannot be asked for by one number."""
        given = [{**self.call_kwargs, **entry} for entry in self.entries]
        if any(each.get(name) is not None for each in given for name in ("timesteps", "sigmas")):
            return None
        if "num_inference_steps" not in given[0]:
            default = getattr(self.parameters.get("num_inference_steps"), "default", None)
            return default if isinstance(default, int) else None
        counts = [each["num_inference_steps"] for each in given]
        for steps in counts:
            if not is_count(steps, 1):
                raise ValueError(
                    f"num_inference_steps={steps!r} is not a count; try num_inference_steps=50"
                )
        return int(counts[0]) if len(set(counts)) == 1 else None

    def setting(self) -> dict[str, Any]:
        """What is generated how, ready for JSON."""
        scheduler = getattr(self.pipe, "scheduler", None)
        simple = (bool, int, float, str)
        return {
            "pipeline": type(self.pipe).__name__,
            "scheduler": None if scheduler is None else type(scheduler).__name__,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "device": str(self.pipe.device),
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
            "call": {k: v for k, v in self.call_kwargs.items() if isinstance(v, simple)},
        }

    def warm_up(self, steps: int) -> None:
        """Generates the first batch in a few steps, so that what happens once is not timed."""
        fewer = {}
        # strength drops steps, and of a few it may leave none.
        if self.steps is not None and "strength" not in self.parameters:
            fewer["num_inference_steps"] = min(steps, self.steps)
        with _progress(self.pipe, disable=True):
            self._call(range(min(self.batch_size, len(self.entries))), fewer)

    def keep(self, count: int) -> None:
        """Leaves all but the first `count` pictures out from now on."""
        del self.entries[count:], self.seeds[count:], self.names[count:]

    def run(
        self,
        label: str,
        *,
        reporting: bool = False,
        batch_size: int | None = None,
        until: float | None = None,
        after_first: Callable[[float], None] | None = None,
        **more: Any,
    ) -> Run:
        """Generates all pictures; `more` replaces arguments of the call.

        No batch but the first is begun later than `until`, on the clock of `time.perf_counter`.
        `after_first` is told the seconds that the first batch took.

        Raises:
            ValueError: a batch gave more or fewer pictures than entries, or another size.
        """
        pictures, seconds, reports = [], [], []
        size, start = batch_size or self.batch_size, 0
        while start < len(self.entries):
            if start and until is not None and time.perf_counter() > until:
                break
            indices = range(start, min(start + size, len(self.entries)))
            of = -(-len(self.entries) // size)
            with _progress(self.pipe, desc=f"{label}, batch {start // size + 1} of {of}"):
                began = time.perf_counter()
                output = self._call(indices, more)
                elapsed = time.perf_counter() - began
            seconds.append(elapsed / len(indices))
            pictures.append(_pictures(output, len(indices)))
            if pictures[-1].shape[1:] != pictures[0].shape[1:]:
                raise ValueError(
                    f"pictures of one size are needed, got {pictures[0].shape[1:]} and "
                    f"{pictures[-1].shape[1:]}; compare each size by itself"
                )
            if reporting:
                reports.append(report(self.pipe))
            if start == 0 and after_first is not None:
                after_first(elapsed)
            start += size
        return Run(np.concatenate(pictures), statistics.median(seconds), reports)

    def not_finite(self, plain: np.ndarray) -> str | None:
        """Which `plain` pictures hold NaN or infinities, and what to do; None where none does."""
        broken = np.flatnonzero(~np.isfinite(plain).reshape(len(plain), -1).all(axis=1))
        if not broken.size:
            return None
        named = [f"{self.names[i]!r} with seed {self.seeds[i]}" for i in broken[:3]]
        more = [f"{broken.size - 3} more"] if broken.size > 3 else []
        return (
            f"{broken.size} of {len(plain)} pictures are not finite without diffcache already: "
            f"{', '.join(named + more)}; leave them out, or generate in a dtype that holds all "
            "values, as after pipe.to(torch.float32)"
        )

    def _call(self, indices: range, more: dict[str, Any]) -> Any:
        generators = [torch.Generator("cpu").manual_seed(self.seeds[i]) for i in indices]
        entries = [self.entries[i] for i in indices]
        merged = {name: _merged([entry[name] for entry in entries]) for name in entries[0]}
        arguments = {**self.call_kwargs, **merged, **more}
        if "output_type" in self.parameters:
            arguments["output_type"] = "np"
        # Pipelines that edit pictures often take one prompt and no list.
        generator = generators if len(generators) > 1 else generators[0]
        return self.pipe(**arguments, generator=generator)


def _entries(prompts: Any) -> list[dict[str, Any]]:
    if isinstance(prompts, (str, Mapping)):
        raise ValueError(f"prompts={prompts!r} is one prompt; pass a list, prompts=[{prompts!r}]")
    if not isinstance(prompts, Iterable):
        raise ValueError(f"prompts={prompts!r} is no list of prompts; pass ['a prompt']")
    entries = [{"prompt": p} if isinstance(p, str) else p for p in prompts]
    if not entries:
        raise ValueError(f"prompts={prompts!r} is empty; pass ['a prompt']")
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise ValueError(
                f"{entry!r} among prompts is neither a string nor a mapping of arguments; pass "
                "['a prompt'] or [{'prompt': 'a prompt'}]"
            )
        if set(entry) != set(entries[0]):
            raise ValueError(
                f"prompts give different arguments, {sorted(entries[0])} and {sorted(entry)}; "
                "give each the same ones"
            )
    return [dict(entry) for entry in entries]


def _seeds(seeds: Any, count: int) -> list[int]:
    if seeds is None:
        return list(range(count))
    try:
        listed = [index(seed) for seed in (seeds if isinstance(seeds, Iterable) else [seeds])]
    except TypeError as error:
        raise ValueError(
            f"seeds={seeds!r} are not whole numbers; leave them out, or pass seeds=range({count})"
        ) from error
    if len(listed) != count:
        raise ValueError(
            f"{count} prompts need as many seeds, got seeds={seeds!r}; leave them out, or pass "
            f"seeds=range({count})"
        )
    return listed


def _pictures(output: Any, count: int) -> np.ndarray:
    """What a call for `count` entries gave, `[count, ...]` float32."""
    found = metrics.as_floats(output[0]).astype(np.float32)
    if len(found) != count:
        raise ValueError(
            f"{count} of the prompts gave {len(found)} pictures; give each picture an entry of its "
            "own, as in prompts=['a cat', 'a dog']"
        )
    return found


def _merged(values: list[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    return torch.cat(values) if isinstance(values[0], torch.Tensor) else values


@contextmanager
def _progress(pipe: Any, **options: Any) -> Iterator[None]:
    """Options of the pipeline's progress bar that its owner has not set, for a while."""
    before = pipe.__dict__.get("_progress_bar_config")
    pipe.set_progress_bar_config(**{**options, **(before or {})})
    try:
        yield
    finally:
        if before is None:
            pipe.__dict__.pop("_progress_bar_config", None)
        else:
            pipe._progress_bar_config = before
