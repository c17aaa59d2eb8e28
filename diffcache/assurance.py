"""What a few pictures assure of all that a setting will give."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np

from . import metrics

SHARE = 0.9
"""The share of all pictures, unseen ones too, that shall reach a PSNR."""

CONFIDENCE = 0.95
"""How sure that is to be, judging by the pictures searched on."""

# Pictures of one setting are about as far apart (standard deviation, in dB; seen on the tiny
# UNet from 2 to 8), which is believed like the spread of so many pictures more.
_SPREAD = 5.0
_BELIEVED = 6

# As far below the median as a picture counts, in dB.
_FARTHEST = 12.0

# Correlation of pictures of one prompt, under other seeds: up to 0.1 on the tiny DiT and 0.3 on the
# UNet, where nine in ten are to reach less than 50 dB.
_ALIKE = 1 / 3


def assured(decibels: np.ndarray, prompts: int | None = None) -> float:
    """What `SHARE` of all pictures reach with `CONFIDENCE`, judging by `decibels` `[pictures]`.

    The one-sided tolerance bound mean − k s of a normal distribution, with k by Natrella
    (Experimental Statistics, NBS Handbook 91, 1963). More pictures lie far below the middle than
    above, so that the median stands for the mean, and the root mean square below it for s. Of few
    pictures that is hardly known, so it is drawn towards `_SPREAD`, or towards none where pictures
    are at the cap. A few pictures turn out quite another one, which tells nothing about the others:
    none counts as farther below than `_FARTHEST`. But these pictures have to reach the bound
    themselves, `SHARE` of them. Pictures of fewer `prompts` count as fewer, by the design effect of
    Kish (Survey Sampling, 1965); None where each is of its own.
    """
    count, middle = len(decibels), float(np.median(decibels))
    expected = min(_SPREAD, metrics.CAP - middle)
    effective = count / (1 + (count / (prompts or count) - 1) * _ALIKE)
    freedom = _BELIEVED + effective - 1
    below = (middle - decibels).clip(0, _FARTHEST)
    squares = _BELIEVED * expected**2 + effective * 2 * float((below**2).mean())
    part, sure = NormalDist().inv_cdf(SHARE), NormalDist().inv_cdf(CONFIDENCE)
    a, b = 1 - sure**2 / (2 * freedom), part**2 - sure**2 / effective
    bound = middle - (part + sqrt(part**2 - a * b)) / a * sqrt(squares / freedom)
    return min(bound, float(np.percentile(decibels, 100 * (1 - SHARE), method="lower")))
