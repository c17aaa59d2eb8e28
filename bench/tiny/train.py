"""Train the tiny pipelines' models: ``train.py KIND --minutes N --threads T --out DIR``.

``KIND`` is ``vae`` first, then ``unet`` and ``dit`` in any order, on the latents of that ``vae``,
whose ``decoder`` may be trained on at any time.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scenes
import torch
from data import Captioned, encode, pixels_of, rendered
from diffusers import DDIMScheduler, FluxPipeline
from safetensors.torch import load_file, save_file

from diffcache.tiny import _configs, _models

BATCH = {"vae": 16, "decoder": 4, "unet": 32, "dit": 32}
RATE = {"vae": 2e-3, "decoder": 1e-3, "unet": 6e-4, "dit": 8e-4}
SAVE_SECONDS = 300


class Average:
    """Exponential average of a module's parameters, over a window that grows with the steps."""

    def __init__(self, module: torch.nn.Module, limit: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.limit = limit
        self.steps = 0

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        """Take one more step's parameters in."""
        self.steps += 1
        keep = min(self.limit, (1 + self.steps) / (10 + self.steps))
        ours, theirs = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - keep)


def save(module: torch.nn.Module, path: Path) -> None:
    """Write a module's weights as fp16 safetensors, all or nothing."""
    partial = path.with_suffix(".partial")
    state = {k: v.detach().half().contiguous().clone() for k, v in module.state_dict().items()}
    save_file(state, partial)
    partial.chmod(0o644)
    os.replace(partial, path)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``scaled_dot_product_attention`` by plain products: on CPUs its own backward is slow."""
    scores = (query * (scale or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def optimise(
    kind: str,
    models: torch.nn.ModuleDict,
    loss_of: Callable[[], torch.Tensor],
    options: argparse.Namespace,
) -> torch.nn.ModuleDict:
    """Minimise ``loss_of()`` for ``options.minutes``; returns the averaged models.

    With ``options.resume``, the weights in ``options.out`` are where it begins. Saves
    ``NAME.safetensors`` there for each of ``models``, every five minutes and at the end, and
    appends to its ``KIND.jsonl``.
    """
    out = options.out
    if options.resume:
        for name, module in models.items():
            module.load_state_dict(load_file(out / f"{name}.safetensors"))
    optimiser = torch.optim.AdamW(models.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    average = Average(models, 0.999)
    began = saved = logged = time.monotonic()
    losses: list[float] = []
    log = (out / f"{kind}.jsonl").open("a")
    done = False
    while not done:
        now = time.monotonic()
        progress = (now - began) / (60 * options.minutes)
        done = progress >= 1
        decay = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        for group in optimiser.param_groups:
            group["lr"] = options.rate * min((1 + average.steps) / 100, decay)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(models.parameters(), 1.0)
        optimiser.step()
        average.update(models)
        losses.append(loss.item())
        if done or now - logged > 20:
            line = {"seconds": round(now - began), "steps": average.steps}
            print(json.dumps(line | {"loss": float(np.mean(losses))}), file=log, flush=True)
            losses, logged = [], now
        if not done and now - saved > SAVE_SECONDS:
            saved = now
            for name, module in average.module.items():
                save(module, out / f"{name}.safetensors")
    for name, module in average.module.items():
        save(module, out / f"{name}.safetensors")
    return average.module


def difference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How far apart two batches of pictures are, in values and in slopes."""
    error = x - y
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * slopes


