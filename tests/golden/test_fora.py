"""FORA against its algorithm written naively: every module keeps its last output itself."""

import pytest
import torch

import diffcache

STEPS = 16
PARTS = ("attn", "ff", "ff_context", "proj_mlp")


@torch.no_grad()
def sample(transformer, scheduler, batch, entered=None):
    generator = torch.Generator().manual_seed(7)
    x, text = (torch.randn(batch, n, w, generator=generator) for n, w in ((16, 8), (6, 16)))
    pooled = torch.randn(batch, 16, generator=generator)
    ids = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(6, 3)}
    scheduler.set_timesteps(STEPS)
    for index, t in enumerate(scheduler.timesteps):
        if entered is not None:
            entered.append(index)
        velocity = transformer(
            x,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=(t / 1000).expand(batch),
            return_dict=False,
            **ids,
        )[0]
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("every", [2, 3, 5])
def test_same_latents_as_caches_inside_the_modules(flux_transformer, flow_scheduler, every):
    blocks = [
        *flux_transformer.transformer_blocks,
        *flux_transformer.single_transformer_blocks,
    ]
    modules = [getattr(block, part) for block in blocks for part in PARTS if hasattr(block, part)]
    assert len(modules) == 2 * 3 + 3 * 2
    plain = sample(flux_transformer, flow_scheduler, 2)
    entered: list[int] = []

    def caching(forward):
        kept = []

        def call(*args, **kwargs):
            if entered[-1] % every == 0:
                kept[:] = [forward(*args, **kwargs)]
            return kept[0]

        return call

    for module in modules:
        module.forward = caching(module.forward)
    expected = sample(flux_transformer, flow_scheduler, 2, entered)
    for module in modules:
        del module.forward
    diffcache.wrap(flux_transformer, "fora", scheduler=flow_scheduler, every=every)
    found = sample(flux_transformer, flow_scheduler, 2)
    report = diffcache.report(flux_transformer)
    assert report.mask[:, 0].nonzero()[:, 0].tolist() == list(range(0, STEPS, every))
    assert not torch.allclose(expected, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
