"""The figures of a row: how near to the full run, and how true to the data.

Truth has two: the share of pictures that the scene reader finds to match their captions, and the
Fréchet distance between pictures and scenes really drawn from the same captions. Its features are
what the reader counts (objects of each of 6 colours, 6 shapes, 3 textures) and four statistics of
the pixels (mean red, green and blue, mean chroma), each in units of its deviation over the drawn
scenes. With n pictures the distance is biased upwards, alike for all that is measured on the same
prompts: compare it with the full run's, not with zero. The interval of the difference from the full
run resamples the same prompts in both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffcache import metrics

sys.path.insert(0, str(Path(__file__).parent / "tiny"))

import scenes

RESAMPLES = 400
CONFIDENCE = (2.5, 97.5)
DRAWN = 16
"""Scenes really drawn for each caption."""


def features(pictures: np.ndarray) -> np.ndarray:
    """What the Fréchet distance compares, `[n, 19]`, of pictures `[n, 64, 64, 3]` in [0, 1]."""
    rows = []
    for picture in pictures:
        found = scenes.read(picture)
        words = (scenes.TEXTURES, scenes.COLOURS, scenes.SHAPES)
        counts = [
            sum(n for key, n in found.items() if key[part] == word)
            for part, listed in enumerate(words)
            for word in listed
        ]
        chroma = picture.max(-1) - picture.min(-1)
        rows.append([*counts, *picture.mean((0, 1)), chroma.mean()])
    return np.array(rows, np.float64)


@cache
def drawn(captions: tuple[str, ...]) -> np.ndarray:
    """Features of scenes drawn from `captions`, `DRAWN` of each."""
    rng = np.random.default_rng(0)
    made = [scenes.render(scenes.parse(text), rng) for text in captions for _ in range(DRAWN)]
    return features(np.stack(made) / np.float32(255))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½) of two sets of features `[n, d]`."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.clip(np.linalg.eigvals(first @ second).real, 0, None))
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * roots.sum())


def interval(
    count: int, figure: Callable[[np.ndarray], float], *, centred: bool = False
) -> list[float]:
    """95 % bootstrap interval over prompts of `figure`, which is given indices of prompts.

    `centred` takes the resamples' mean off and the estimate on: a resample repeats prompts, which
    narrows a covariance and so biases a distance.
    """
    rng = np.random.default_rng(0)
    found = [figure(rng.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(found, CONFIDENCE)
    if centred:
        moved = figure(np.arange(count)) - np.mean(found)
        low, high = max(low + moved, 0.0), high + moved
    return [round(float(low), 4), round(float(high), 4)]


def matches(pictures: np.ndarray, captions: list[str]) -> np.ndarray:
    """Whether each picture shows what its caption says, `[n]` of 0 and 1."""
    whole = (pictures * 255 + 0.5).astype(np.uint8)
    pairs = zip(whole, captions, strict=True)
    return np.array([scenes.matches(*pair) for pair in pairs], np.float64)


def measured(pictures: np.ndarray, reference: np.ndarray, captions: list[str]) -> dict[str, Any]:
    """All figures of pictures `[n, H, W, 3]` in [0, 1] beside those of the full run."""
    count = len(captions)
    decibels = metrics.psnr(pictures, reference)
    matched, before = matches(pictures, captions), matches(reference, captions)
    truth = drawn(tuple(captions))
    # A feature that no caption has (no dotted shape among few prompts) keeps its own unit.
    unit = np.where(truth.std(0) > 0, truth.std(0), 1.0)
    truth, own, full = truth / unit, features(pictures) / unit, features(reference) / unit
    return {
        "psnr": round(float(decibels.mean()), 2),
        "psnr_ci": interval(count, lambda i: decibels[i].mean()),
        "psnr_p5": round(float(np.percentile(decibels, 5)), 2),
        "psnr_of_mean_error": round(metrics.mean_error_psnr(pictures, reference), 2),
        "ssim": round(float(metrics.ssim(pictures, reference).mean()), 4),
        "match": round(float(matched.mean()), 4),
        "match_ci": interval(count, lambda i: matched[i].mean()),
        "match_change_ci": interval(count, lambda i: (matched - before)[i].mean()),
        "frechet": round(frechet(own, truth), 4),
        "frechet_ci": interval(count, lambda i: frechet(own[i], truth), centred=True),
        "frechet_change_ci": interval(
            count, lambda i: frechet(own[i], truth) - frechet(full[i], truth)
        ),
    }
