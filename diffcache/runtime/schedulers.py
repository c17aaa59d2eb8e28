"""What a run must know about a scheduler: its coordinate, its steps, whether it draws noise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from math import exp, floor, inf, log
from statistics import median
from typing import Any

import torch

from diffcache.predictors import Course

from .disguise import base_of

# Sampling noise enters at every step of these, whatever their configuration.
_DRAWS_NOISE = re.compile(
    r"Ancestral|SDE|Sde|LCM|TCD|DDPM|CogVideoXDPM|RePaint|CosineDPM|SASolver|UnCLIP|SCM"
    r"|CMStochastic|ConsistencyDecoder|VQDiffusion|Amused|KarrasVe|Wuerstchen|HeliosDMD"
    r"|BlockRefinement|DiscreteDDIM|EntropyBound|Proteina"
)


# Flow matching begins in pure noise, where x/α has no bound.
_LEAST_SIGNAL = 1e-2

# Next to the clean sample predictions turn faster than anywhere before: of the error that the last
# step would make, the measured rate foretells 0.07 to 0.87, half of the cells below a third.
_LAST = 3.0

# σ/α from which on a sample shows next to nothing of the picture.
_DROWNED = 50.0

# σ/α from which on the steps that follow take an error back, of noise that is predicted and of
# flow matching. docs/design.md has what that gives.
_FORGOTTEN, _FORGOTTEN_IN_FLOW = 15.0, 7.0

# A timetable that reaches no further counts no timesteps: it is in σ, or a function of it.
_LEAST_COUNT = 10


def stochastic_by_kind(scheduler: Any, name: str) -> str | None:
    """Why a scheduler of class `name` with this configuration draws noise, or None."""
    if match := _DRAWS_NOISE.search(name):
        return f"{name} draws noise at every step ({match.group()})"
    config = getattr(scheduler, "config", {})
    algorithm = str(config.get("algorithm_type", ""))
    if algorithm.startswith("sde"):
        return f"{name} has algorithm_type={algorithm!r}"
    if config.get("stochastic_sampling"):
        return f"{name} has stochastic_sampling=True"
    return None


def stochastic_by_call(arguments: dict[str, Any]) -> str | None:
    """Why a call of `step` with these arguments draws noise, or None."""
    for name in ("eta", "s_churn"):
        value = arguments.get(name) or 0
        if value > 0:
            return f"the scheduler is called with {name}={value}"
    return None


def timesteps_of(scheduler: Any) -> list[float]:
    """The scheduler's timesteps on the host."""
    return [float(t) for t in torch.as_tensor(scheduler.timesteps).tolist()]


def _counts_signal(scheduler: Any) -> bool:
    """Whether its σ and timesteps are shares of the clean sample, and rise (Mochi, OmniGen)."""
    return bool(getattr(scheduler, "config", {}).get("invert_sigmas"))


def out_of_1000(scheduler: Any, times: list[float]) -> list[float]:
    """`times` as most schedulers count: 1000 at pure noise, 0 at the clean sample.

    Timesteps of another kind, such as logarithms or angles of σ, are spread over it evenly, from
    the last of the timetable to the first.
    """
    if _counts_signal(scheduler):
        times = [scheduler.config.num_train_timesteps - time for time in times]
    low, high = min(times, default=0.0), max(times, default=0.0)
    if low >= 0 and _LEAST_COUNT < high <= 1000:
        return times
    return [1000 * (time - low) / ((high - low) or 1.0) for time in times]


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler moves on straight lines between noise and data."""
    config = getattr(scheduler, "config", {})
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    sigmas = getattr(scheduler, "sigmas", None)
    has_alphas = getattr(scheduler, "alphas_cumprod", None) is not None
    return not has_alphas and sigmas is not None and float(torch.as_tensor(sigmas).max()) <= 1


def noise(scheduler: Any, times: list[float]) -> list[float]:
    """The noise at each of the scheduler's timesteps `times`: σ for flow matching, else σ/α."""
    # What a scheduler steps by, where it says so: its timesteps may only approximate it.
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) >= len(times):
        found = [float(s) for s in torch.as_tensor(sigmas).tolist()[: len(times)]]
        return [1 - share for share in found] if _counts_signal(scheduler) else found
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is not None:
        return [_noise_over_signal(cumulative, t) for t in times]
    return [t / max(times) for t in times]


def coordinates(levels: list[float], flow: bool) -> list[float]:
    """The coordinate in which predictions change evenly, for each `noise` level.

    It is 1 − ∛(σ/α), scaled such that a run rises from 0 to 1 at the clean sample. Where noise
    drowns the signal, predictions hardly change: beyond `_DROWNED` the root goes over into its
    logarithm, and what lies there has negative coordinates.
    """
    roots = [_root(_over_signal(level, flow)) for level in levels]
    unit = min(max(roots, default=0.0), _root(_DROWNED)) or 1.0
    return [1 - root / unit for root in roots]


def _over_signal(level: float, flow: bool) -> float:
    return level / max(1 - level, 1e-3) if flow else level


def _root(ratio: float) -> float:
    if ratio <= _DROWNED:
        return max(ratio, 0.0) ** (1 / 3)
    return _root(_DROWNED) * (1 + log(ratio / _DROWNED) / 3)


def ends_clean(scheduler: Any) -> bool:
    """Whether the last step gives the clean sample itself, and not one that has some noise left."""
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0)) == 1.0


