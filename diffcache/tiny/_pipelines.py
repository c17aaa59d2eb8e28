"""The tiny pipelines, put together from the weights in the package."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    SchedulerMixin,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file

from . import _configs, _models


class TinyFluxPipeline(FluxPipeline):
    """``FluxPipeline`` that pads prompts to 24 tokens instead of 512."""

    @wraps(FluxPipeline.__call__)
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As ``FluxPipeline``'s, with ``max_sequence_length`` defaulting to 24."""
        return super().__call__(*args, **{"max_sequence_length": _configs.TOKENS} | kwargs)


def build(
    kind: str, dtype: torch.dtype | None, scheduler: SchedulerMixin | None
) -> DiffusionPipeline:
    """The pipeline of :func:`diffcache.tiny.pipeline`; ``kind`` is ``"unet"`` or ``"dit"``."""
    dtype = dtype or torch.float32
    vae = _loaded("vae", _models.vae, dtype)
    if kind == "unet":
        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=_loaded("unet_clip", _models.clip, dtype),
            tokenizer=_models.clip_tokenizer(),
            unet=_loaded("unet", _models.unet, dtype),
            scheduler=scheduler or DDIMScheduler(**_configs.DDIM),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe = TinyFluxPipeline(
        vae=vae,
        text_encoder=_loaded("dit_clip", _models.clip, dtype),
        tokenizer=_models.clip_tokenizer(),
        text_encoder_2=_loaded("dit_t5", _models.t5, dtype),
        tokenizer_2=_models.word_tokenizer(),
        transformer=_loaded("dit", _models.dit, dtype),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(**_configs.FLOW),
    )
    pipe.default_sample_size = _configs.UNET["sample_size"]
    return pipe


def _loaded(name: str, make: Any, dtype: torch.dtype) -> torch.nn.Module:
    module = make()
    # Before version 5 of transformers, what CLIP's text model is made of lies one level down.
    inner = getattr(module, "text_model", module)
    inner.load_state_dict(load_file(_models.FOLDER / f"{name}.safetensors"))
    # diffusers' own `to` warns even when no module has to stay in float32.
    return torch.nn.Module.to(module, dtype).eval().requires_grad_(False)
