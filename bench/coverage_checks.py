"""What a site must do on a model, checked on a few steps of a hand-written loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import diffcache
from diffcache import Guards, Method
from diffcache.policies import Mask
from diffcache.predictors import Reuse
from diffcache.runtime.rows import tensor_leaves
from diffcache.sites import BlockStack, Guidance, Modules, Output, Site, UNetBranch, recording
from diffcache.sites.discovery import block_lists, is_unet
from diffcache.sites.modules import modules_of
from diffcache.sites.unet_levels import below

ALWAYS = (True,)
SKIPPING = ((True,), (True,), (False,), (False,), (True,), (False,))
MIXED = ((True, True), (True, True), (True, False), (False, True), (True, True), (False, False))
STEPS = len(SKIPPING)


@dataclass(frozen=True)
class Column:
    """A site, and what a skip of it must not run.

    Args:
        name: how the table calls it.
        site: the site.
        parts: the parts of a model that the site bypasses; a model without any is none of its.
        kept: how many of the parts a skip runs all the same.
        guided: whether a skip runs half of the rows, in calls with both branches of guidance.
    """

    name: str
    site: Site
    parts: Callable[[nn.Module], list[nn.Module]]
    kept: int = 0
    guided: bool = False


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [block for _, blocks in block_lists(model) for block in blocks]


def _branch(model: nn.Module) -> list[nn.Module]:
    return list(below(model, 0, 1).modules) if is_unet(model) else []


COLUMNS = (
    Column("output", Output(), lambda model: [model]),
    Column("block stack", BlockStack(head=1), _blocks, kept=1),
    Column("block stack, no head", BlockStack(head=0), _blocks),
    Column("UNet branch", UNetBranch(), _branch),
    Column("modules", Modules(), lambda model: list(modules_of(model).values())),
    Column("guidance", Guidance(), lambda model: [model], kept=1, guided=True),
)


@dataclass(frozen=True)
class Verdict:
    """What came of the checks, and why.

    Besides `ok`, `not applicable` and `failed` there is what a report's note announces: `batch as
    one` (samples are not skipped one by one), `in part` (some parts stay computed), `whole output`
    (in place of the site) and `computed` (nothing is skipped).
    """

    status: str
    note: str = ""


class Failed(Exception):
    """A check did not hold."""


@dataclass
class Subject:
    """A model in a loop of its own, and what it gives when nothing is wrapped.

    Args:
        model: the model.
        caller: gives, for a number of rows, what gives a call's arguments by name:
            `caller(rows)(timestep, scale)`.
        samples: samples of the batch.
        guided: whether a call has two rows a sample, the second of them conditional.
    """

    model: nn.Module
    caller: Callable[[int], Callable[[float, float], dict[str, Any]]]
    samples: int
    guided: bool = False
    scheduler: Any = field(default_factory=FlowMatchEulerDiscreteScheduler)
    plain: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = self.samples * (1 + self.guided)
        self.arguments = self.caller(self.rows)
        self.plain = self.run()

    def run(self, after: Callable[[], None] = lambda: None) -> list[Tensor]:
        """The model's output at each step `[rows, values]`; `after` is called after each step."""
        self.scheduler.set_timesteps(STEPS)
        found = []
        for index, t in enumerate(self.scheduler.timesteps):
            output = tensor_leaves(self.model(**self.arguments(float(t), 1 - 0.05 * index)))
            if not output:
                raise ValueError("the output has no tensor")
            # A few models give a list with one tensor a row.
            listed = any(leaf.shape[0] != self.rows for leaf in output)
            rows = [torch.stack(output)] if listed else output
            found.append(torch.cat([leaf.flatten(1).double() for leaf in rows], 1))
            prediction = torch.lerp(*rows[0].chunk(2), 4.0) if self.guided else rows[0]
            self.scheduler.step(prediction, t, torch.zeros_like(prediction))
            after()
        return found


def check(subject: Subject, column: Column) -> Verdict:
    """Puts the column's site on the subject and checks what it promises."""
    if column.guided:
        if subject.samples == 1:
            return Verdict("not applicable", "its inputs are packed without rows")
        subject = replace(subject, guided=True, plain=[])
    try:
        column.site.check(subject.model)
    except ValueError:
        return Verdict("not applicable")
    before = _state(subject.model)
    verdict = _checked(subject, column)
    diffcache.unwrap(subject.model)
    if _state(subject.model) != before:
        return Verdict("failed", "unwrapping leaves the model changed")
    return verdict


def _checked(subject: Subject, column: Column) -> Verdict:
    try:
        _never_skipping(subject, column)
        whole = _skipping(subject, column)
        return whole if whole.status == "computed" else _mixed_rows(subject, column, whole)
    except Failed as failure:
        return Verdict("failed", str(failure))
    except Exception as error:
        return Verdict("failed", f"{type(error).__name__}: {error}".splitlines()[0])


def _state(model: nn.Module) -> list[Any]:
    return [(type(module), set(vars(module))) for module in model.modules()]


def _wrap(subject: Subject, column: Column, mask: Any) -> None:
    method = Method(column.site, Mask(mask), Reuse(), Guards.none())
    diffcache.wrap(subject.model, method, scheduler=subject.scheduler)


def _never_skipping(subject: Subject, column: Column) -> None:
    for mask in (ALWAYS, None):
        if mask is None:
            diffcache.unwrap(subject.model)
            if type(subject.scheduler) is not FlowMatchEulerDiscreteScheduler:
                raise Failed("unwrapping leaves the scheduler changed")
        else:
            _wrap(subject, column, mask)
        if not all(map(torch.equal, subject.run(), subject.plain)):
            raise Failed(f"{'unwrapped' if mask is None else 'never skipping'} changes the output")


def _skipping(subject: Subject, column: Column) -> Verdict:
    """Checks steps that skip all rows."""
    parts = [part for part in column.parts(subject.model) if part is not subject.model]
    with counted([subject.model]) as called, counted(parts) as ran:
        _wrap(subject, column, SKIPPING)
        with poisoned(float("nan")):
            found = subject.run(after=lambda: (called.next_step(), ran.next_step()))
        report = diffcache.report(subject.model)
        diffcache.unwrap(subject.model)
    if (reason := _given_up(report, SKIPPING)) is not None:
        return Verdict("computed", reason)
    partly = Verdict("ok")
    spared = [note for note in report.notes if "stay computed" in note]
    for step, (computed,) in enumerate(SKIPPING):
        if not found[step].isfinite().all():
            raise Failed(f"a placeholder reaches the output of step {step}")
        same = torch.equal(found[step], subject.plain[step])
        # What stays computed may be all that changes from step to step.
        if same != computed and not (same and spared):
            raise Failed(f"step {step} is {'not ' if computed else ''}what a full run gives")
        given, wanted = (run[step][subject.samples :] for run in (found, subject.plain))
        if column.guided and not torch.allclose(given, wanted, rtol=1e-3, atol=1e-4):
            raise Failed(f"conditional rows of step {step} are not those of a full run")
        if not computed and (count := (ran if parts else called).steps[step]) > column.kept:
            if not spared:
                raise Failed(f"a skip runs {count} of {len(parts) or 1} parts")
            partly = Verdict("in part", spared[0])
    _wrap(subject, column, SKIPPING)
    with poisoned(7.0):
        again = subject.run()
    if not all(map(torch.equal, found, again)):
        raise Failed("what stands in a placeholder changes the output")
    if not (called.steps[2] or isinstance(column.site, Output)):
        return Verdict("whole output", _reason(report))
    return partly


def _mixed_rows(subject: Subject, column: Column, whole: Verdict) -> Verdict:
    """Checks steps that compute some rows; gives `whole` where nothing is to be said of them."""
    if subject.samples == 1:
        return whole
    _wrap(subject, column, MIXED)
    with poisoned(float("nan")):
        found = subject.run()
    report = diffcache.report(subject.model)
    if report.mask is None:
        return Verdict("computed", _reason(report))
    for step, row in enumerate(report.mask.tolist()):
        for sample, computed in enumerate(row):
            wanted, got = subject.plain[step][sample], found[step][sample]
            if not got.isfinite().all():
                raise Failed(f"a placeholder reaches sample {sample} at step {step} of a mixed run")
            error = float((got - wanted).norm() / wanted.norm())
            if computed and error > 1e-3:
                raise Failed(f"a computed row is off by {error:.1e} in a mixed step")
    reason = _given_up(report, MIXED)
    return whole if reason is None else Verdict("batch as one", reason)


def _given_up(report: diffcache.Report, mask: Any) -> str | None:
    """Why the run did not follow the mask, or None where it did."""
    if report.mask is not None and report.mask[:, : len(mask[0])].tolist() == [*map(list, mask)]:
        return None
    return _reason(report)


def _reason(report: diffcache.Report) -> str:
    notes = [note for note in report.notes if note != "nothing was skipped"]
    if not notes:
        raise Failed("the mask is not followed, and the report does not say why")
    return notes[0]


@contextmanager
def poisoned(value: float) -> Iterator[None]:
    """Fills the placeholders of all sites with `value`."""

    def placeholder(meta: Any) -> Tensor:
        shape, dtype, device = meta
        if not (dtype.is_floating_point or dtype.is_complex):
            return torch.zeros(shape, dtype=dtype, device=device)
        return torch.full(shape, value, dtype=dtype, device=device)

    plain = recording.placeholder
    recording.placeholder = placeholder
    try:
        yield
    finally:
        recording.placeholder = plain


class Ran:
    """How many parts ran, step by step."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.now: set[int] = set()

    def next_step(self) -> None:
        """Closes the count of a step."""
        self.steps.append(len(self.now))
        self.now.clear()


@contextmanager
def counted(parts: list[nn.Module]) -> Iterator[Ran]:
    """Counts which parts run: whose own `forward`, which no gate replaces, is entered."""
    ran = Ran()
    for number, part in enumerate(parts):
        part.forward = _noting(part.forward, partial(ran.now.add, number))
    try:
        yield ran
    finally:
        for part in parts:
            del part.forward


def _noting(forward: Callable, note: Callable[[], None]) -> Callable:
    @wraps(forward)
    def noting(*args: Any, **kwargs: Any) -> Any:
        note()
        return forward(*args, **kwargs)

    return noting
