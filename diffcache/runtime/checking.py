"""Whether a denoiser can be called with some rows of a batch, found out at the first such call."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from diffcache.kernels.transfer import sent

from .reading import on_host
from .report import Report
from .rows import as_index, by_rows, tensor_leaves
from .turn import Turn


class Checked(dict[Hashable, bool]):
    """Which kinds of calls may be made with some rows of a batch, as far as it was seen."""

    _version: Hashable = None

    def refresh(self, version: Hashable) -> None:
        """Forgets what was seen of denoisers of another version."""
        if version != self._version:
            self.clear()
        self._version = version


def unchecked(attachment: Any, turn: Turn, checked: dict[Hashable, bool]) -> bool:
    """Whether a call of several rows may be mixed, and no mixed one of its kind is in `checked`."""
    # A draft that some rows reject becomes a mixed step.
    settled = turn.mask is not None and not turn.mixed and (turn.full or not turn.verifies)
    return not (settled or _signature(attachment, turn) in checked)


def run_first(attachment: Any, turn: Turn, checked: dict[Hashable, bool], report: Report) -> Any:
    """Serves a call that may be the first mixed one of its kind, and enters it in `checked`.

    That one is computed in full as well; models that couple rows, or cannot be called with
    some of them, stop mixing.
    """
    turn.expose_row()
    before = turn.lane.snapshot()
    output = why = None
    try:
        output = attachment.run(turn)
    except Exception as error:
        if not turn.mixed:
            raise
        why = f"cannot be called with some rows of a batch ({type(error).__name__}: {error})"
    if not turn.mixed:
        return output
    mask, after = turn.mask, turn.lane.snapshot()
    turn.lane.restore(before)
    turn.compute_all()
    full = attachment.run(turn)
    if why is None and not _agree(turn, output, full, as_index(mask)):
        why = "couples the rows of a batch"
    checked[_signature(attachment, turn)] = why is None
    if why is None:
        turn.lane.restore(after)
        turn.mask = mask
        report.note("rows are independent: one mixed step was computed twice to make sure")
        return output
    turn.run.couple_samples()
    report.note(f"the denoiser {why}, so all samples are computed together")
    return full


def _signature(attachment: Any, turn: Turn) -> Hashable:
    shapes = tuple(tuple(leaf.shape) for leaf in tensor_leaves((turn.args, turn.kwargs)))
    return (attachment.key, turn.rows, shapes)


def _agree(turn: Turn, gathered: Any, full: Any, index: Tensor) -> bool:
    return all(
        _close(a[sent(index, a.device)], b[sent(index, b.device)])
        for a, b in zip(by_rows(gathered, turn.listed), by_rows(full, turn.listed), strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to what another batch size changes in a kernel's order of summation."""
    tolerance = 1e-3 if a.dtype == torch.float32 else 3e-2
    difference = (a.float() - b.float()).flatten(1).norm(dim=1)
    within = difference <= tolerance * b.float().flatten(1).norm(dim=1)
    return bool(on_host(within).all())
