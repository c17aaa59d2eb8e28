"""Finds the setting of `adaptive` that gives what is asked for, in a few runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, sqrt
from typing import Any

import numpy as np

from . import metrics
from .api import check_pipeline, unwrap, wrapped
from .assurance import assured
from .disabling import refuse_disabled
from .measuring import WARM_UP_STEPS, Scale, accounts
from .options import is_number
from .requesting import unrequested
from .trial import Run, Trial
from .tuned import Achieved, Tuned

RUNS = 6
"""Settings that a search tries, at most."""

PICTURES = 32
"""How many a PSNR is searched and confirmed on where no seeds say which."""

_START = 0.08
# PSNR falls by about as much where the tolerance grows tenfold; only the first guesses use it.
_DECIBELS_A_DECADE = 13.0
_CLOSE = 1.12
# What a share is lowered to where all of the run was computed.
_LESS = 0.8


def tune(
    pipe: Any,
    prompts: Sequence[str | Mapping[str, Any]],
    *,
    psnr: float | None = None,
    speedup: float | None = None,
    seeds: Sequence[int] | None = None,
    batch_size: int = 4,
    **call_kwargs: Any,
) -> Tuned:
    """Searches the cheapest setting of `adaptive` that gives a PSNR, or the best at a speed.

    Three prompts in four are searched on, by a plain run and at most six with a setting, three for
    a speed-up; on the others a plain run and one with the result confirm it. A pipeline that is
    wrapped, or not, is so again afterwards.

    How sure a PSNR can be is set by how many pictures there are. Without seeds, prompts are
    repeated in turn until they make 32; with seeds, or for a speed-up, there is one picture a
    prompt. The fewer pictures there are, and the fewer prompts, the more careful the search is.

    Args:
        pipe: a diffusers pipeline.
        prompts: as for `diffcache.compare`.
        psnr: dB to the plain picture that nine in ten pictures shall reach, each for itself and
            unseen ones too: what is searched for is a bound that holds with a confidence of 95 %.
            Gives a `tolerance`.
        speedup: wall time of the plain pipeline over that wanted. Gives a `compute`.
        seeds: one a prompt; 0, 1, 2, … if None.
        batch_size: pictures a call.
        call_kwargs: what else each call is given, for example `num_inference_steps=28`.

    Returns:
        The setting, with what it achieved and on what.

    Raises:
        ValueError: not exactly one of `psnr` and `speedup`, one out of range, plain pictures that
            are not finite, or no setting that was tried gives it and skips anything.
        TypeError: `pipe` is not a pipeline.
    """
    if (psnr is None) == (speedup is None):
        raise ValueError(
            f"psnr={psnr!r} and speedup={speedup!r}: pass one of them, "
            "for example diffcache.tune(pipe, prompts, psnr=40)"
        )
    if psnr is not None:
        metrics.check_asked(psnr, 40)
    if speedup is not None and not (is_number(speedup) and 1 < speedup < inf):
        raise ValueError(f"speedup={speedup!r} is not a number above 1; try speedup=2")
    # What is found is written as JSON, which numpy's numbers are not.
    psnr, speedup = (None if each is None else float(each) for each in (psnr, speedup))
    refuse_disabled("tune")
    check_pipeline(pipe, "diffcache.tune(pipe, prompts, psnr=40)")
    with unrequested(), wrapped(pipe):
        unwrap(pipe)
        pictures = 1 if psnr is None else PICTURES
        whole = Trial(pipe, prompts, seeds, batch_size, call_kwargs, pictures)
        search, others = _split(whole)
        bench = _Bench(search, psnr, speedup)
        # Made before the search, because it may refuse the pictures.
        confirming = None if others is None else _Bench(others, psnr, speedup, True)
        options = bench.tolerance() if psnr is not None else bench.share()
        confirmed = None if confirming is None else confirming.measure(options)
        asked = {"psnr": psnr} if psnr is not None else {"speedup": speedup}
        searched = bench.measured[tuple(options.items())]
        return Tuned(options, asked, searched, confirmed, bench.tried, search.setting())


def _split(whole: Trial) -> tuple[Trial, Trial | None]:
    """The pictures of three prompts in four to search on, and those of the others."""

    def part(confirming: bool) -> Trial:
        numbered = enumerate(zip(whole.entries, whole.seeds, strict=True))
        chosen = [each for i, each in numbered if (i % whole.prompts % 4 == 1) == confirming]
        return Trial(whole.pipe, *zip(*chosen, strict=True), whole.batch_size, whole.call_kwargs)

    return part(False), (part(True) if whole.prompts > 1 else None)


class _Bench:
    """Measures settings of `adaptive`, or the one to be confirmed, on the pictures of a trial."""

    def __init__(
        self, trial: Trial, psnr: float | None, speedup: float | None, confirms: bool = False
    ) -> None:
        self.trial, self.psnr, self.speedup = trial, psnr, speedup
        self.confirms, self.most = confirms, RUNS if speedup is None else RUNS // 2
        self.measured: dict[tuple, Achieved] = {}
        self.tried: list[dict[str, float]] = []
        trial.warm_up(3)
        self._plain = trial.run("plain")
        if (broken := trial.not_finite(self._plain.pictures)) is not None:
            raise ValueError(broken)
        self._scale = Scale(self._plain.pictures)
        self._prompts = len({repr(entry) for entry in trial.entries})

    def measure(self, options: dict[str, float]) -> Achieved:
        """What these options achieve."""
        setting = " ".join(f"{name}={value:.4g}" for name, value in options.items())
        number = f"setting {len(self.tried) + 1} of at most {self.most}"
        label = f"{'confirming' if self.confirms else number}, {setting}"
        with wrapped(self.trial.pipe, "adaptive", **options):
            self.trial.warm_up(WARM_UP_STEPS)
            run = self.trial.run(label, reporting=True)
        self._notes = list(dict.fromkeys(note for each in run.reports for note in each.notes))
        found = self._achieved(run)
        self.measured[tuple(options.items())] = found
        figure = "speedup" if self.psnr is None else "psnr_assured"
        self.tried.append({**options, "compute": found.compute, figure: getattr(found, figure)})
        return found

    def _achieved(self, run: Run) -> Achieved:
        decibels = metrics.psnr(self._scale.of(self._plain), self._scale.of(run))
        faster = self._plain.seconds / run.seconds
        met = np.mean(decibels >= self.psnr) if self.psnr is not None else faster >= self.speedup
        # Of fewer than twenty pictures, the worst stands for the 5th percentile.
        p5, p50 = np.percentile(decibels, (5, 50), method="lower")
        return Achieved(
            len(decibels),
            accounts(run.reports, self.trial)[1],
            float(faster),
            float(decibels.mean()),
            float(p5),
            float(p50),
            assured(decibels, self._prompts),
            float(met),
        )

    def tolerance(self) -> dict[str, float]:
        """The largest tolerance, of those tried, with which pictures are sure of the PSNR."""
        good = bad = None
        tolerance = _START
        while len(self.tried) < self.most and (good is None or bad is None or bad > _CLOSE * good):
            found = self.measure({"tolerance": tolerance})
            if found.psnr_assured >= self.psnr:
                good = tolerance
            else:
                bad = tolerance
            if good is not None and bad is None and tolerance > 4:
                break
            if good is not None and bad is not None:
                tolerance = sqrt(good * bad)
            else:
                decades = (found.psnr_assured - self.psnr) / _DECIBELS_A_DECADE
                least = 0.15 if good is not None else -0.15
                tolerance *= 10 ** (
                    max(decades, least) if good is not None else min(decades, least)
                )
        if good is None:
            best = max(self.tried, key=lambda entry: entry["psnr_assured"])
            raise ValueError(
                f"psnr={self.psnr:g} was not reached: {best['psnr_assured']:.1f} dB with "
                f"tolerance={best['tolerance']:.2g} are the most that {len(self.trial.entries)} "
                "pictures assure; ask for less, pass more prompts, or compute everything"
            )
        if self.measured[("tolerance", good),].compute == 1:
            raise ValueError(
                f"psnr={self.psnr:g}: nothing was skipped with any tolerance that reaches it, up "
                f"to {good:.2g}; ask for less, or see to {'; '.join(self._notes)!r}"
            )
        return {"tolerance": good}

    def share(self) -> dict[str, float]:
        """The largest share of the run, of those tried, that skips and is fast enough."""
        share, fast = 1 / self.speedup, []
        for _ in range(self.most):
            found = self.measure({"compute": share})
            # What a run costs beside the denoiser keeps the speed below the ideal.
            change = found.speedup / self.speedup
            if found.compute == 1:
                # However fast it was, its time tells nothing of a share.
                change = _LESS
            elif change >= 1:
                fast.append(share)
                if change < 1.05:
                    break
            share = min(1.0, max(0.1, share * change))
        if not fast:
            reached = [entry["speedup"] for entry in self.tried if entry["compute"] < 1]
            said = f"only {max(reached):.2f}" if reached else "as nothing was skipped"
            raise ValueError(
                f"speedup={self.speedup:g} was not reached, {said}; ask for less"
                + (f", or see to {'; '.join(self._notes)!r}" if self._notes else "")
            )
        return {"compute": max(fast)}
