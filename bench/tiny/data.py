"""What the tiny models train on: rendered scenes, their latents and their captions' tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scenes
import torch
from safetensors.torch import load_file, save_file

from diffcache.tiny import _configs, _models

DROPPED = 0.1


def rendered(folder: Path, count: int) -> tuple[np.ndarray, list[str]]:
    """``count`` scenes as ``uint8 (count, 64, 64, 3)`` and captions, kept in ``folder``."""
    images, texts = folder / f"scenes{count}.npy", folder / f"scenes{count}.json"
    if not texts.exists():
        rng = np.random.default_rng(0)
        forbidden = {text for text, _ in scenes.held_out()}
        specs: list = []
        while len(specs) < count:
            spec = scenes.sample(rng)
            if scenes.caption(spec) not in forbidden:
                specs.append(spec)
        pixels = np.stack([scenes.render(spec, rng) for spec in specs])
        np.save(images, pixels)
        texts.write_text(json.dumps([scenes.caption(spec) for spec in specs]))
    return np.load(images, mmap_mode="r"), json.loads(texts.read_text())


def pixels_of(images: np.ndarray) -> torch.Tensor:
    """``uint8 (n, 64, 64, 3)`` to ``float32 (n, 3, 64, 64)`` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(vae: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
    """Mean latents, ``float32 (n, 8, 16, 16)``, of ``uint8 (n, 64, 64, 3)`` images."""
    parts = []
    for start in range(0, len(images), 64):
        with torch.autocast("cpu", torch.bfloat16):
            x = pixels_of(images[start : start + 64])
            parts.append(vae.encode(x).latent_dist.mean.float().contiguous())
    return torch.cat(parts)


class Captioned:
    """Batches of latents and token ids, with a tenth of the captions dropped."""

    def __init__(self, out: Path, count: int, tokenizers: list) -> None:
        vae = _models.vae()
        vae.load_state_dict(load_file(out / "vae.safetensors"))
        images, texts = rendered(out, count)
        cached = out / f"latents{count}.safetensors"
        if not cached.exists():
            save_file({"latents": encode(vae, images).half()}, cached)
        self.latents = load_file(cached)["latents"]
        self.ids = [self._tokenized(tokenizer, texts) for tokenizer in tokenizers]
        self.empty = [self._tokenized(tokenizer, [""]) for tokenizer in tokenizers]

    @staticmethod
    def _tokenized(tokenizer: Callable, texts: list[str]) -> torch.Tensor:
        limits = {"padding": "max_length", "max_length": _configs.TOKENS, "truncation": True}
        return torch.tensor(tokenizer(texts, **limits).input_ids)

    def draw(self, size: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Latents ``(size, 8, 16, 16)`` and, for each tokenizer, ids ``(size, 24)``."""
        picked = torch.randint(len(self.latents), (size,))
        dropped = torch.rand(size, 1) < DROPPED
        pairs = zip(self.empty, self.ids, strict=True)
        ids = [torch.where(dropped, empty, every[picked]) for empty, every in pairs]
        return self.latents[picked].float(), ids