def reach(scheduler: Any, times: list[float], levels: list[float]) -> list[float]:
    """How far a unit prediction moves x/α, at each of these `noise` levels, for a unit of it.

    What networks predict that are told σ itself is scaled (Karras et al., arXiv 2206.00364): it is
    about the clean sample where there is much noise, and moves the less of it. The others count
    as if noise were predicted; docs/design.md has why.
    """
    config = getattr(scheduler, "config", {})
    if (width := config.get("sigma_data")) is None:
        told_noise = max(times, default=inf) <= _LEAST_COUNT
        width = 1.0 if told_noise and config.get("prediction_type") == "v_prediction" else inf
    return [(1 + (level / width) ** 2) ** -0.5 for level in levels]


def weights(
    levels: list[float], flow: bool, clean: bool = True, reached: Sequence[float] | None = None
) -> list[float]:
    """How far each step moves x/α for a unit prediction, over the median of all steps.

    In units of the clean sample an early error weighs what it does at the end: it is
    |Δσ| / α_{i+1} for flow matching, where α = 1 − σ, and |Δ(σ/α)| for the others, times what is
    `reached` by a unit prediction. Where σ/α is above a bound, less in proportion: what the sample
    is then off by is noise to what follows. The median, because the first step of a schedule
    that begins in pure noise is as long as one cares to clamp it. The last step weighs `_LAST`
    times what it moves, and no less than the median where it gives the `clean` sample itself, whose
    error does not vanish with the noise that is left.
    """
    ends = [*levels, 0.0]
    scales = [max(1 - level, _LEAST_SIGNAL) if flow else 1.0 for level in ends]
    moved = []
    for i, start in enumerate(levels):
        # Samplers with two evaluations a step list a timestep twice; the move is to the next one.
        end = next((j for j in range(i + 1, len(ends)) if ends[j] != start), -1)
        moved.append(abs(ends[end] - start) / scales[end] * (reached[i] if reached else 1.0))
    middle = median(moved) if moved else 0.0
    moved[-1:] = [max(_LAST * move, middle if clean else 0.0) for move in moved[-1:]]
    if middle <= 0:
        return [1.0] * len(moved)
    bound = _FORGOTTEN_IN_FLOW if flow else _FORGOTTEN
    kept = [bound / max(_over_signal(level, flow), bound) for level in levels]
    return [move / middle * part for move, part in zip(moved, kept, strict=True)]


# Whose step adds a multiple of the prediction to the sample and keeps nothing of earlier ones, and
# whether that sample is the clean one with noise on top, rather than mixed with it.
_ONE_STEP = {
    "DDIMScheduler": False,
    "EulerDiscreteScheduler": True,
    "FlowMatchEulerDiscreteScheduler": True,
}

# Predictions change with the sample as they do for normally distributed data of this width: the
# noisier the sample, the less of an error in it is taken for the picture.
_WIDTH = 0.3


def course(scheduler: Any, times: list[float], levels: list[float], flow: bool) -> Course | None:
    """How the steps at coordinates `times` move the sample; None where that is not known."""
    config = getattr(scheduler, "config", {})
    of_noise = config.get("prediction_type", "epsilon") == "epsilon"
    name = base_of(scheduler).__name__
    multistep = of_noise and not flow and _is_second_order(name, config)
    # A clean sample that is clipped is no sum of sample and prediction.
    clipped = config.get("clip_sample") or config.get("thresholding")
    falling = all(before > after for before, after in pairwise([*levels, 0.0]))
    if clipped or not falling or not (multistep or (name in _ONE_STEP and (flow or of_noise))):
        return None
    carries = [0.0] * len(levels)
    for i in range(1, len(levels) - 1) if multistep else ():
        before, after = log(levels[i - 1] / levels[i]), log(levels[i] / levels[i + 1])
        carries[i] = 0.5 * after / before
    signals = [1 - level if flow else 1.0 for level in levels]
    slopes = [_slope(*each) for each in zip(levels, signals, strict=True)]
    units = [1.0 if _ONE_STEP.get(name) else (1 + level**2) ** -0.5 for level in levels]
    if _counts_signal(scheduler):
        # What is predicted points to the clean sample there, in place of away from it.
        units = [-unit for unit in units]
    # Where the last step leads, no gap needs to know.
    return Course(tuple(times), (*levels, 0.0), tuple(carries), tuple(slopes), tuple(units))


def _slope(noise: float, signal: float) -> float:
    """By x, that of (x − m) / noise, where m is the mean of the data that x leaves possible."""
    explained = signal * _WIDTH**2 / ((signal * _WIDTH) ** 2 + noise**2)
    return (1 - explained) / noise


def _is_second_order(name: str, config: dict[str, Any]) -> bool:
    """Whether this is DPM-Solver++ 2M, by midpoint."""
    wanted = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "solver_order": 2}
    alike = all(config.get(option) == value for option, value in wanted.items())
    return name == "DPMSolverMultistepScheduler" and alike


def restate(scheduler: Any, off: torch.Tensor) -> None:
    """Adds `off` to what the scheduler keeps of the clean sample that its last step was told of."""
    kept = getattr(scheduler, "model_outputs", None)
    if kept and isinstance(kept[-1], torch.Tensor):
        kept[-1] = kept[-1] + off.to(kept[-1].dtype)


def _noise_over_signal(cumulative: torch.Tensor, t: float) -> float:
    low = min(max(floor(t), 0), len(cumulative) - 1)
    high = min(low + 1, len(cumulative) - 1)
    part = min(max(t - low, 0.0), 1.0)
    ends = []
    for index in (low, high):
        alpha = min(max(float(cumulative[index]), 1e-6), 1 - 1e-6)
        ends.append(0.5 * log((1 - alpha) / alpha))
    return exp(ends[0] + part * (ends[1] - ends[0]))
