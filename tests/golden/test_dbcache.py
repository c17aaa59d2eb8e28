"""DBCache against cache-dit, which patches classes and so runs in a process of its own."""

import subprocess
import sys

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel

import diffcache
from diffcache.methods import registry

STEPS = 24


def transformer() -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=8,
        use_additional_conditions=False,
    ).eval()


@torch.no_grad()
def sample(model, scheduler) -> tuple[torch.Tensor, list[int]]:
    """The latents, and at which steps the third block was run."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 7, 32, generator=generator)
    index, ran = [0], []
    middle = next(m for n, m in model.named_modules() if n.endswith("transformer_blocks.2.norm1"))
    hook = middle.register_forward_hook(lambda *_: ran.append(index[0]))
    scheduler.set_timesteps(STEPS)
    for i, t in enumerate(scheduler.timesteps):
        index[0] = i
        output = model(x, text, timestep=t.expand(1), return_dict=False)[0]
        x = scheduler.step(output, t, x, return_dict=False)[0]
    hook.remove()
    return x, ran


def peer(tail: int, threshold: float) -> tuple[torch.Tensor, list[int]]:
    """What cache-dit makes of the loop."""
    import cache_dit

    model = transformer()
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=tail,
        residual_diff_threshold=threshold,
        max_warmup_steps=8,
        num_inference_steps=STEPS,
    )
    cache_dit.enable_cache(model, cache_config=config)
    return sample(model, FlowMatchEulerDiscreteScheduler())


CASES = [(0, 0.08), (1, 0.04)]


def test_same_steps_and_latents_as_cache_dit(tmp_path):
    path = tmp_path / "peer.pt"
    done = subprocess.run(
        [sys.executable, __file__, str(path)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for (tail, threshold), (expected, ran) in zip(CASES, torch.load(path), strict=True):
        model, scheduler = transformer(), FlowMatchEulerDiscreteScheduler()
        diffcache.wrap(
            model, "dbcache", scheduler=scheduler, head=1, tail=tail, threshold=threshold
        )
        found, ours = sample(model, scheduler)
        assert 8 < len(ran) < STEPS
        assert ours == ran
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def reused():
    model, scheduler = transformer(), FlowMatchEulerDiscreteScheduler()
    diffcache.wrap(model, "dbcache", scheduler=scheduler, head=1)
    found, _ = sample(model, scheduler)
    assert diffcache.report(model).compute_fraction < 1
    return found


FORECASTING = [name for name, method in registry().items() if method.predictor.anchors > 1]


@pytest.mark.parametrize("name", FORECASTING)
def test_a_calibrator_is_a_keyword(reused, name):
    model, scheduler = transformer(), FlowMatchEulerDiscreteScheduler()
    diffcache.wrap(model, "dbcache", scheduler=scheduler, head=1, predictor=name)
    forecast, _ = sample(model, scheduler)
    assert diffcache.report(model).compute_fraction < 1
    assert forecast.isfinite().all() and not torch.equal(forecast, reused)


def test_more_blocks_than_there_are_is_refused_when_wrapped():
    with pytest.raises(ValueError, match=r"head=8.*use head \+ tail <= 5"):
        diffcache.wrap(transformer(), "dbcache", scheduler=FlowMatchEulerDiscreteScheduler())


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save([peer(*case) for case in CASES], sys.argv[1])
