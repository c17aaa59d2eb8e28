"""Metrics against their formulas, written out naively."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffcache.metrics import mean_error_psnr, psnr, ssim


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def noisy(clean: np.ndarray, *deviations: float) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    scaled = [x + d * n for x, d, n in zip(clean, deviations, noise, strict=True)]
    return np.clip(np.stack(scaled), 0, 1)


def naive_psnr(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
        total += (x - y) ** 2
    return 10 * math.log10(1 / (total / a.size))


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, over all windows that lie inside of the picture."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for channel in range(a.shape[-1]):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                x = a[top : top + 11, left : left + 11, channel]
                y = b[top : top + 11, left : left + 11, channel]
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                values.append(
                    (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
                )
    return float(np.mean(values))


def test_psnr_is_the_formula_for_each_picture() -> None:
    a = pictures(3, 6, 5, 3)
    b = noisy(a, 0.3, 0.02, 0.004)
    expected = [naive_psnr(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-9)
    assert expected[0] < 20 < expected[1] < 40 < expected[2]


def test_mean_error_is_averaged_before_the_logarithm() -> None:
    a = pictures(2, 6, 5, 3)
    b = noisy(a, 0.3, 0.004)
    assert mean_error_psnr(a, b) == pytest.approx(naive_psnr(a, b))
    assert mean_error_psnr(a, b) < psnr(a, b).mean() - 10


def test_equal_pictures_have_the_cap() -> None:
    a = pictures(2, 6, 5, 3)
    assert psnr(a, a).tolist() == [60.0, 60.0]
    assert psnr(a, a, cap=100.0).tolist() == [100.0, 100.0]
    assert mean_error_psnr(a, a) == 60.0
    assert psnr(a, a + 1e-6).tolist() == [60.0, 60.0]
    np.testing.assert_allclose(psnr(a, a + 1e-6, cap=200.0), 120.0, atol=1e-4)


def test_bytes_do_not_wrap_around() -> None:
    """Bytes that differ by 16 and by 240 square to 0 modulo 256, which reads as equal pictures."""
    a = np.zeros((2, 4, 4, 3), np.uint8)
    b = np.stack([np.full((4, 4, 3), 16, np.uint8), np.full((4, 4, 3), 240, np.uint8)])
    assert ((a - b) ** 2).max() == 0
    expected = [20 * math.log10(255 / 16), 20 * math.log10(255 / 240)]
    np.testing.assert_allclose(psnr(a, b), expected)
    np.testing.assert_allclose(psnr(b, a), expected)


def as_pil(array: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(np.round(x * 255).astype(np.uint8)) for x in array]


@pytest.mark.parametrize(
    ("convert", "tolerance"),
    [
        (lambda x: x.astype(np.float32), 1e-4),
        (torch.from_numpy, 1e-9),
        (lambda x: torch.from_numpy(x).requires_grad_(), 1e-9),
        (lambda x: torch.from_numpy(x).permute(0, 3, 1, 2), 1e-9),
        (list, 1e-9),
        (lambda x: [torch.from_numpy(y) for y in x], 1e-9),
        (as_pil, 0.05),
        (lambda x: np.stack([np.asarray(y) for y in as_pil(x)]), 0.05),
        (lambda x: torch.from_numpy(x).bfloat16(), 0.3),
    ],
    ids=["float32", "tensor", "grad", "channels_first", "list", "tensors", "PIL", "bytes", "bf16"],
)
def test_kinds_of_pictures_agree(convert: Callable[[np.ndarray], Any], tolerance: float) -> None:
    a = pictures(2, 16, 14, 3)
    b = noisy(a, 0.1, 0.05)
    np.testing.assert_allclose(psnr(convert(a), convert(b)), psnr(a, b), atol=tolerance)
    np.testing.assert_allclose(ssim(convert(a), convert(b)), ssim(a, b), atol=tolerance)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_ssim_is_the_formula(channels: int) -> None:
    a = pictures(2, 14, 13, channels)
    b = noisy(a, 0.3, 0.02)
    expected = [naive_ssim(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b), expected, rtol=1e-6)
    assert expected[0] < 0.9 < expected[1] < 1
    np.testing.assert_allclose(ssim(a, a), 1)


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 16, 16, 3), (2, 400), (2, 2, 400), (2, 10, 16, 3), (2, 16, 16, 2)],
    ids=["video", "mono", "stereo", "too low", "two channels"],
)
def test_ssim_is_for_pictures_and_psnr_for_anything(shape: tuple[int, ...]) -> None:
    a = pictures(*shape)
    b = noisy(a, 0.1, 0.01)
    assert ssim(a, b) is None
    expected = [naive_psnr(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), expected)


def test_nan_is_as_bad_as_black_for_white_and_tells_nothing_of_others() -> None:
    a = pictures(2, 6, 5, 3)
    b = a.copy()
    b[1] = np.nan
    assert psnr(a, b).tolist() == [60.0, 0.0] and not np.signbit(psnr(a, b)[1])
    assert mean_error_psnr(a, b) == pytest.approx(10 * math.log10(2))
    assert psnr(b, a).tolist() == [60.0, 0.0]
    assert psnr(b, b)[0] == 60 and np.isnan(psnr(b, b)[1])


@pytest.mark.parametrize("metric", [psnr, mean_error_psnr, ssim])
@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (pictures(2, 16, 16, 3), pictures(3, 16, 16, 3), r"\(2, 16, 16, 3\) and \(3, 16, 16, 3\)"),
        (pictures(2, 16, 16, 3), pictures(2, 3, 16, 16), r"\(2, 16, 16, 3\) and \(2, 3, 16, 16\)"),
        (pictures(16, 16, 3), pictures(16, 16, 3), r"got shape \(16, 16, 3\); pass \[picture\]"),
        (pictures(16), pictures(16), r"got shape \(16,\)"),
        (
            pictures(1, 16, 16, 3) * 255,
            pictures(1, 16, 16, 3),
            r"to 25\d in shape \(1, 16, 16, 3\)",
        ),
        (np.zeros((1, 16, 16, 3), int), pictures(1, 16, 16, 3), r"int64 of shape \(1, 16, 16, 3\)"),
        ([np.zeros((4, 4)), np.zeros((5, 4))], [], r"\(4, 4\), \(5, 4\)"),
        ([], [], "got none"),
    ],
)
def test_errors_name_shapes(metric: Callable[..., Any], a: Any, b: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metric(a, b)
