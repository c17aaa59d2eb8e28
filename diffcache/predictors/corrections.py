"""What a gap of skipped steps left a sample off by, told by the value that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from .base import Predictor


class Course(NamedTuple):
    """How the steps of a run move the sample x, which is taken in units of the clean one.

    A prediction F made at noise σ says that the clean sample is m = x − σ F, and the step goes to
    (σ₊/σ) x + (1 − σ₊/σ) (m + k (m − m₋)), where σ₊ is the noise it leads to and m₋ what the step
    before has said. k is 0 where the sampler keeps nothing of earlier steps.

    Attributes:
        times: the coordinate of each step.
        noise: σ of each step, and what the last one leads to.
        carries: k of each step.
        slopes: how a prediction changes with x.
        units: how much of the scheduler's own sample one unit of x is; below 0 where predictions
            are −F.
    """

    times: tuple[float, ...]
    noise: tuple[float, ...]
    carries: tuple[float, ...]
    slopes: tuple[float, ...]
    units: tuple[float, ...]


class Correction(NamedTuple):
    """Weights of the anchors, newest first, that sum to what is to be added.

    Attributes:
        place: which step of the course ends the gap.
        sample: to the sample x.
        clean: to what the step before has said of the clean sample.
        damped_sample, damped_clean: what comes on top for a unit of 1 − damping of the forecasts.
    """

    place: int
    sample: tuple[float, ...]
    clean: tuple[float, ...]
    damped_sample: tuple[float, ...]
    damped_clean: tuple[float, ...]


@lru_cache(maxsize=4096)
def correction(base: Predictor, course: Course, times: tuple[float, ...]) -> Correction | None:
    """What makes up for the gap that the newest of values computed at `times` ends.

    With that value among the anchors of `base`, what was forecast in the gap can be interpolated,
    which is the corrector of a multistep solver without another evaluation. Steps are linear in
    predictions, so the differences add up to where the sample would have been, as one weighted sum
    of the anchors. It counts in full while the move that the newest value accounts for is up to
    half the noise that is left, and no more where it is all of it. Ours.

    Args:
        base: what forecast the gap, and interpolates it.
        times: of the computed values, newest first; one more than `base` reads.

    Returns:
        None where no gap is ended, or one that leads too far, or `times` are not of this course.
    """
    if len(times) < 2 or times[0] not in course.times or times[1] not in course.times:
        return None
    newest, older = (course.times.index(time) for time in times[:2])
    if newest < older + 2:
        return None
    anchors = torch.tensor([times], dtype=torch.float64)
    # What forecasts as they are call for, and what their damping adds.
    sample, before = torch.zeros(2, 2, len(times), dtype=torch.float64)
    reach = 0.0
    for step in range(older + 1, newest):
        t = torch.tensor([course.times[step]], dtype=torch.float64)
        learnt, forecast, newest_known = torch.zeros(3, len(times), dtype=torch.float64)
        after, plain = base.coefficients(anchors, t)[0], base.coefficients(anchors[:, 1:], t)[0]
        learnt[: len(after)] = after
        forecast[1 : 1 + len(plain)] = plain
        newest_known[1] = 1.0
        missed = torch.stack([learnt - forecast, forecast - newest_known])
        clean = sample - course.noise[step] * missed
        kept = course.noise[step + 1] / course.noise[step]
        sample = kept * sample + (1 - kept) * (clean + course.carries[step] * (clean - before))
        before = clean
        reach += (course.noise[step] - course.noise[step + 1]) * float(after[0])
    # A gap that reaches far into what noise is left ends in a value that says little of it; next to
    # the clean sample predictions turn faster than anything interpolates.
    trust = min(1.0, 2 - 2 * abs(reach) / course.noise[newest])
    if trust <= 0:
        return None
    (plain_sample, damped_sample), (plain_clean, damped_clean) = (
        map(tuple, (trust * found).tolist()) for found in (sample, before)
    )
    return Correction(newest, plain_sample, plain_clean, damped_sample, damped_clean)


def followed(guided: Sequence[torch.Tensor], branches: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far each sample's `guided` values are made of their `branches` in one way, from 1 to 0.

    Values of two guidance scales lie on no one course, and corrections would take the change of
    scale for an error. The newest value tells the weights of its branches, by least squares. They
    count in full while they miss earlier values by up to 0.3 of what the newest has changed by,
    which rounding does in bf16, and no more from half of it on. Ours.

    Args:
        guided: newest first, each `[samples, elements]`.
        branches: those of each, `[samples, branches, elements]`.

    Returns:
        `[samples]` fp32.
    """
    # Autocast would take the products in a precision that no solver knows.
    with torch.autocast(guided[0].device.type, enabled=False):
        return _followed(guided, branches)


def _followed(guided: Sequence[torch.Tensor], branches: Sequence[torch.Tensor]) -> torch.Tensor:
    newest, first = guided[0].float(), branches[0].float()
    products = first @ first.mT
    # Branches are nearly alike, and where they are the same any weights will do.
    ridge = 1e-6 * products.diagonal(dim1=1, dim2=2).mean(1)
    products.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    sought = first @ newest[:, :, None]
    # Unlike `solve`, this waits for no device to say whether it could be solved.
    weights = torch.linalg.solve_ex(products, sought).result
    least = torch.ones_like(ridge)
    for value, parts in zip(guided[1:], branches[1:], strict=True):
        missed = (weights.mT @ parts.float())[:, 0] - value.float()
        changed = (newest - value.float()).norm(dim=1)
        least = torch.minimum(least, 2.5 - 5 * missed.norm(dim=1) / changed.clamp(min=1e-12))
    return least.clamp(min=0).nan_to_num(0.0)


def taken_back(newest: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """How much of its `last` correction each sample's `newest` takes back, from 0 to 1: −cos.

    Both are `[samples, elements]`, a last one that is not known zero; gives `[samples]` fp32. Over
    σ it is what predictions change with the sample by beyond the course's slope. Ours.
    """
    return (-torch.cosine_similarity(newest.float(), last.float())).clamp(min=0)
