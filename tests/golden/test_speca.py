"""SpeCa's verified drafts on a Flux transformer."""

from math import factorial

import pytest
import torch

import diffcache
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
    assert report.timeline().startswith("███········█········█")


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


class Series:
    """Taylor's series of tensors, by differences over the gap between the newest two steps."""

    def __init__(self, order):
        self.order, self.step, self.factors = order, None, []

    def update(self, step, value):
        factors = [value]
        for old in self.factors[: self.order]:
            factors.append(
                [(a - b) / (step - self.step) for a, b in zip(factors[-1], old, strict=True)]
            )
        self.step, self.factors = step, factors

    def at(self, step):
        return [
            sum(d * (step - self.step) ** i / factorial(i) for i, d in enumerate(leaf))
            for leaf in zip(*self.factors, strict=True)
        ]


def naive(transformer, scheduler, sample, base, decay, floor, order, cap=8, steps=24):
    """SpeCa on the two lists of a Flux transformer, for one sample.

    Gives the latents, the steps that were computed, and the error and threshold of each draft.
    """
    lists = [list(transformer.transformer_blocks), list(transformer.single_transformer_blocks[:-1])]
    last = transformer.single_transformer_blocks[-1]
    series = {key: Series(order) for key in ("0", "1", "last")}
    now = {"step": 0, "draft": False}
    whole, added = transformer.forward, {}
    ran, drafts = [], []

    def forward(*args, **kwargs):
        step = now["step"]
        now["step"] += 1
        if step >= 3 and step - ran[-1] <= cap:
            now["draft"] = True
            output = whole(*args, **kwargs)
            limit = max(base * decay ** (step / steps), floor)
            drafts.append((now["error"], limit))
            if now["error"] <= limit:
                return output
        now["draft"] = False
        output = whole(*args, **kwargs)
        ran.append(step)
        for key, value in added.items():
            series[key].update(step, value)
        return output

    def through(key, block, ends):
        plain = block.forward

        def run(hidden_states, encoder_hidden_states, **kwargs):
            if block is ends[0]:
                now["entry"] = encoder_hidden_states, hidden_states
            if now["draft"]:
                output = encoder_hidden_states, hidden_states
                residual = series[key].at(now["step"] - 1) if block is ends[1] else (0.0, 0.0)
                return tuple(a + b for a, b in zip(output, residual, strict=True))
            output = plain(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs
            )
            if block is ends[1]:
                added[key] = [a - b for a, b in zip(output, now["entry"], strict=True)]
            return output

        block.forward = run

    def verify(hidden_states, encoder_hidden_states, **kwargs):
        output = final(
            hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **kwargs
        )
        update = output[1] - hidden_states
        if now["draft"]:
            (draft,) = series["last"].at(now["step"] - 1)
            now["error"] = float(((draft - update).abs() / (update.abs() + 1e-10)).mean())
        else:
            added["last"] = [update]
        return output

    for key, blocks in zip("01", lists, strict=True):
        for block in blocks:
            through(key, block, (blocks[0], blocks[-1]))
    final, last.forward, transformer.forward = last.forward, verify, forward
    found, _ = sample(transformer, scheduler)
    for module in (transformer, last, *lists[0], *lists[1]):
        del module.forward
    return found, ran, drafts


@pytest.mark.parametrize(
    ("base", "decay", "floor", "order"),
    [(7.0, 0.3, 0.1, 2), (4.0, 0.5, 1.5, 1), (3.0, 0.1, 2.5, 3)],
)
def test_same_steps_and_latents_as_the_algorithm(
    flux_transformer, flow_scheduler, sample, base, decay, floor, order
):
    expected, ran, drafts = naive(
        flux_transformer, flow_scheduler, sample, base, decay, floor, order
    )
    wrap(flux_transformer, flow_scheduler, base=base, decay=decay, floor=floor, order=order)
    found, _ = sample(flux_transformer, flow_scheduler)
    mask = diffcache.report(flux_transformer).mask[:, 0]
    assert mask.nonzero()[:, 0].tolist() == ran
    assert 3 < len(ran) < 24
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert any(error > limit for error, limit in drafts)


def test_samples_are_rejected_on_their_own(flux_transformer, flow_scheduler, sample):
    found = []
    for floor in (1.0, 1.5, 2.0, 3.0, 4.0):
        wrap(flux_transformer, flow_scheduler, base=0.0, floor=floor)
        latents, _ = sample(flux_transformer, flow_scheduler, batch=3)
        assert latents.isfinite().all()
        found.append(diffcache.report(flux_transformer).mask)
    assert any((masks != masks[:, :1]).any() for masks in found)


def test_a_site_without_a_tail_is_refused(flux_transformer, flow_scheduler):
    with pytest.raises(ValueError, match="Drafted reads DraftError, which BlockStack cannot"):
        wrap(flux_transformer, flow_scheduler, site=BlockStack(head=0, tail=0))
