"""Whether a denoiser can be called with some rows of a batch, found out at the first such call."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from diffcache.kernels.transfer import sent

from .reading import on_host
from .report import Report
from .rows import by_rows, tensor_leaves
from .turn import Turn


class Checked(dict[Hashable, str | None]):
    """Why kinds of calls are not made with some rows of a batch, None where they may be.

    What is in it was seen.
    """

    _version: Hashable = None

    def refresh(self, version: Hashable) -> None:
        """Forgets what was seen of denoisers of another version."""
        if version != self._version:
            self.clear()
        self._version = version

    @property
    def why_coupled(self) -> str | None:
        """Why no call is made with some rows of a batch; None where there is no reason."""
        return next(filter(None, self.values()), None)


def unchecked(attachment: Any, turn: Turn, checked: Checked) -> bool:
    """Whether a call of several rows may be mixed, and no mixed one of its kind is in `checked`."""
    # A draft that some rows reject becomes a mixed step.
    settled = turn.mask is not None and not turn.mixed and (turn.full or not turn.verifies)
    return not settled and any(kind not in checked for kind in _kinds(attachment, turn))


def run_first(attachment: Any, turn: Turn, checked: Checked, report: Report) -> Any:
    """Serves a call that may be the first mixed one of its kind, and enters it in `checked`.

    That one is computed in full as well, and once more without the first row unless it is; models
    that couple rows, or cannot be called with some of them, stop mixing. Where it comes to nothing
    finite nothing is entered, and only the run stops mixing.
    """
    before = turn.lane.snapshot()
    output, why = _attempt(attachment, turn)
    if not turn.mixed:
        return output
    decided, after = turn.decided, turn.lane.snapshot()
    tried = output
    if turn.leave_first_out() and why is None:
        turn.lane.restore(before.snapshot())
        tried, why = _attempt(attachment, turn)
    kinds, index = _kinds(attachment, turn), turn.index()
    turn.lane.restore(before)
    turn.compute_all()
    full = attachment.run(turn)
    if why is None and _interleaved(turn):
        why = "the guidance branches of a sample lie side by side in the batch"
    alike = why is None and _agree(turn, tried, full, index)
    if alike is None:
        turn.run.decisions.couple()
        report.note(
            "a mixed step could not be checked, as what it computes is not finite, so all samples "
            "of this run are computed together"
        )
        return full
    if alike:
        checked.update(dict.fromkeys(kinds))
        report.note("rows are independent: a mixed step was computed in full as well to make sure")
        turn.lane.restore(after)
        turn.decided = decided
        return output
    why = (
        f"{why or 'the denoiser couples the rows of a batch'}, so all samples are computed together"
    )
    checked.update(dict.fromkeys(kinds, why))
    turn.run.decisions.couple()
    report.note(why)
    return full


def _attempt(attachment: Any, turn: Turn) -> tuple[Any, str | None]:
    """The output of a call that may be mixed, or why it cannot be."""
    try:
        return attachment.run(turn), None
    except Exception as error:
        if not turn.mixed:
            raise
        found = f"{type(error).__name__}: {error}"
        return None, f"some rows of a batch could not be computed apart ({found})"


def _kinds(attachment: Any, turn: Turn) -> list[tuple[Hashable, ...]]:
    """Of what kinds a call is, each to be checked: one, or one for each sort of mixed modules."""
    shapes = tuple(tuple(leaf.shape) for leaf in tensor_leaves((turn.args, turn.kwargs)))
    mixed = [path for path, mask in turn.groups.items() if any(mask) and not all(mask)]
    # Blocks are alike, and what couples rows is a sort of attention in all of them.
    sorts = {path.rpartition(".")[2] for path in mixed} or {None}
    return [(attachment.key, turn.rows, shapes, sort) for sort in sorts]


def _interleaved(turn: Turn) -> bool:
    """Whether rows 2k and 2k + 1 are of sample k, in place of k and k + samples (panoramas)."""
    samples = turn.run.samples
    if samples == 1 or turn.rows != 2 * samples:
        return False
    leaves = tensor_leaves((turn.args, turn.kwargs))
    main = next((leaf for leaf in leaves if leaf.ndim >= 3 and len(leaf) == turn.rows), None)
    if main is None:
        return False
    beside, apart = main.unflatten(0, (samples, 2)), main.unflatten(0, (2, samples))
    twins = (beside[:, 0] == beside[:, 1]).all() & (apart[0] != apart[1]).any()
    return bool(on_host(twins))


def _agree(turn: Turn, gathered: Any, full: Any, index: Tensor) -> bool | None:
    """Whether rows are the same in both; None where none of them is finite in the full one."""
    pairs = zip(by_rows(gathered, turn.listed), by_rows(full, turn.listed), strict=True)
    found = [_close(a[sent(index, a.device)], b[sent(index, b.device)]) for a, b in pairs]
    return all(map(all, found)) if any(found) else None


def _close(a: Tensor, b: Tensor) -> list[bool]:
    """Of rows finite in `b`: equal up to what another batch size changes in the order of sums."""
    tolerance = 1e-3 if a.dtype == torch.float32 else 3e-2
    difference = (a.float() - b.float()).flatten(1).norm(dim=1)
    size = b.float().flatten(1).norm(dim=1)
    finite, within = on_host(torch.stack([size.isfinite(), difference <= tolerance * size]))
    return within[finite].tolist()
