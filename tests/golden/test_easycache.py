"""EasyCache against its algorithm, written naively here (arXiv 2507.02860)."""

import pytest
import torch

import diffcache

WARMUP = 5


def naive(transformer, scheduler, sample, threshold, steps=24):
    """EasyCache around `transformer`, for one sample and no guidance."""
    plain, step = transformer.forward, [0]
    xs, computed = [], []
    total = [0.0]

    def forward(hidden_states, **kwargs):
        i, x = step[0], hidden_states.clone()
        step[0] += 1
        xs.append(x)
        if WARMUP <= i < steps - 1:
            (xt, vt), (xp, vp) = computed[-1], computed[-2]
            k = (vt - vp).abs().mean() / (xt - xp).abs().mean()
            total[0] += float(k * (x - xs[-2]).abs().mean() / vt.abs().mean())
            if total[0] < threshold:
                return (x + (vt - xt),)
        total[0] = 0.0
        v = plain(hidden_states, **kwargs)[0]
        computed.append((x, v.clone()))
        ran.append(i)
        return (v,)

    ran: list[int] = []
    transformer.forward = forward
    found, _ = sample(transformer, scheduler)
    del transformer.forward
    return found, ran


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2])
def test_same_steps_and_latents_as_the_algorithm(
    flux_transformer, flow_scheduler, sample, threshold
):
    expected, ran = naive(flux_transformer, flow_scheduler, sample, threshold)
    diffcache.wrap(
        flux_transformer,
        "easycache",
        scheduler=flow_scheduler,
        threshold=threshold,
        protect=(WARMUP, 1),
    )
    found, ours = sample(flux_transformer, flow_scheduler)
    diffcache.unwrap(flux_transformer)
    assert ours == ran
    assert WARMUP < len(ran) < 24
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_each_sample_decides_as_if_it_were_alone(flux_transformer, flow_scheduler, sample):
    diffcache.wrap(flux_transformer, "easycache", scheduler=flow_scheduler, threshold=0.1)
    sample(flux_transformer, flow_scheduler, batch=3)
    masks = diffcache.report(flux_transformer).mask
    assert masks.shape == (24, 3)
    assert not masks.all()
    assert not (masks == masks[:, :1]).all()
