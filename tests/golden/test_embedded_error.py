"""The error that `adaptive` measures, against its definition and against raw latents."""

import pytest
import torch

import diffcache
from diffcache.kernels import latent_difference
from diffcache.policies import ErrorBudget, ForecastError
from diffcache.predictors import Newton
from diffcache.runtime.evidence import collector_for
from diffcache.runtime.history import Anchor, History


def path(times: torch.Tensor) -> torch.Tensor:
    """Smooth predictions F `[steps, samples, elements]` at `times`."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(3, 40, generator=generator) for _ in range(3))
    t = times[:, None, None].float()
    return a + b * (2 * t).sin() + c * (3 * t).cos()


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_error_is_truth_against_forecast_for_each_sample(order):
    times = torch.rand(10, generator=torch.Generator().manual_seed(1)).double().cumsum(0)
    truth = path(times)
    past = History(order + 1)
    collector = collector_for(ForecastError, 3, Newton(order), past, lagged=False)
    kept: list[list[int]] = [[], [], []]
    computed_rows = torch.rand(10, 3, generator=torch.Generator().manual_seed(2)) < 0.6
    computed_rows[: order + 1] = True
    for i, t in enumerate(times.tolist()):
        computed = computed_rows[i].tolist()
        error = collector.after(Anchor(t, i), truth[i], truth[i], computed)
        past.append([truth[i]], Anchor(t, i), computed)
        for sample in range(3):
            if len(kept[sample]) > order and computed[sample]:
                anchors = kept[sample][-1 : -order - 2 : -1]
                forecast = torch.zeros(40).double()
                for j in anchors:
                    weight = 1.0
                    for k in anchors:
                        if k != j:
                            weight *= float((times[i] - times[k]) / (times[j] - times[k]))
                    forecast += weight * truth[j, sample].double()
                real = truth[i, sample].double()
                naive = float((real - forecast).norm() / real.norm())
                assert float(error[sample]) == pytest.approx(naive, rel=1e-3, abs=1e-6)
            if computed[sample]:
                kept[sample].append(i)


def ratios(sigmas: torch.Tensor) -> torch.Tensor:
    """Raw third-order latent difference over the embedded error, step by step, of one sample."""
    truth = path(sigmas)[:, :1]
    latents = [torch.zeros(1, 40)]
    for i in range(len(sigmas) - 1):
        latents.append(latents[-1] + truth[i] * float(sigmas[i + 1] - sigmas[i]))
    past = History(2)
    collector = collector_for(ForecastError, 1, Newton(1), past, lagged=False)
    everyone = [True]
    found = []
    for i, sigma in enumerate(sigmas[:-1].tolist()):
        error = collector.after(Anchor(sigma, i), truth[i], latents[i + 1], everyone)
        past.append([truth[i]], Anchor(sigma, i))
        if i >= 2:
            newest = latents[i - 2 : i + 2][::-1]
            raw = latent_difference(newest, [1.0, -3.0, 3.0, -1.0]).sq_difference.sqrt()
            found.append(raw / (error[0] * truth[i].norm()))
    return torch.cat(found)


def test_proportional_to_the_third_order_difference_on_a_uniform_grid():
    found = ratios(torch.linspace(1, 0, 21).double())
    torch.testing.assert_close(found, torch.full_like(found, 0.05), rtol=2e-2, atol=0)


def test_not_proportional_on_an_uneven_grid():
    found = ratios((torch.linspace(1, 0, 21) ** 3).double())
    assert found.max() / found.min() > 3


@pytest.mark.parametrize("reads", [False, True])
def test_errors_are_told_to_policies_that_read_them(dit, generate, reads):
    told = []

    class Told(ErrorBudget):
        reads_error = reads

        def observe(self, step, error, computed, state):
            told.append(error)
            return super().observe(step, error, computed, state)

    diffcache.wrap(dit, policy=Told(tolerance=0.0))
    generate(dit, samples=2, steps=12)
    assert torch.stack(told).shape == (12, 2)
    # The first step has nothing to be compared with.
    assert torch.stack(told)[1:].isfinite().all() == reads
    assert told[0].isnan().all()
