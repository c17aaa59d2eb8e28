"""Placeholders that show, and denoisers of several families to call by hand."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from diffcache.sites import block_stack, recording

ROWS = 3

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "sd3": (
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
        },
        {
            "hidden_states": (4, 8, 8),
            "encoder_hidden_states": (7, 32),
            "pooled_projections": (16,),
        },
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "cross_attention_dim": 16,
            "caption_channels": 32,
            "sample_size": 8,
            "use_additional_conditions": False,
        },
        {"hidden_states": (4, 8, 8), "encoder_hidden_states": (7, 32)},
    ),
    "wan": (
        "WanTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 32,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 4,
            "rope_max_seq_len": 32,
        },
        {"hidden_states": (4, 2, 8, 8), "encoder_hidden_states": (7, 32)},
    ),
    "cogvideox": (
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 32,
            "num_layers": 4,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 7,
        },
        {"hidden_states": (2, 4, 8, 8), "encoder_hidden_states": (7, 32)},
    ),
}


@pytest.fixture(params=FAMILIES)
def denoiser(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model with four blocks, and arguments of a call without its timestep."""
    name, options, shapes = FAMILIES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**options).eval()
        inputs = {key: torch.randn(ROWS, *shape) for key, shape in shapes.items()}
    return model.requires_grad_(False), inputs


@pytest.fixture
def placeholders(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[Any]]:
    """Fills placeholders with a value and lists those that were made."""

    def fill(value: float) -> list[Any]:
        made: list[Any] = []

        def placeholder(meta: Any) -> torch.Tensor:
            shape, dtype, device = meta
            made.append(meta)
            return torch.full(shape, value, dtype=dtype, device=device)

        monkeypatch.setattr(recording, "placeholder", placeholder)
        monkeypatch.setattr(block_stack, "placeholder", placeholder)
        return made

    return fill


@pytest.fixture
def count_calls() -> Callable[[list[torch.nn.Module]], list[int]]:
    """A list that keeps count of how often each module's first child runs.

    The module's own hooks would not tell: they also run around a `forward` that is gated.
    """

    def watch(modules: list[torch.nn.Module]) -> list[int]:
        calls = [0] * len(modules)

        def counting(index: int) -> Callable:
            def hook(*_: Any) -> None:
                calls[index] += 1

            return hook

        for index, module in enumerate(modules):
            next(module.children()).register_forward_hook(counting(index))
        return calls

    return watch
