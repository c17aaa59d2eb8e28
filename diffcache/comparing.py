"""Methods against the plain pipeline, and against spending the same on fewer steps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from . import metrics
from .api import unwrap, wrapped
from .comparison import Comparison, Row
from .methods import Method
from .runtime.report import Report
from .trial import Run, Trial

PLAIN = "plain"
# The few_steps guard computes runs of up to 8 steps in full, which would leave kernels uncompiled.
WARM_UP_STEPS = 12


class _Contender(NamedTuple):
    label: str
    method: str | Method
    options: dict[str, Any]


class _Cost(NamedTuple):
    """Of a picture, all steps computed: scheduler steps, and denoiser rows over those."""

    steps: float
    row_steps: float | None

    def share(self, compute: float) -> dict[str, float | None]:
        rows = None if self.row_steps is None else compute * self.row_steps
        return {"steps": compute * self.steps, "row_steps": rows, "compute": compute}


def compare(
    pipe: Any,
    prompts: Sequence[str | Mapping[str, Any]],
    methods: Any = ("adaptive",),
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 4,
    **call_kwargs: Any,
) -> Comparison:
    """Generates the same pictures plainly, with methods, and with as few steps as each computed.

    The last is what a method has to beat: the same scheduler at the same cost. A pipeline that is
    wrapped, or not, is so again afterwards, also after an exception.

    Args:
        pipe: a diffusers pipeline.
        prompts: one entry a picture: a string, or a mapping of the call's arguments that are that
            picture's own, such as `{"prompt": "a cat", "image": image}`. In a batch tensors are
            concatenated along their first axis, and everything else is put into a list.
        methods: each a name of `diffcache.methods()`, a `Method`, or a pair of either and a dict
            of options; or a mapping of labels to such.
        seeds: one a picture, for a generator on the CPU; 0, 1, 2, … if None.
        batch_size: pictures a call.
        call_kwargs: what else each call is given, for example `num_inference_steps=28`.

    Returns:
        The rows of a table: it prints, has `.markdown()`, and writes files with `.save("out/")`.

    Raises:
        ValueError: no prompts, another number of seeds, an unknown method, option or argument;
            nothing has run then.
        TypeError: `pipe` is not a pipeline.
    """
    contenders = _contenders(methods)
    if os.environ.get("DIFFCACHE_DISABLE") == "1":
        raise ValueError("DIFFCACHE_DISABLE=1 leaves nothing to compare; unset it first")
    if isinstance(pipe, torch.nn.Module):
        raise TypeError(
            f"{type(pipe).__name__} is a bare denoiser; call diffcache.compare(pipe, prompts) "
            "with the pipeline it belongs to"
        )
    # Whatever is on the pipeline comes back at the end of this block.
    with wrapped(pipe):
        unwrap(pipe)
        trial = Trial(pipe, prompts, seeds, batch_size, call_kwargs)
        for contender in contenders:
            with wrapped(pipe, contender.method, **contender.options):
                pass
        return _compared(trial, contenders)


def _compared(trial: Trial, contenders: list[_Contender]) -> Comparison:
    trial.warm_up(3)
    plain = trial.run(PLAIN)
    scale = _Scale(plain.pictures)
    rows: list[Row] = []
    notes = scale.notes()
    tried = {trial.steps}
    for label, method, options in contenders:
        with wrapped(trial.pipe, method, **options):
            trial.warm_up(WARM_UP_STEPS)
            run = trial.run(label, reporting=True)
        cost, compute = _accounts(run.reports, trial)
        if not rows:
            rows.append(
                Row(PLAIN, seconds=plain.seconds, pictures=scale.of(plain), **cost.share(1))
            )
        reference = rows[0].pictures
        fewer = max(1, round(compute * trial.steps)) if trial.steps else None
        steps_label = None if fewer == trial.steps else f"{fewer} steps"
        books = {
            **cost.share(compute),
            "mask": _joined([report.mask for report in run.reports], len(trial.entries)),
            "reports": run.reports,
            "fewer": steps_label,
        }
        rows.append(_row(label, run, scale.of(run), reference, books))
        notes += _notes(label, run.reports)
        if fewer not in tried:
            tried.add(fewer)
            run = trial.run(steps_label, num_inference_steps=fewer)
            books = cost.share(fewer / trial.steps)
            rows.append(_row(steps_label, run, scale.of(run), reference, books))
    if trial.steps is None:
        notes.append("not compared with fewer steps: the call is not given a number of steps")
    return Comparison(rows, trial.names, trial.seeds, trial.setting(), notes)


def _row(
    label: str, run: Run, pictures: np.ndarray, reference: np.ndarray, books: dict[str, Any]
) -> Row:
    return Row(
        label,
        seconds=run.seconds,
        pictures=pictures,
        psnr=metrics.psnr(reference, pictures),
        mean_error_psnr=metrics.mean_error_psnr(reference, pictures),
        ssim=metrics.ssim(reference, pictures),
        **books,
    )


def _notes(label: str, reports: list[Report]) -> list[str]:
    counts = Counter(note for report in reports for note in report.notes)
    return [
        f"{label}: {note}"
        + (f" ({count} of {len(reports)} batches)" if count < len(reports) else "")
        for note, count in counts.items()
    ]


class _Scale:
    """Brings values to [0, 1] by the plain results' range, if they do not lie there already."""

    def __init__(self, plain: np.ndarray) -> None:
        finite = plain[np.isfinite(plain)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        fits = low >= -0.01 and high <= 1.01
        self.low, self.high = (0.0, 1.0) if fits else (low, max(high, low + 1e-12))

    def of(self, run: Run) -> np.ndarray:
        return (run.pictures - self.low) / (self.high - self.low)

    def notes(self) -> list[str]:
        if (self.low, self.high) == (0.0, 1.0):
            return []
        return [f"values of {self.low:.3g} to {self.high:.3g} are scaled to 0 to 1 for PSNR"]


def _accounts(reports: list[Report], trial: Trial) -> tuple[_Cost, float]:
    """What a plain picture costs, and the share of it that was computed."""
    total = sum(report.total for report in reports)
    # A generation that gave up on its caches may report no steps.
    steps = max(report.steps for report in reports) or trial.steps or 1
    if not total:
        return _Cost(steps, None), 1.0
    return _Cost(steps, total / len(trial.entries)), sum(r.computed for r in reports) / total


def _joined(masks: list[torch.Tensor], count: int) -> np.ndarray | None:
    """Masks of batches as one `[steps, count]`; None where steps or samples do not fit."""
    if len({len(mask) for mask in masks}) != 1 or sum(m.shape[1] for m in masks) != count:
        return None
    return torch.cat(masks, dim=1).numpy()


def _contenders(methods: Any) -> list[_Contender]:
    if isinstance(methods, (str, Method)):
        methods = [methods]
    if not methods:
        raise ValueError(
            f"methods={methods!r} is empty; call compare(pipe, prompts, methods=['adaptive'])"
        )
    if isinstance(methods, Mapping):
        return [_Contender(str(label), *_with_options(m)) for label, m in methods.items()]
    found = [_contender(method) for method in methods]
    names = [contender.label for contender in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"methods has two of {', '.join(map(repr, twice))}; call compare(pipe, prompts, "
            "methods={'one label': method, 'another': method})"
        )
    return found


def _contender(entry: Any) -> _Contender:
    method, options = _with_options(entry)
    name = method.name if isinstance(method, Method) else str(method)
    return _Contender(" ".join([name, *(f"{k}={v}" for k, v in options.items())]), method, options)


def _with_options(entry: Any) -> tuple[str | Method, dict[str, Any]]:
    if isinstance(entry, (str, Method)):
        return entry, {}
    if isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[1], Mapping):
        return entry[0], dict(entry[1])
    raise ValueError(
        f"{entry!r} among methods is neither a name, a Method, nor a pair with options; call "
        "compare(pipe, prompts, methods=['adaptive', ('adaptive', {'tolerance': 0.04})])"
    )
