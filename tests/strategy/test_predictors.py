"""Predictors on random uneven grids."""

from math import comb, exp, factorial, sqrt

import pytest
import torch

from diffcache.predictors import (
    ChebyshevRidge,
    FrequencySplit,
    Hermite,
    Kriging,
    Newton,
    Reuse,
    Taylor,
    adams_bashforth,
)


def uneven(rows: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Times `[rows, count]`, newest first, and a later time for each row."""
    gaps = torch.rand(rows, count + 1, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    ascending = gaps.cumsum(1)
    return ascending[:, :-1].flip(1), ascending[:, -1]


def polynomial(degree: int, seed: int):
    factors = torch.randn(degree + 1, generator=torch.Generator().manual_seed(seed)).double()
    return lambda t: sum(c * t**power for power, c in enumerate(factors))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", range(4))
def test_newton_is_exact_up_to_its_order_and_not_beyond(order, seed):
    times, t = uneven(6, order + 1, seed)
    weights = Newton(order).coefficients(times, t)
    assert weights.dtype == torch.float64
    exact = polynomial(order, seed + 100)
    torch.testing.assert_close((weights * exact(times)).sum(1), exact(t), rtol=1e-9, atol=1e-9)
    beyond = (weights * times ** (order + 1)).sum(1)
    assert ((beyond - t ** (order + 1)).abs() > 1e-6).all()


@pytest.mark.parametrize(
    "predictor", [Newton(2), Taylor(2), Hermite(2), Kriging(3), adams_bashforth(3)]
)
def test_fewer_anchors_than_the_order_asks_for_still_keep_constants(predictor):
    times, t = uneven(4, 1, 0)
    torch.testing.assert_close(
        predictor.coefficients(times, t), torch.ones(4, 1, dtype=torch.float64)
    )


def test_reuse_repeats_the_newest():
    times, t = uneven(3, 3, 1)
    assert Reuse().coefficients(times, t).tolist() == [[1.0]] * 3


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_adams_bashforth_weights_are_binomial_one_step_ahead(steps):
    times = torch.arange(steps, 0, -1).double()[None]
    weights = adams_bashforth(steps).coefficients(times, torch.tensor([steps + 1.0]).double())
    published = [(-1) ** (j + 1) * comb(steps, j) for j in range(1, steps + 1)]
    torch.testing.assert_close(weights[0], torch.tensor(published).double())


def taylorseer(values: list[float], steps: list[float], now: float, order: int, basis) -> float:
    """TaylorSeer as published: factors updated at each computed step, then summed."""
    factors: list[float] = []
    for i, value in enumerate(values):
        updated = [value]
        for n in range(order):
            if n < len(factors):
                updated.append((updated[n] - factors[n]) / (steps[i] - steps[i - 1]))
        factors = updated
    k = now - steps[-1]
    return sum(f * basis(k, n) / factorial(n) for n, f in enumerate(factors))


def hermite(scale: float):
    polynomials = [
        lambda x: 1.0,
        lambda x: 2 * x,
        lambda x: 4 * x**2 - 2,
        lambda x: 8 * x**3 - 12 * x,
    ]
    return lambda k, n: scale**n * polynomials[n](scale * k)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("kind", "basis"),
    [
        (Taylor, lambda k, n: k**n),
        (Hermite, hermite(0.5)),
        (lambda order: Hermite(order, scale=0.3), hermite(0.3)),
    ],
    ids=["taylor", "hermite-0.5", "hermite-0.3"],
)
@pytest.mark.parametrize("seed", range(3))
def test_taylor_and_hermite_are_their_published_formula(kind, basis, order, seed):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 5, (order + 1,), generator=generator).cumsum(0).double()
    values = torch.randn(order + 1, generator=generator).double()
    now = float(steps[-1]) + 3.0
    weights = kind(order).coefficients(steps.flip(0)[None], torch.tensor([now]).double())
    expected = taylorseer(values.tolist(), steps.tolist(), now, order, basis)
    assert float((weights[0] * values.flip(0)).sum()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_chebyshev_is_its_published_formula(count):
    steps = torch.arange(count).double() * 3 + 4
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).double()
    now = torch.tensor([float(steps[-1]) + 2], dtype=torch.float64)

    def basis(t):
        return torch.stack([torch.cos(m * torch.arccos(2 * t / 50 - 1)) for m in range(5)], -1)

    design = basis(steps)
    gram = design.T @ design + 0.1 * torch.eye(5, dtype=torch.float64)
    expected = basis(now)[0] @ torch.linalg.inv(gram) @ design.T @ values
    weights = ChebyshevRidge(blend=1.0).coefficients(steps.flip(0)[None], now)
    assert float(weights[0] @ values.flip(0)) == pytest.approx(float(expected), rel=1e-9)


def test_chebyshev_nears_polynomials_of_its_degree_as_the_ridge_vanishes():
    times, t = uneven(4, 6, 3)
    quartic = polynomial(4, 9)
    weights = ChebyshevRidge(ridge=1e-12, horizon=8, blend=1.0).coefficients(times, t)
    torch.testing.assert_close((weights * quartic(times)).sum(1), quartic(t), rtol=1e-3, atol=1e-3)


def test_chebyshev_blends_with_the_line_through_the_newest():
    times, t = uneven(3, 5, 4)
    line = torch.zeros(3, 5, dtype=torch.float64)
    line[:, :2] = Newton(1).coefficients(times, t)
    half, whole = (ChebyshevRidge(blend=b).coefficients(times, t) for b in (0.5, 1.0))
    torch.testing.assert_close(half, (whole + line) / 2)
    torch.testing.assert_close(ChebyshevRidge(blend=0.0).coefficients(times, t), line)


@pytest.mark.parametrize("options", [{"degree": 0}, {"ridge": 0.0}, {"blend": 1.5}])
def test_chebyshev_refuses_what_cannot_be_fitted(options):
    with pytest.raises(ValueError, match="; try "):
        ChebyshevRidge(**options)


def test_taylor_is_inexact_on_quadratics_as_published():
    steps = torch.tensor([[4.0, 2.0, 0.0]]).double()
    forecast = (Taylor(2).coefficients(steps, torch.tensor([6.0]).double()) * steps**2).sum()
    assert float(forecast) != pytest.approx(36.0, abs=1.0)


def test_rows_have_anchors_of_their_own():
    times, t = uneven(5, 3, 7)
    together = Newton(2).coefficients(times, t)
    for row in range(5):
        alone = Newton(2).coefficients(times[row : row + 1], t[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_growth_is_the_node_polynomial():
    times, t = uneven(4, 3, 2)
    expected = (t - times[:, 0]).abs() * (t - times[:, 1]).abs()
    torch.testing.assert_close(Newton(1).growth(times, t), expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Newton(7),
        lambda: Taylor(0),
        lambda: Hermite(9),
        lambda: Kriging(0),
        lambda: Kriging(length=0),
    ],
)
def test_orders_out_of_range_are_refused(build):
    with pytest.raises(ValueError, match=r"(order|points|length)=\d.*try \1=\d"):
        build()


def matern(a: float, b: float, length: float) -> float:
    distance = sqrt(3) * abs(a - b) / length
    return (1 + distance) * exp(-distance)


@pytest.mark.parametrize("points", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_kriging_weights_have_the_least_expected_error(points, seed):
    times, t = uneven(3, points, seed)
    predictor = Kriging(points, length=1.5)
    weights, growth = predictor.coefficients(times, t), predictor.growth(times, t)
    torch.testing.assert_close(weights.sum(1), torch.ones(3).double())

    def variance(row: int, c: list[float]) -> float:
        """E |F(t) - sum c_k F(t_k)|^2 for weights that sum to one."""
        nodes, found = times[row].tolist(), 1.0
        for i, a in enumerate(nodes):
            found -= 2 * c[i] * matern(a, float(t[row]), 1.5)
            found += sum(c[i] * c[j] * matern(a, b, 1.5) for j, b in enumerate(nodes))
        return found

    for row in range(3):
        least = variance(row, weights[row].tolist())
        assert float(growth[row]) == pytest.approx(sqrt(least), rel=1e-4)
        for i in range(points - 1):
            other = weights[row].clone()
            other[i] += 0.01
            other[i + 1] -= 0.01
            assert variance(row, other.tolist()) > least


def test_kriging_trusts_the_slope_near_by_and_the_mean_far_ahead():
    times = torch.tensor([[0.10, 0.05, 0.0]]).double()
    near, far = (
        Kriging(3, length=0.5).coefficients(times, torch.tensor([t]).double()) for t in (0.11, 9.0)
    )
    assert float((near * times).sum()) == pytest.approx(0.11, abs=2e-3)
    assert 0.0 < float((far * times).sum()) < 0.1


def test_kriging_does_not_amplify_the_rounding_of_anchors_close_to_each_other():
    """The lab's fault of quadratic Newton weights right after warm-up, 3, -8, 6."""
    times = torch.tensor([[0.002, 0.001, 0.0]]).double()
    weights = Kriging(3).coefficients(times, torch.tensor([0.004]).double())
    assert weights.abs().sum() < Newton(2).coefficients(times, torch.tensor([0.004])).abs().sum()


def test_frequency_weights_grow_with_every_step_inside_their_range():
    split = FrequencySplit(1.5, 2.0, low=(300, 800), high=(-1, 500)).over((900, 700, 500, 400, 0))
    times = torch.tensor([[0.0], [2.0], [3.0]]).double()
    weights = split.coefficients(times, torch.tensor([3.0, 4.0, 3.0]).double())
    assert weights.tolist() == [[1.5**3, 2.0], [1.5, 4.0], [1.0, 1.0]]


def test_low_and_high_frequencies_are_weighted_apart_and_row_by_row():
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(16.0), indexing="ij")
    smooth, rough = (2 * torch.pi * 2 * x / 16).cos() + 3, (2 * torch.pi * 3 * y / 10).sin()
    value = (smooth + rough).expand(2, 5, 4, 10, 16)
    found = FrequencySplit().predict([value], [[2.0, 1.0], [1.0, -1.0]])
    torch.testing.assert_close(found[0], (2 * smooth + rough).expand(5, 4, 10, 16))
    torch.testing.assert_close(found[1], (smooth - rough).expand(5, 4, 10, 16))


def test_values_without_image_axes_are_repeated_in_new_memory():
    tokens = torch.randn(2, 6, 8)
    found = FrequencySplit().predict([tokens], [[2.0, 3.0]])
    assert torch.equal(found, tokens) and found.data_ptr() != tokens.data_ptr()
