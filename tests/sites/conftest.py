"""Placeholders that show, and denoisers of several families to call by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffcache.sites import recording

ROWS = 3

FAMILIES = {
    "sd3": "SD3Transformer2DModel",
    "pixart": "PixArtTransformer2DModel",
    "wan": "WanTransformer3DModel",
    "cogvideox": "CogVideoXTransformer3DModel",
}


@pytest.fixture(params=FAMILIES)
def denoiser(request: pytest.FixtureRequest, bench: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model with four blocks, and arguments of a call without its timestep."""
    denoisers, name = bench("denoisers"), FAMILIES[request.param]
    inputs = denoisers.caller(name, ROWS)(0.0)
    del inputs["timestep"]
    return denoisers.build(name, num_layers=4), inputs


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
