"""Measures what policies read, at the scheduler's steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan, sqrt
from operator import itemgetter, mul
from typing import Any

import torch
from torch import Tensor

from diffcache.kernels import forecast_error, latent_difference
from diffcache.kernels.transfer import sent
from diffcache.policies import (
    Evidence,
    ForecastError,
    LatentChange,
    ModuleChange,
    NoEvidence,
    PredictedChange,
)
from diffcache.predictors import Predictor

from .collector import Collector
from .history import Anchor, History, Weights
from .lanes import Lane
from .reading import Reading, numbers

_THIRD = (1.0, -3.0, 3.0, -1.0)


class NothingCollected(Collector):
    """For policies that decide from the step alone, or from inside the denoiser."""

    def before(self, now: Anchor) -> NoEvidence:
        return NoEvidence(self.samples)


class ForecastErrorCollector(Collector):
    """The embedded error: guided predictions really computed, against their undamped forecast.

    Error over growth is a rate, which changes slowly; rate times growth is the error predicted for
    a step.
    """

    def __init__(self, samples: int, predictor: Predictor, past: History, lagged: bool) -> None:
        super().__init__(samples, predictor, past, lagged)
        # Where evidence lags: step, squared errors, growths and who computed, not yet learnt from.
        self._measured: list[tuple[int, Reading, list[float], Sequence[bool]]] = []
        self._rates = [nan] * samples
        # Of the forecast of the step that was last looked ahead to.
        self._ahead: Anchor | None = None
        self._weights: Weights = ()
        self._growths: list[float] = []

    def before(self, now: Anchor) -> ForecastError:
        while self._measured and self._measured[0][0] < now.step - 1:
            _, squares, growths, computed = self._measured.pop(0)
            self._learn(squares.value().tolist(), growths, computed)
        if self.past.rows != self.samples:
            return ForecastError([nan] * self.samples)
        self._look_ahead(now)
        return ForecastError([*map(mul, self._rates, self._growths)])

    def after(
        self, now: Anchor, prediction: Tensor, latents: Tensor, computed: Sequence[bool]
    ) -> list[float] | None:
        past = self.past
        if not any(computed) or not past.fits([prediction]):
            return None
        if self._ahead is not now:
            self._look_ahead(now)
        weights: Any = self._weights[0]
        anchors = [*map(itemgetter(0), past.slots[: len(weights)])]
        if self._weights.count(weights) < len(self._weights):
            weights = torch.tensor(self._weights)
        squares = forecast_error(prediction, anchors, weights)
        if self.reader.lagged:
            self._measured.append((now.step, Reading(squares), self._growths, computed))
            return None
        # Where a batch is on another device, this is the one synchronisation of the step.
        return self._learn(numbers(squares), self._growths, computed)

    def _look_ahead(self, now: Anchor) -> None:
        self._ahead = now
        self._weights, self._growths = self.past.outlook(self.predictor, now)

    def _learn(
        self, squares: list[list[float]], growths: list[float], computed: Sequence[bool]
    ) -> list[float]:
        """The relative errors, from squared norms of what they are relative to beside theirs."""
        errors = []
        for sample, (off, size) in enumerate(zip(*squares, strict=True)):
            error = sqrt(off / size) if size else nan
            errors.append(error)
            rate = error / growths[sample] if growths[sample] else nan
            if computed[sample] and not isnan(rate):
                self._rates[sample] = rate
        return errors


class LatentChangeCollector(Collector):
    """Raw differences of the latents, kept in fp32, to add no rounding of their own.

    Of a scheduler that gives latents in bf16 they measure its rounding, as the released code's do.
    """

    def __init__(self, samples: int, predictor: Predictor, past: History, lagged: bool) -> None:
        super().__init__(samples, predictor, past, lagged)
        self.latents: list[Tensor] = []

    def before(self, now: Anchor) -> LatentChange:
        if len(self.latents) < 2:
            return LatentChange(self._unknown, None)
        count = self.latents[0][0].numel()
        found = latent_difference(self.latents, _THIRD[: len(self.latents)], steps=True)
        third = [found.abs_difference] if len(self.latents) == 4 else []
        read = self.reader.read(torch.stack([found.abs_step, *third]))
        if read is None:
            return LatentChange(self._unknown, None)
        changes = read.double() / count
        return LatentChange(changes[0], changes[1] if len(changes) == 2 else None)

    def after(
        self, now: Anchor, prediction: Tensor, latents: Tensor, computed: Sequence[bool]
    ) -> list[float] | None:
        # float() copies only when it must, and a pipeline may edit its latents in place.
        newest = latents.float() if latents.dtype != torch.float32 else latents.clone()
        if latents.dtype.itemsize < newest.dtype.itemsize:
            self.remark = (
                "latents in half precision differ by their rounding, which third differences "
                "measure; diffcache.wrap(pipe, 'adaptive') reads predictions"
            )
        if self.latents and self.latents[0].shape != newest.shape:
            self.latents = []
        self.latents = [newest, *self.latents[:3]]
        return super().after(now, prediction, latents, computed)

    @property
    def bytes(self) -> int:
        return sum(latent.nbytes for latent in self.latents)


class PredictedChangeCollector(Collector):
    """EasyCache's measure: how far the prediction moves for how far the latents do.

    With k = mean |v_t − v_p| / mean |x_t − x_p| over the last two computed steps, skipping the
    step from x_n changes the prediction by k · mean |x_n − x_{n−1}| / mean |v_t|. All is kept in
    fp32, where bf16 would measure its own rounding.
    """

    def __init__(self, samples: int, predictor: Predictor, past: History, lagged: bool) -> None:
        super().__init__(samples, predictor, past, lagged)
        self.latents: list[Tensor] = []
        # At each sample's last computed step: prediction, latents, and the slope k / mean |v|.
        self.computed: list[Tensor] = []
        self.slope: Tensor | None = None

    def before(self, now: Anchor) -> PredictedChange:
        if len(self.latents) < 2 or self.slope is None:
            return PredictedChange(self._unknown)
        moved = latent_difference(self.latents, (1.0, -1.0)).abs_difference
        read = self.reader.read(self.slope * moved)
        return PredictedChange(self._unknown if read is None else read.double())

    def after(
        self, now: Anchor, prediction: Tensor, latents: Tensor, computed: Sequence[bool]
    ) -> list[float] | None:
        # The latents that the prediction was made for; the first are not known.
        known = bool(self.latents) and self.latents[0].shape == prediction.shape
        if known and any(computed):
            self._learn([prediction.float(), self.latents[0]], computed)
        newest = latents.float() if latents.dtype != torch.float32 else latents.clone()
        if self.latents and self.latents[0].shape != newest.shape:
            self.latents, self.computed = [], []
        self.latents = [newest, *self.latents[:1]]
        return None

    def _learn(self, newest: list[Tensor], computed: Sequence[bool]) -> None:
        rows = sent(torch.tensor(computed), newest[0].device)
        if self.computed:
            found = [
                latent_difference(pair, (1.0, -1.0))
                for pair in zip(newest, self.computed, strict=True)
            ]
            # Means over as many elements, so that sums will do.
            slope = found[0].abs_difference / found[1].abs_difference / found[0].abs_reference
            known = torch.full_like(slope, nan) if self.slope is None else self.slope
            self.slope = torch.where(rows, slope, known)
        along = rows.reshape(-1, *[1] * (newest[0].ndim - 1))
        self.computed = [
            torch.where(along, new, old)
            for new, old in zip(newest, self.computed or newest, strict=True)
        ]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in [*self.latents, *self.computed])


class ModuleChangeCollector(Collector):
    """How far each module's output was from its last, averaged over the branches of a step.

    Modules are known by path, so that one denoiser's thresholds serve another that takes over.
    """

    def __init__(self, samples: int, predictor: Predictor, past: History, lagged: bool) -> None:
        super().__init__(samples, predictor, past, lagged)
        self.lanes: list[Lane] = []
        self._lengths: list[tuple[str, int]] = []
        # Modules keep their columns, so that what a policy remembers of them stays theirs.
        self.known: dict[str, Tensor] = {}

    def attend(self, lane: Lane) -> None:
        self.lanes.append(lane)

    def before(self, now: Anchor) -> ModuleChange:
        found: dict[str, list[Tensor]] = {}
        for key, change in self._by_sample():
            found.setdefault(key, []).append(change)
        means = {key: torch.stack(changes).mean(0) for key, changes in found.items()}
        self.known = dict.fromkeys(self.known, self._unknown) | means
        if not self.known:
            return ModuleChange(self._unknown.new_empty(self.samples, 0), ())
        return ModuleChange(torch.stack(list(self.known.values()), 1), tuple(self.known))

    def _by_sample(self) -> list[tuple[str, Tensor]]:
        """Each change of the branches attended `[rows]`, as `[samples]` on the host."""
        changes = [
            (key, change)
            for lane in self.lanes
            for key, change in lane.changes.items()
            if not len(change) % self.samples
        ]
        self.lanes.clear()
        if not changes:
            return []
        # A denoiser may be spread over devices; one transfer takes all to the host.
        device = changes[0][1].device
        newest = [(key, len(change)) for key, change in changes]
        read = self.reader.read(torch.cat([change.to(device) for _, change in changes]))
        known, self._lengths = self._lengths if self.reader.lagged else newest, newest
        if read is None:
            return []
        rows = read.double().split([length for _, length in known])
        means = [part.unflatten(0, (-1, self.samples)).mean(0) for part in rows]
        return [(key, mean) for (key, _), mean in zip(known, means, strict=True)]


_COLLECTORS: dict[type[Evidence], type[Collector]] = {
    ForecastError: ForecastErrorCollector,
    LatentChange: LatentChangeCollector,
    ModuleChange: ModuleChangeCollector,
    PredictedChange: PredictedChangeCollector,
}


def collector_for(
    evidence: type[Evidence], samples: int, predictor: Predictor, past: History, lagged: bool
) -> Collector:
    """A new collector of that kind of evidence."""
    return _COLLECTORS.get(evidence, NothingCollected)(samples, predictor, past, lagged)
