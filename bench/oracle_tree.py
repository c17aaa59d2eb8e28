"""All masks of a short run at once: the tree of decisions, a level of it a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import numpy as np
import torch
from cells import denoiser
from torch import Tensor

from diffcache import metrics
from diffcache.methods import find
from diffcache.predictors import correction, damped, damping, taken_back
from diffcache.runtime.timetable import Timetable

ROWS = 32
"""Samples a denoiser call: more only cost memory."""

TOGETHER = 4
"""Samples whose trees grow side by side."""

PREDICTOR = find("adaptive").predictor
KEPT = PREDICTOR.anchors + 1

LEAST = 50.0
"""PSNR in dB of the mask that computes all against the pipeline's own pictures."""


@dataclass
class _Level:
    """Branches that have come to one step.

    Attributes:
        sample: which sample each belongs to, `[n]`.
        masks: what it has computed, `[n, steps so far]` of bool.
        latents: `[n, ...]`.
        values: its newest guided predictions, newest first, `[n, KEPT, ...]`.
        times: when they were computed, `[n, KEPT]` float64, NaN where there is none.
        off: what it was last corrected by, `[n, ...]`, zero where never.
    """

    sample: Tensor
    masks: Tensor
    latents: Tensor
    values: Tensor
    times: Tensor
    off: Tensor


