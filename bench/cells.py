"""What is measured: pipelines with a scheduler, a number of steps, a guidance and a precision."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FluxPipeline,
    UniPCMultistepScheduler,
)

from diffcache import tiny
from diffcache.tiny import _configs

SCHEDULERS = {
    "dpm": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}
"""What replaces a pipeline's own scheduler; `ddim` and `flow` are their own."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GUIDANCE = {"unet": 3.0, "dit": 1.0}
"""Guidance of the plain cells."""


@dataclass(frozen=True)
class Cell:
    """One pipeline, scheduler, number of steps, guidance and precision of the weights."""

    pipeline: str
    scheduler: str
    steps: int
    guidance: float | None = None
    dtype: str = "fp32"

    @property
    def scale(self) -> float:
        """The guidance scale; 1 is none."""
        return GUIDANCE[self.pipeline] if self.guidance is None else self.guidance

    @property
    def name(self) -> str:
        """Guidance and precision appear where they are not the default."""
        parts = [self.pipeline, self.scheduler, str(self.steps)]
        parts += [f"g{self.scale:g}"] if self.scale != GUIDANCE[self.pipeline] else []
        parts += [self.dtype] if self.dtype != "fp32" else []
        return "-".join(parts)


PLAIN = [Cell("unet", name, n) for n in (50, 28, 20) for name in ("ddim", "dpm", "euler")] + [
    Cell("dit", "flow", n) for n in (50, 28, 20)
]


def prompts() -> list[dict[str, Any]]:
    """Pairs of `prompt` and `seed`: 64 held out, and 32 to tune on."""
    path = Path(__file__).parent / "tiny" / "prompts.json"
    return json.loads(path.read_text())["prompts"]


def load(cell: Cell, scheduler: str | None = None) -> Any:
    """The pipeline of a cell, silent, under the cell's scheduler or another one."""
    pipe = tiny.pipeline(cell.pipeline, dtype=DTYPES[cell.dtype])
    if cell.pipeline == "dit":
        # Peers know pipelines by the names of their classes.
        size = pipe.default_sample_size
        pipe = FluxPipeline(**pipe.components)
        pipe.default_sample_size = size
    if (kind := SCHEDULERS.get(scheduler or cell.scheduler)) is not None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser(pipe: Any) -> torch.nn.Module:
    """The UNet or transformer of a pipeline."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def arguments(cell: Cell, pairs: list[dict], steps: int) -> dict[str, Any]:
    """Of a call that makes one picture a pair of `prompt` and `seed`."""
    if cell.pipeline == "unet":
        own = {"guidance_scale": cell.scale}
    else:
        own = {"max_sequence_length": _configs.TOKENS}
        if cell.scale > 1:
            own |= {"true_cfg_scale": cell.scale, "negative_prompt": [""] * len(pairs)}
    return {
        "prompt": [pair["prompt"] for pair in pairs],
        "generator": [torch.Generator().manual_seed(pair["seed"]) for pair in pairs],
        "num_inference_steps": steps,
        "output_type": "np",
        **own,
    }
