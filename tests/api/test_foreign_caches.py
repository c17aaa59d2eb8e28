"""A cache of another library that is active is named, and wrapping refuses beside it."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks import apply_first_block_cache, apply_mag_cache, apply_taylorseer_cache

import diffcache

MAG = {"num_inference_steps": 12, "mag_ratios": [1.0] * 12}
TAYLOR = {"cache_interval": 3, "disable_cache_before_step": 2}


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (FirstBlockCacheConfig(threshold=0.1), "FirstBlockCacheConfig"),
        (MagCacheConfig(**MAG), "MagCacheConfig"),
        (TaylorSeerCacheConfig(**TAYLOR), "TaylorSeerCacheConfig"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_enabled_cache_of_diffusers(dit, generate, config, word):
    plain, kind = generate(dit), type(dit)
    dit.transformer.enable_cache(config)
    with pytest.raises(ValueError, match=rf"another cache is active.*{word}.*disable_cache\(\)"):
        diffcache.wrap(dit)
    assert type(dit) is kind
    dit.transformer.disable_cache()
    diffcache.wrap(dit, tolerance=0)
    assert torch.equal(generate(dit), plain)


@pytest.mark.parametrize(
    ("apply", "config"),
    [
        (apply_first_block_cache, FirstBlockCacheConfig(threshold=0.1)),
        (apply_mag_cache, MagCacheConfig(**MAG)),
        (apply_taylorseer_cache, TaylorSeerCacheConfig(**TAYLOR)),
    ],
    ids=["first block", "mag", "taylorseer"],
)
def test_hooks_of_diffusers(dit, apply, config):
    apply(dit.transformer, config)
    with pytest.raises(ValueError, match="another cache is active on FluxTransformer2DModel"):
        diffcache.wrap(dit)


def test_cache_enabled_after_wrapping_computes_with_a_note(dit, generate):
    diffcache.wrap(dit, "interval", every=4)
    dit.transformer.enable_cache(TaylorSeerCacheConfig(**TAYLOR))
    assert generate(dit).isfinite().all()
    first, *notes = str(diffcache.report(dit)).splitlines()
    # What another cache computes is not ours to count.
    assert first == "diffcache interval: no denoiser call was observed"
    assert len(notes) == 1 and "another cache is active" in notes[0]
    dit.transformer.disable_cache()
    generate(dit)
    assert diffcache.report(dit).compute_fraction < 1


def test_override_of_deepcache(unet):
    """DeepCache puts functions of its own module over the `forward` of blocks."""

    def forward(*args: Any, **kwargs: Any) -> None: ...

    forward.__module__ = "DeepCache.extension.deepcache"
    unet.unet.down_blocks[0].forward = forward
    with pytest.raises(ValueError, match=r"DeepCache; call helper.disable\(\) first"):
        diffcache.wrap(unet)


CACHE_DIT = """
import torch, cache_dit, diffcache
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

transformer = FluxTransformer2DModel(
    in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
    axes_dims_rope=[4, 4, 8],
)
pipe = FluxPipeline(
    scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=None, tokenizer=None,
    text_encoder_2=None, tokenizer_2=None, transformer=transformer,
)
cache_dit.enable_cache(
    pipe, cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0)
)
kind = type(pipe)
try:
    diffcache.wrap(pipe)
except ValueError as error:
    assert type(pipe) is kind
    print(error)
cache_dit.disable_cache(pipe)
diffcache.wrap(pipe)
print("wrapped after disable_cache")
"""


def test_cache_dit():
    pytest.importorskip("cache_dit", reason="cache-dit is an optional peer")
    command = [sys.executable, "-c", CACHE_DIT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "cache-dit; call cache_dit.disable_cache(pipe) first" in result.stdout
    assert "wrapped after disable_cache" in result.stdout


@pytest.mark.parametrize("method", ["fbcache", "teacache", "foresight", "speca"])
def test_what_is_sharded_over_processes_is_not_decided_by(dit, generate, method):
    """Each process would decide by its own part of the sequence, and wait for the others."""
    plain = generate(dit)
    config = SimpleNamespace(context_parallel_config=object(), tensor_parallel_config=None)
    dit.transformer._parallel_config = config
    diffcache.wrap(dit, method)
    assert torch.equal(generate(dit), plain)
    notes = diffcache.report(dit).notes
    assert any(note.startswith(f"computed in full: {method} decides by") for note in notes)
    diffcache.wrap(dit, "adaptive", compute=0.5)
    generate(dit)
    assert diffcache.report(dit).compute_fraction == 0.5