class Tree:
    """Plays masks on the samples of one pipeline call.

    Args:
        pipe: a pipeline of one denoiser call a step, under a scheduler without memory.
        call: arguments of the call.
        most: how many steps a mask may compute, but for the one that computes all; None for any.

    Attributes:
        reference: the pipeline's own pictures `[samples, H, W, 3]`.

    Raises:
        RuntimeError: the tree does not reproduce these pictures where all steps are computed.
    """

    def __init__(self, pipe: Any, call: dict[str, Any], most: int | None = None) -> None:
        self.pipe = pipe
        self.denoiser = denoiser(pipe)
        self.name = "hidden_states" if hasattr(pipe, "transformer") else "sample"
        self.calls: list[dict[str, Any]] = []
        hook = self.denoiser.register_forward_pre_hook(self._record, with_kwargs=True)
        self.reference = pipe(**call).images
        hook.remove()
        self.samples = len(call["prompt"])
        self.branches = self.calls[0][self.name].shape[0] // self.samples
        self.guidance = call.get("guidance_scale", 1.0)
        self.steps = len(self.calls)
        self.most = most or self.steps
        timetable = Timetable(pipe.scheduler)
        self.times, self.course = timetable.coordinates, timetable.course

    def _record(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self.calls.append({**dict(zip(("sample", "timestep"), args, strict=False)), **kwargs})

    def decibels(self) -> tuple[np.ndarray, np.ndarray]:
        """All masks that compute the first step and no more than `most`, and the one of all.

        With the PSNR of each sample.

        Returns:
            masks `[masks, steps]` of bool, and PSNR to the full run `[masks, samples]`.
        """
        columns, masks = [], None
        for start in range(0, self.samples, TOGETHER):
            samples = torch.arange(start, min(start + TOGETHER, self.samples))
            leaves = self._grown(samples)
            pictures = self._pictures(leaves.latents)
            reference = self.reference[leaves.sample.numpy()]
            found = metrics.psnr(pictures, reference).reshape(-1, len(samples))
            masks = leaves.masks[:: len(samples)].numpy()
            if (nearest := found[masks.all(1)].min()) < LEAST:
                raise RuntimeError(
                    f"computing every step by hand gives {nearest:.1f} dB against the pipeline"
                )
            columns.append(found)
        return masks, np.concatenate(columns, 1)

    @torch.no_grad()
    def _grown(self, samples: Tensor) -> _Level:
        """The leaves, masks in the outer order and samples in the inner one."""
        # A fresh walk through the timetable; Euler counts its steps.
        self.pipe.scheduler._step_index = None
        latents = self.calls[0][self.name][: self.samples][samples]
        nothing = torch.zeros(len(samples), KEPT, *latents.shape[1:])
        never = torch.full((len(samples), KEPT), torch.nan, dtype=torch.float64)
        masks = torch.zeros(len(samples), 0, dtype=torch.bool)
        level = _Level(samples, masks, latents, nothing, never, torch.zeros_like(latents))
        for step in range(self.steps):
            level = self._next(level, step)
        return level

    def _next(self, level: _Level, step: int) -> _Level:
        factors, so_far, whole = _factors(level), level.masks.sum(1), level.masks.all(1)
        room = (so_far < self.most) | whole
        done, computed = self._done(_part(level, room), step, factors[room])
        parts, outputs = [done], [computed]
        if step > 0:
            room = so_far <= self.most
            rest = _part(level, room)
            parts.append(replace(rest, masks=_with(rest.masks, False)))
            now = torch.full((len(rest.times),), self.times[step], dtype=torch.float64)
            outputs.append(_forecast(rest.values[:, :-1], rest.times[:, :-1], now, factors[room]))
        both = _Level(
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in _Level.__dataclass_fields__
            )
        )
        both.latents = self.pipe.scheduler.step(
            torch.cat(outputs), self.pipe.scheduler.timesteps[step], both.latents
        ).prev_sample
        return both

    def _done(self, level: _Level, step: int, factors: Tensor) -> tuple[_Level, Tensor]:
        """The branches that compute `step`, before the sampler's move, and what they predict."""
        plain = self._computed(level, step)
        computed, corrected, off = self._corrected(level, plain, step, factors)
        here = torch.full((len(level.times), 1), self.times[step], dtype=torch.float64)
        done = _Level(
            level.sample,
            _with(level.masks, True),
            corrected,
            torch.cat([computed[:, None], level.values[:, :-1]], 1),
            torch.cat([here, level.times[:, :-1]], 1),
            off,
        )
        return done, computed

    def _corrected(
        self, level: _Level, computed: Tensor, step: int, factors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The prediction and the latents, where a gap ends here as the library corrects them.

        Also what every branch was last corrected by.
        """
        weights = torch.zeros(len(computed), KEPT + 1)
        ends = torch.zeros(len(computed), dtype=torch.bool)
        for row, times in enumerate(level.times[:, :-1].tolist()):
            known = (self.times[step], *(time for time in times if not isnan(time)))
            if (found := correction(PREDICTOR, self.course, known)) is not None:
                sample, more = torch.tensor([found.sample, found.damped_sample])
                weights[row, : len(sample)] = sample + (1 - float(factors[row])) * more
                ends[row] = True
        along = (1,) * (computed.ndim - 1)
        values = torch.cat([computed[:, None], level.values], 1)
        off = (values * weights.reshape(*weights.shape, *along)).sum(1)
        steeper = taken_back(off.flatten(1), level.off.flatten(1)) / self.course.noise[step]
        slope = (self.course.slopes[step] + steeper).reshape(-1, *along)
        last = torch.where(ends.reshape(-1, *along), off, level.off)
        return computed + slope * off, level.latents + self.course.units[step] * off, last

    def _computed(self, level: _Level, step: int) -> Tensor:
        """Guided predictions of all branches."""
        parts = zip(level.latents.split(ROWS), level.sample.split(ROWS), strict=True)
        return torch.cat([self._call(latents, sample, step) for latents, sample in parts])

    def _call(self, latents: Tensor, sample: Tensor, step: int) -> Tensor:
        rows = torch.cat([sample + branch * self.samples for branch in range(self.branches)])
        count = self.samples * self.branches
        call = {
            name: value[rows]
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == count
            else value
            for name, value in self.calls[step].items()
        }
        call[self.name] = torch.cat([latents] * self.branches)
        output = self.denoiser(**{**call, "return_dict": False})[0]
        if self.branches == 1:
            return output
        without, prompted = output.chunk(2)
        return without + self.guidance * (prompted - without)

    @torch.no_grad()
    def _pictures(self, latents: Tensor) -> np.ndarray:
        """Decoded latents `[n, H, W, 3]` in [0, 1]."""
        pipe, made = self.pipe, []
        for some in latents.split(ROWS):
            if self.name == "hidden_states":
                side = pipe.default_sample_size * pipe.vae_scale_factor
                some = pipe._unpack_latents(some, side, side, pipe.vae_scale_factor)
            config = pipe.vae.config
            some = some / config.scaling_factor + (config.shift_factor or 0)
            decoded = pipe.vae.decode(some, return_dict=False)[0]
            made.append(pipe.image_processor.postprocess(decoded, output_type="np"))
        return np.concatenate(made)


def _forecast(values: Tensor, times: Tensor, now: Tensor, factors: Tensor | None = None) -> Tensor:
    """Of `values` `[n, K, ...]` at `times` `[n, K]`, what they are expected to be `now` `[n]`."""
    weights = torch.zeros_like(times)
    known = (~times.isnan()).sum(1)
    for count in known.unique().tolist():
        rows = known == count
        weights[rows, :count] = PREDICTOR.coefficients(times[rows, :count], now[rows])
    if factors is not None:
        weights = damped(weights, factors)
    along = (1,) * (values.ndim - 2)
    return (values * weights.to(values.dtype).reshape(*weights.shape, *along)).sum(1)


def _factors(level: _Level) -> Tensor:
    """How far forecasts of all branches go, `[n]` float64."""
    rows = ~level.times[:, -1].isnan()
    newest, before = level.values[rows, 0], level.values[rows, 1:]
    forecast = _forecast(before, level.times[rows, 1:], level.times[rows, 0])
    moves = (newest - forecast, forecast - before[:, 0], newest - before[:, 0])
    factors = torch.ones(len(rows), dtype=torch.float64)
    factors[rows] = damping(*(move.flatten(1).square().sum(1).double() for move in moves))
    return factors


def _part(level: _Level, chosen: Tensor) -> _Level:
    return _Level(*(getattr(level, name)[chosen] for name in _Level.__dataclass_fields__))


def _with(masks: Tensor, computed: bool) -> Tensor:
    return torch.cat([masks, torch.full((len(masks), 1), computed)], 1)
