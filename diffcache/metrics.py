"""How far two sets of pictures, videos or sounds are apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from .options import is_number

CHANNELS = (1, 3, 4)
WINDOW = 11
"""Side of the window that SSIM weighs by a Gaussian, in pixels."""


CAP = 60.0
"""PSNR in dB of a picture at most: equal ones would be infinitely good."""


def check_asked(psnr: Any, example: float) -> None:
    """Raises ValueError, naming an `example`, where pictures can have no such PSNR in dB."""
    if not (is_number(psnr) and 0 < psnr < CAP):
        raise ValueError(f"psnr={psnr!r} is not between 0 and {CAP:g} dB; try psnr={example:g}")


def as_floats(samples: Any) -> np.ndarray:
    """Samples as float64 `[N, ...]`, on [0, 1] where they are pictures.

    Args:
        samples: an array or tensor `[N, ...]`, or a list of N equal ones, or of N PIL images. Bytes
            are divided by 255, because their differences and squares would wrap around.

    Raises:
        ValueError: samples of different shapes, integers other than bytes, or a single picture.
    """
    if isinstance(samples, (list, tuple)):
        parts = [_as_array(part) for part in samples]
        shapes = sorted({part.shape for part in parts})
        if len(shapes) != 1:
            raise ValueError(f"samples of one shape are needed, got {shapes or 'none'}")
        array = np.stack(parts)
    else:
        array = _as_array(samples)
    if array.dtype == np.uint8:
        array = array.astype(np.float64) / 255
    elif not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"floats on [0, 1] or bytes are needed, got {array.dtype} of shape {array.shape}"
        )
    if array.ndim < 2 or (array.ndim == 3 and array.shape[-1] in CHANNELS):
        raise ValueError(
            f"an axis of samples is needed in front, got shape {array.shape}; pass [picture], "
            "or picture[None]"
        )
    return array.astype(np.float64)


def _as_array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16.
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)


def _pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_floats(a), as_floats(b)
    if a.shape != b.shape:
        raise ValueError(f"samples of equal shape are needed, got {a.shape} and {b.shape}")
    for array in (a, b):
        # Rounding and decoders overshoot a little; 0 to 255 or a latent is a mistake.
        finite = array[np.isfinite(array)]
        if finite.size and (finite.min() < -1 or finite.max() > 2):
            raise ValueError(
                f"values on [0, 1] are needed, got {finite.min():.3g} to {finite.max():.3g} in "
                f"shape {array.shape}; normalise both by one range"
            )
    return a, b


def _squared_errors(a: Any, b: Any) -> np.ndarray:
    a, b = _pair(a, b)
    errors = ((a - b) ** 2).reshape(len(a), -1).mean(axis=1)
    return np.where(_one_is_broken(a, b), 1.0, errors)


def _one_is_broken(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which samples `[N]` are finite in one of both alone."""
    one, other = (np.isfinite(each).reshape(len(each), -1).all(axis=1) for each in (a, b))
    return one != other


def _decibels(error: np.ndarray, cap: float) -> np.ndarray:
    return 10 * np.log10(1 / np.maximum(error, 10 ** (-cap / 10)))


def psnr(a: Any, b: Any, cap: float = CAP) -> np.ndarray:
    """Peak signal-to-noise ratio of every sample in dB, `[N]` float64.

    Args:
        a: samples as `as_floats` takes them, with values on [0, 1]: pictures `[N, H, W, C]` or
            `[N, C, H, W]`, videos with one axis more, or anything else normalised.
        b: samples of the same shape. Where one of two alone is finite they are 0 dB apart, as black
            and white are; where neither is, nothing can be told, which is NaN.
        cap: what equal samples are given; they would be infinitely good.

    Raises:
        ValueError: shapes differ, or values lie far outside of [0, 1].
    """
    return _decibels(_squared_errors(a, b), cap)


def mean_error_psnr(a: Any, b: Any, cap: float = CAP) -> float:
    """PSNR in dB of the squared error averaged over all samples; bad samples weigh more in it.

    Arguments and errors are those of `psnr`.
    """
    return float(_decibels(_squared_errors(a, b).mean(), cap))


def ssim(a: Any, b: Any) -> np.ndarray | None:
    """Structural similarity of every picture, `[N]` float64; None for what is not a picture.

    Wang et al. 2004: a Gaussian window of σ = 1.5 over 11 × 11 pixels, averaged over channels.

    Args:
        a: pictures `[N, H, W, C]` or `[N, C, H, W]` of 1, 3 or 4 channels, at least 11 pixels wide
            and high, as `psnr` takes them.
        b: pictures of the same shape. Where one of two alone is finite, 0 is given.

    Raises:
        ValueError: shapes differ, or values lie far outside of [0, 1].
    """
    from skimage.metrics import structural_similarity

    a, b = map(channels_last, _pair(a, b))
    if a is None or b is None or min(a.shape[1:3]) < WINDOW:
        return None
    found = np.array(
        [
            structural_similarity(
                x,
                y,
                channel_axis=-1,
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for x, y in zip(a, b, strict=True)
        ]
    )
    return np.where(_one_is_broken(a, b), 0.0, found)


def channels_last(array: np.ndarray) -> np.ndarray | None:
    """Pictures `[N, H, W, C]` from either layout; None where `array` holds no pictures."""
    if array.ndim != 4:
        return None
    if array.shape[-1] in CHANNELS:
        return array
    return array.transpose(0, 2, 3, 1) if array.shape[1] in CHANNELS else None
