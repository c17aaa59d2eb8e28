"""TeaCache against its algorithm, written naively here (arXiv 2411.19108)."""

import pytest
import torch
from numpy import poly1d

import diffcache

FLUX = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)


def naive(transformer, scheduler, sample, threshold, polynomial, steps=24):
    """TeaCache on a Flux transformer's blocks, for one sample."""
    first, final = transformer.transformer_blocks[0], transformer.norm_out
    seen = {"index": 0, "probe": None, "spent": 0.0, "residual": None}
    ran: list[int] = []
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    plain = [block.forward for block in blocks]

    def entry(hidden_states, encoder_hidden_states, temb, **kwargs):
        i = seen["index"]
        seen["index"] += 1
        probe = first.norm1(hidden_states, emb=temb)[0]
        last, seen["probe"] = seen["probe"], probe
        compute = i in (0, steps - 1)
        if not compute:
            change = float((probe - last).abs().mean() / last.abs().mean())
            seen["spent"] += float(poly1d(polynomial)(change))
            compute = not seen["spent"] < threshold
        seen["entry"], seen["skip"] = hidden_states, not compute
        if compute:
            seen["spent"] = 0.0
            ran.append(i)
            return plain[0](
                hidden_states=hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                temb=temb,
                **kwargs,
            )
        return encoder_hidden_states, hidden_states

    def through(number):
        def forward(hidden_states, encoder_hidden_states, **kwargs):
            if seen["skip"]:
                return encoder_hidden_states, hidden_states
            return plain[number](
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs
            )

        return forward

    def leave(_, arguments):
        hidden, *rest = arguments
        if seen["skip"]:
            hidden = seen["entry"] + seen["residual"]
        else:
            seen["residual"] = hidden - seen["entry"]
        return (hidden, *rest)

    for number, block in enumerate(blocks):
        block.forward = through(number) if number else entry
    hook = final.register_forward_pre_hook(leave)
    found, _ = sample(transformer, scheduler)
    hook.remove()
    for block in blocks:
        del block.forward
    return found, ran


@pytest.mark.parametrize(
    ("threshold", "polynomial"), [(0.3, (1.0, 0.0)), (0.1, (1.0, 0.0)), (0.8, FLUX)]
)
def test_same_steps_and_latents_as_the_algorithm(
    flux_transformer, flow_scheduler, sample, threshold, polynomial
):
    expected, ran = naive(flux_transformer, flow_scheduler, sample, threshold, polynomial)
    diffcache.wrap(
        flux_transformer,
        "teacache",
        scheduler=flow_scheduler,
        threshold=threshold,
        polynomial=polynomial,
    )
    found, ours = sample(flux_transformer, flow_scheduler)
    diffcache.unwrap(flux_transformer)
    assert ours == ran
    assert 2 < len(ran) < 24
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_skip_runs_no_attention(flux_transformer, flow_scheduler, sample):
    ran = []
    norm = flux_transformer.transformer_blocks[0].attn.norm_q
    hook = norm.register_forward_hook(lambda *_: ran.append(1))
    diffcache.wrap(flux_transformer, "teacache", scheduler=flow_scheduler, threshold=0.3)
    sample(flux_transformer, flow_scheduler)
    hook.remove()
    assert len(ran) == int(diffcache.report(flux_transformer).mask.sum()) < 24


def test_each_sample_decides_as_if_it_were_alone(flux_transformer, flow_scheduler, sample):
    # The modulation hardly differs between samples, so that few thresholds tell them apart.
    found = []
    for threshold in (0.1, 0.14, 0.18, 0.22, 0.26, 0.32):
        diffcache.wrap(flux_transformer, "teacache", scheduler=flow_scheduler, threshold=threshold)
        sample(flux_transformer, flow_scheduler, batch=3)
        found.append(diffcache.report(flux_transformer).mask)
    assert not any(masks.all() for masks in found)
    assert any((masks != masks[:, :1]).any() for masks in found)


def test_blocks_without_attention_compute_and_say_so(flux_transformer, flow_scheduler, sample):
    plain, _ = sample(flux_transformer, flow_scheduler)
    attention = flux_transformer.transformer_blocks[0].attn
    named = type("Mixer", (type(attention),), {})
    attention.__class__ = named
    diffcache.wrap(flux_transformer, "teacache", scheduler=flow_scheduler)
    found, _ = sample(flux_transformer, flow_scheduler)
    report = diffcache.report(flux_transformer)
    assert torch.equal(found, plain)
    assert any("no attention" in note for note in report.notes)