def train_vae(options: argparse.Namespace) -> None:
    """Train the autoencoder and normalise its latents."""
    images, _ = rendered(options.out, options.scenes)
    rng = np.random.default_rng(1)
    vae = _models.vae()

    def crops() -> torch.Tensor:
        # Quarter pictures around pixels of objects: backgrounds are learned soon enough.
        # Some whole ones keep the group norms used to their statistics.
        if rng.random() < 0.25:
            return pixels_of(images[np.sort(rng.integers(0, len(images), BATCH["vae"] // 4))])
        size = scenes.SIZE // 2
        parts = []
        for index in rng.integers(0, len(images), BATCH["vae"]):
            image = images[index].astype(np.int16)
            rows, columns = np.nonzero(np.ptp(image, axis=-1) > 46)
            middle = rng.integers(len(rows))
            top, left = (
                int(np.clip(place[middle] + rng.integers(-20, 21) - size // 2, 0, size))
                for place in (rows, columns)
            )
            parts.append(image[top : top + size, left : left + size])
        return pixels_of(np.stack(parts))

    def loss_of() -> torch.Tensor:
        x = crops()
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample.float()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return difference(x, y) + 2e-5 * divergence

    trained = optimise("vae", torch.nn.ModuleDict({"vae": vae}), loss_of, options)["vae"]
    latents = encode(trained, images[:2000])
    print("latents", latents.mean((0, 2, 3)), latents.std((0, 2, 3)), latents.std())
    fold(trained, latents.mean((0, 2, 3)), latents.std())
    save(trained, options.out / "vae.safetensors")


def train_decoder(options: argparse.Namespace) -> None:
    """Train the decoder of a trained autoencoder on; its latents stay what they are."""
    images, _ = rendered(options.out, options.scenes)
    rng = np.random.default_rng(2)
    vae = _models.vae()
    vae.load_state_dict(load_file(options.out / "vae.safetensors"))
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss_of() -> torch.Tensor:
        x = pixels_of(images[np.sort(rng.integers(0, len(images), BATCH["decoder"]))])
        with torch.no_grad():
            latents = vae.encode(x).latent_dist.mean
        # A denoiser's latents are a little off, and the decoder should not care.
        latents = latents + 0.05 * torch.randn_like(latents)
        return difference(x, vae.decode(latents).sample.float())

    optimise("decoder", torch.nn.ModuleDict({"vae": vae}), loss_of, options)


@torch.no_grad()
def fold(vae: torch.nn.Module, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Shift and scale a VAE's latents, so that they are ``(z - mean) / deviation`` from now on."""
    channels = len(mean)
    into, back = vae.quant_conv, vae.post_quant_conv
    into.bias[:channels] -= mean
    into.weight[:channels] /= deviation
    into.bias[:channels] /= deviation
    into.bias[channels:] -= 2 * deviation.log()
    back.bias += back.weight[..., 0, 0] @ mean
    back.weight *= deviation


def train_unet(options: argparse.Namespace) -> None:
    """Train the UNet, to predict noise as Stable Diffusion's does, with its text encoder."""
    data = Captioned(options.out, options.scenes, [_models.clip_tokenizer()])
    models = torch.nn.ModuleDict({"unet": _models.unet(), "unet_clip": _models.clip()})
    kept = DDIMScheduler(**_configs.DDIM).alphas_cumprod

    def loss_of() -> torch.Tensor:
        clean, (ids,) = data.draw(BATCH["unet"])
        steps, noise = torch.randint(len(kept), (len(clean),)), torch.randn_like(clean)
        signal = kept[steps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        words = models["unet_clip"](ids).last_hidden_state
        guess = models["unet"](noisy, steps, encoder_hidden_states=words).sample
        # Min-SNR weights (arXiv 2303.09556): most of a plain noise loss is fine detail, while what
        # a caption says is settled where noise is high.
        weights = (5 * (1 - signal) / signal).clamp(max=1)
        return (weights * (guess.float() - noise).square()).mean()

    optimise("unet", models, loss_of, options)


def train_dit(options: argparse.Namespace) -> None:
    """Train the Flux transformer, by flow matching, with its two text encoders."""
    data = Captioned(
        options.out, options.scenes, [_models.clip_tokenizer(), _models.word_tokenizer()]
    )
    transformer = _models.dit()
    _models.start_as_identity(transformer)
    models = {"dit": transformer, "dit_clip": _models.clip(), "dit_t5": _models.t5()}
    models = torch.nn.ModuleDict(models)
    places = FluxPipeline._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)
    no_places = torch.zeros(_configs.TOKENS, 3)

    def loss_of() -> torch.Tensor:
        clean, (clip_ids, t5_ids) = data.draw(BATCH["dit"])
        clean = FluxPipeline._pack_latents(clean, *clean.shape)
        noise = torch.randn_like(clean)
        # Leaning to the noisy end, where the number of objects and their places are settled.
        sigmas = torch.sigmoid(0.3 + 1.2 * torch.randn(len(clean)))
        noisy = torch.lerp(clean, noise, sigmas.view(-1, 1, 1))
        guess = transformer(
            hidden_states=noisy,
            timestep=sigmas,
            pooled_projections=models["dit_clip"](clip_ids).pooler_output,
            encoder_hidden_states=models["dit_t5"](t5_ids).last_hidden_state,
            txt_ids=no_places,
            img_ids=places,
        ).sample
        return (guess.float() - (noise - clean)).square().mean()

    optimise("dit", models, loss_of, options)


TRAINERS = {"vae": train_vae, "decoder": train_decoder, "unet": train_unet, "dit": train_dit}


def main() -> None:
    """Parse the command line and train one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=tuple(TRAINERS))
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", type=float, help="the highest learning rate")
    parser.add_argument("--resume", action="store_true", help="train the weights in DIR on")
    parser.add_argument("--scenes", type=int, default=48000)
    options = parser.parse_args()
    options.rate = options.rate or RATE[options.kind]
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    # Training on would otherwise see the first run's batches and noise once more.
    torch.manual_seed(int(options.resume))
    torch.nn.functional.scaled_dot_product_attention = attention
    TRAINERS[options.kind](options)


if __name__ == "__main__":
    main()
