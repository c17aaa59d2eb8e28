"""SpeCa's verified drafts on a Flux transformer."""

import pytest
import torch

import diffcache
from diffcache.policies import Drafted
from diffcache.sites import BlockStack


def wrap(transformer, scheduler, **options):
    return diffcache.wrap(transformer, "speca", scheduler=scheduler, **options)


def count(module):
    ran = []
    module.register_forward_hook(lambda *_: ran.append(1))
    return ran


def test_a_draft_that_is_accepted_runs_the_last_block_only(
    flux_transformer, flow_scheduler, sample
):
    blocks = flux_transformer.single_transformer_blocks
    first, last = count(flux_transformer.transformer_blocks[0].norm1), count(blocks[-1].norm)
    wrap(flux_transformer, flow_scheduler, base=1e9, decay=1.0)
    sample(flux_transformer, flow_scheduler)
    report = diffcache.report(flux_transformer)
    assert len(last) == 24
    assert len(first) == int(report.mask.sum()) < 12
    assert report.timeline().startswith("███·····█·····█")


def test_a_draft_that_is_rejected_is_computed_inside_the_call(
    flux_transformer, flow_scheduler, sample
):
    plain, _ = sample(flux_transformer, flow_scheduler, batch=2)
    wrap(flux_transformer, flow_scheduler, base=0.0, floor=0.0)
    found, _ = sample(flux_transformer, flow_scheduler, batch=2)
    report = diffcache.report(flux_transformer)
    assert torch.equal(found, plain)
    assert report.compute_fraction == 1
    assert report.mask.all()


def test_the_error_is_that_of_the_last_block_on_the_draft(
    flux_transformer, flow_scheduler, sample, monkeypatch
):
    errors = []
    accept = Drafted.accept

    def noting(self, step, error):
        errors.append((step.index, float(error)))
        return accept(self, step, error)

    monkeypatch.setattr(Drafted, "accept", noting)
    outputs = []
    wrap(flux_transformer, flow_scheduler, base=1e9, decay=1.0, order=1)
    final = flux_transformer.norm_out.register_forward_pre_hook(
        lambda _, args: outputs.append(args[0].clone())
    )
    sample(flux_transformer, flow_scheduler)
    final.remove()
    # Steps 0, 1, 2 are computed: the first draft continues 1 and 2 in a line.
    forecast = 2 * outputs[2] - outputs[1]
    expected = ((forecast - outputs[3]).abs() / (outputs[3].abs() + 1e-10)).mean()
    assert errors[0] == (3, pytest.approx(float(expected), rel=1e-3))


def test_samples_are_rejected_on_their_own(flux_transformer, flow_scheduler, sample):
    found = []
    for floor in (0.02, 0.05, 0.1, 0.2, 0.4):
        wrap(flux_transformer, flow_scheduler, base=0.0, floor=floor)
        latents, _ = sample(flux_transformer, flow_scheduler, batch=3)
        assert latents.isfinite().all()
        found.append(diffcache.report(flux_transformer).mask)
    assert any((masks != masks[:, :1]).any() for masks in found)


def test_a_site_without_a_tail_is_refused(flux_transformer, flow_scheduler):
    with pytest.raises(ValueError, match="Drafted reads DraftError, which BlockStack cannot"):
        wrap(flux_transformer, flow_scheduler, site=BlockStack(head=0, tail=0))
