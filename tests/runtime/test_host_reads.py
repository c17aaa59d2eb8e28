"""How often the host waits for the denoiser's device."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch

import diffcache
from diffcache.policies import ForecastError, Interval
from diffcache.predictors import Newton
from diffcache.runtime.evidence import collector_for
from diffcache.runtime.generation import Generation
from diffcache.runtime.history import Anchor, History
from diffcache.runtime.reading import Reader, waits
from diffcache.sites import BlockStack

READING = [
    ("unet", "adaptive"),
    ("unet", "adaptivediffusion"),
    ("unet", "easycache"),
    ("dit", "adaptive"),
    ("dit", "third_order"),
    ("dit", "fbcache"),
    ("dit", "teacache"),
    ("dit", "foresight"),
]
STATIC = [("unet", "interval"), ("unet", "deepcache"), ("dit", "fora"), ("dit", "taylorseer")]


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often each denoiser call waited, together with the step that it was made for."""
    found: list[int] = []

    def watched(plain: Callable, first: bool) -> Callable:
        def run(self, *args, **kwargs):
            before = waits.count
            output = plain(self, *args, **kwargs)
            if first:
                found.append(waits.count - before)
            else:
                found[-1] += waits.count - before
            return output

        return run

    monkeypatch.setattr(Generation, "call", watched(Generation.call, True))
    stepped = watched(Generation.scheduler_stepped, False)
    monkeypatch.setattr(Generation, "scheduler_stepped", stepped)
    return found


@pytest.mark.parametrize(("kind", "method"), READING)
def test_at_most_one_read_a_denoiser_call(make, generate, waited, kind, method):
    pipe = diffcache.wrap(make(kind), method)
    generate(pipe, samples=1, steps=14)
    report = diffcache.report(pipe)
    assert 0 < report.host_reads == sum(waited)
    assert max(waited) == 1


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(("kind", "method"), STATIC)
def test_no_read_where_the_mask_is_static(make, generate, kind, method, samples):
    pipe = diffcache.wrap(make(kind), method)
    generate(pipe, samples=samples, steps=14)
    report = diffcache.report(pipe)
    assert report.compute_fraction < 1
    # Flux scales its timestep anew for each branch of true guidance, and whether the first two
    # calls are of one step is read once.
    assert report.host_reads <= (1 if kind == "dit" else 0)
    generate(pipe, samples=samples, steps=14, cfg=False)
    assert diffcache.report(pipe).host_reads == 0


def test_a_mask_that_is_played_back_reads_only_to_prove_that_rows_are_independent(pipe, generate):
    mask = torch.ones(14, 2, dtype=torch.bool)
    mask[4:12:2, 0] = mask[5:12:2, 1] = False
    diffcache.wrap(pipe, mask=mask)
    generate(pipe, samples=2, steps=14, cfg=False)
    assert diffcache.report(pipe).host_reads == 1
    generate(pipe, samples=2, steps=14, cfg=False)
    assert diffcache.report(pipe).host_reads == 0


@pytest.mark.parametrize(("kind", "method"), READING)
def test_nothing_is_waited_for_where_evidence_lags(make, generate, kind, method):
    pipe = diffcache.wrap(make(kind), method, lagged=True)
    once = generate(pipe, samples=1, steps=20, cfg=False)
    report = diffcache.report(pipe)
    assert report.host_reads == 0
    assert "waits    0 for the device" in str(report)
    again = generate(pipe, samples=1, steps=20, cfg=False)
    assert torch.equal(once, again)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_lagging_budget_skips(make, generate, kind):
    pipe = diffcache.wrap(make(kind), lagged=True, tolerance=10.0)
    generate(pipe, samples=1, steps=20)
    assert diffcache.report(pipe).compute_fraction < 0.6


def test_a_lagging_budget_that_tolerates_nothing_skips_nothing(pipe, generate):
    plain = generate(pipe)
    diffcache.wrap(pipe, lagged=True, tolerance=0.0)
    assert torch.equal(generate(pipe), plain)


def test_lagging_evidence_is_that_of_the_step_before():
    torch.manual_seed(0)
    predictions = torch.randn(8, 2, 5).cumsum(0)
    past = History(2)
    exact, lagging = (
        collector_for(ForecastError, 2, Newton(1), past, lagged) for lagged in (False, True)
    )
    rates = []
    for step, prediction in enumerate(predictions):
        now = Anchor(float(step) ** 1.5, step)
        found = [torch.tensor(each.before(now).predicted) for each in (exact, lagging)]
        if step:
            grown = torch.tensor(past.outlook(Newton(1), now)[1])
            rates.append([each / grown for each in found])
        for each in (exact, lagging):
            each.after(now, prediction, prediction, [True, True])
        past.append([prediction], now)
    for (before, _), (_, after) in pairwise(rates):
        torch.testing.assert_close(after, before, equal_nan=True)
    assert not rates[-1][1].isnan().any()


@pytest.mark.parametrize("method", ["fbcache", "teacache"])
def test_lagging_probes_are_those_of_the_step_before(dit, generate, monkeypatch, method):
    """Also after steps that a guard computes: each is measured, and read one step later."""
    given, taken = [], []
    read = Reader.read

    def watched(reader, tensor):
        given.append(tensor)
        found = read(reader, tensor)
        taken.append(found)
        return found

    monkeypatch.setattr(Reader, "read", watched)
    diffcache.wrap(dit, method, lagged=True, threshold=1e9, max_consecutive_skips=2)
    generate(dit, 1, 16, cfg=False)
    report = diffcache.report(dit)
    assert {"cap", "skip"} <= {rule for event in report.trace for rule in event.rules}
    # All calls but the first have something to compare with.
    assert len(given) == report.steps - 1
    assert taken[0] is None
    assert all(torch.equal(a, b) for a, b in zip(given, taken[1:], strict=False))


def test_telling_guidance_branches_apart_reads_once(unet, generate):
    diffcache.wrap(unet, "fastercache")
    # The first generation also finds out whether rows are independent.
    for reads in (2, 1):
        generate(unet, samples=1, steps=14)
        assert diffcache.report(unet).host_reads == reads


def test_drafts_cannot_lag(dit, generate):
    plain = generate(dit)
    with pytest.raises(ValueError, match="accepts or rejects a draft inside the call"):
        diffcache.wrap(dit, "speca", lagged=True)
    with pytest.raises(ValueError, match="lagged='yes' is neither True nor False; try lagged=True"):
        diffcache.wrap(dit, lagged="yes")
    assert torch.equal(generate(dit), plain)


def test_a_lagging_method_takes_a_policy_of_drafts_with_lagged_off():
    lagging = diffcache.Method(site=BlockStack(tail=1), policy=Interval(every=3), lagged=True)
    with pytest.raises(ValueError, match="leave lagged out"):
        lagging.configured(policy="speca")
    assert not lagging.configured(policy="speca", lagged=False).lagged
