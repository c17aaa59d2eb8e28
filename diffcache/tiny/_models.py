"""The tiny models and tokenizers, freshly built; :mod:`diffcache.tiny` loads their weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from . import _configs

FOLDER = Path(__file__).parent / "weights"


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, each caption word one token; 24 tokens at most."""
    return CLIPTokenizer(
        str(FOLDER / "vocab.json"),
        str(FOLDER / "merges.txt"),
        model_max_length=_configs.TOKENS,
    )


@cache
def word_tokenizer() -> FastTokenizer:
    """A word-level tokenizer that ends texts and pads as T5's does; 24 tokens at most."""
    return FastTokenizer(
        tokenizer_file=str(FOLDER / "words.json"),
        model_max_length=_configs.TOKENS,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def vae() -> AutoencoderKL:
    """An autoencoder from ``(n, 3, 64, 64)`` pictures to ``(n, 8, 16, 16)`` latents."""
    return AutoencoderKL(**_configs.VAE)


def unet() -> UNet2DConditionModel:
    """A noise-predicting UNet over the latents."""
    return UNet2DConditionModel(**_configs.UNET)


def dit() -> FluxTransformer2DModel:
    """A velocity-predicting Flux transformer over ``(n, 64, 32)`` packed latents."""
    return FluxTransformer2DModel(**_configs.DIT)


def clip() -> CLIPTextModel:
    """A CLIP text encoder."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        **_configs.CLIP,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def t5() -> T5EncoderModel:
    """A T5 text encoder."""
    tokenizer = word_tokenizer()
    config = T5Config(
        **_configs.T5,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


def start_as_identity(transformer: FluxTransformer2DModel) -> None:
    """Zero the modulations and the output layer, so that every block begins as the identity."""
    for name, module in transformer.named_modules():
        modulation = name.endswith(".linear") and ".norm" in f".{name}"
        if isinstance(module, torch.nn.Linear) and (modulation or name == "proj_out"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
