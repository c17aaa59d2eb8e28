"""Pipelines of published sizes with random weights, built from the data in `models.json`.

Text encoders and autoencoders are left out: prompts are given embedded, and latents come back.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

REAL = ("sd-1.5", "sdxl", "pixart-sigma", "sd-3.5-medium", "flux-1-dev", "wan-2.1-1.3b")
"""The sizes of published checkpoints, for a GPU."""

CPU = ("flux-104m", "unet-104m")
"""At least 100 M parameters, and a forward of well under a second on one core."""


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Everything in `models.json`, by name."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


@dataclass(frozen=True)
class Model:
    """A pipeline, and a call of it.

    Attributes:
        steps: scheduler steps of the call.
        generate: generates once with that many steps, and waits for the device.
    """

    name: str
    pipe: Any
    steps: int
    generate: Callable[[int], Any]

    def run(self) -> Any:
        """Generates once, and waits for the device; returns latents."""
        return self.generate(self.steps)

    def of(self, steps: int) -> Model:
        """The same with another number of steps."""
        return replace(self, steps=steps)

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self.pipe, "unet", None) or self.pipe.transformer

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.denoiser.parameters())


def denoiser(
    name: str, device: str, dtype: torch.dtype, small: bool = False, **options: Any
) -> nn.Module:
    """The denoiser of an entry, made on `device` in `dtype`; `small` is for trying a bench out."""
    entry = entries()[name]
    config = entry["config"] | (entry["small"] if small else {}) | options
    default = torch.get_default_dtype()
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            model = getattr(diffusers, entry["denoiser"])(**config)
        finally:
            torch.set_default_dtype(default)
    return model.eval().requires_grad_(False)


def build(
    name: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    small: bool = False,
    **options: Any,
) -> Model:
    """The pipeline of an entry on `device`, and its call with `options`."""
    entry = entries()[name]
    kind = getattr(diffusers, entry["pipeline"])
    model = denoiser(name, device, dtype, small)
    scheduler = getattr(diffusers, entry["scheduler"])(**entry["scheduler_config"])
    wanted = inspect.signature(kind.__init__).parameters
    parts = {
        part: None
        for part, parameter in wanted.items()
        if part != "self" and parameter.default is inspect.Parameter.empty
    }
    parts |= {"unet" if "unet" in wanted else "transformer": model, "scheduler": scheduler}
    if "requires_safety_checker" in wanted:
        parts["requires_safety_checker"] = False
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    call = entry["call"] | (entry["small_call"] if small else {}) | options
    generator = torch.Generator().manual_seed(1)
    for argument, shape in entry["conditioning"].items():
        value = torch.randn(shape, generator=generator)
        mask = argument.endswith("attention_mask")
        call[argument] = torch.ones(shape, device=device) if mask else value.to(device, dtype)

    steps = call.pop("num_inference_steps")
    call["output_type"] = "latent"

    def generate(steps: int) -> Any:
        seeded = torch.Generator().manual_seed(0)
        made = pipe(**call, num_inference_steps=steps, generator=seeded)[0]
        if made.is_cuda:
            torch.cuda.synchronize()
        return made

    return Model(name, pipe, steps, generate)


def half(steps: int) -> list[bool]:
    """The mask that computes every other step."""
    return [step % 2 == 0 for step in range(steps)]
