"""Pyramid Attention Broadcast against diffusers' own hooks, and where those go wrong."""

import pytest
import torch
from diffusers import PixArtTransformer2DModel, PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_pyramid_attention_broadcast

import diffcache
from diffcache.policies import ByRole, Interval

STEPS = 24


def transformer():
    """PixArt has self-attention and cross-attention in modules of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
            use_additional_conditions=False,
        ).eval()


@torch.no_grad()
def predictions(model, scheduler, texts, now=None):
    """What the model gives at each step for each of `texts`, in calls of their own."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(STEPS)
    found = []
    for t in scheduler.timesteps:
        if now is not None:
            now[:] = [float(t)]
        found.append(
            [
                model(x, encoder_hidden_states=text, timestep=t.expand(1), return_dict=False)[0]
                for text in texts
            ]
        )
        x = scheduler.step(found[-1][-1], t, x, return_dict=False)[0]
    return torch.stack([torch.stack(step) for step in found])


def texts(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 5, 16, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("within", [(100, 800), (300, 900)])
def test_same_predictions_as_diffusers_on_one_branch(flow_scheduler, within):
    now: list[float] = []
    hooked = transformer()
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=6,
        spatial_attention_timestep_skip_range=within,
        cross_attention_timestep_skip_range=within,
        current_timestep_callback=lambda: now[0],
    )
    apply_pyramid_attention_broadcast(hooked, config)
    expected = predictions(hooked, flow_scheduler, texts(1), now)
    plain = predictions(transformer(), flow_scheduler, texts(1))
    model = transformer()
    policy = ByRole({"self": Interval(2, within=within), "cross": Interval(6, within=within)})
    diffcache.wrap(model, "pab", scheduler=flow_scheduler, policy=policy)
    found = predictions(model, flow_scheduler, texts(1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, plain, rtol=1e-4, atol=1e-4)
    mask = diffcache.report(model).mask[:, 0].tolist()
    assert 0 < sum(mask) < STEPS


def test_published_intervals_and_range(flow_scheduler):
    model = transformer()
    diffcache.wrap(model, "pab", scheduler=flow_scheduler)
    predictions(model, flow_scheduler, texts(1))
    inside = [100 < event.timestep < 800 for event in diffcache.report(model).trace]
    # PixArt has no temporal attention, and of its interval of 4 the report knows nothing.
    wanted = [not skips or index % 6 == 0 for index, skips in enumerate(inside)]
    assert diffcache.report(model).mask[:, 0].tolist() == wanted


def test_guidance_branches_never_share_an_attention_output(flow_scheduler):
    """diffusers' hooks hand the second of two calls a step the first one's attention."""
    model = transformer()
    diffcache.wrap(model, "pab", scheduler=flow_scheduler)
    uncond, cond = texts(2)
    both = predictions(model, flow_scheduler, [uncond, cond])
    alone = predictions(model, flow_scheduler, [cond])
    torch.testing.assert_close(both[:, 1], alone[:, 0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(both[:, 0], both[:, 1], rtol=1e-3, atol=1e-3)
