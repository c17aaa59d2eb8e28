"""Pipelines whose denoiser is told by another module what to draw, with tiny random components."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection
from torch import Tensor, nn

STEPS = 8
SIZE = 16


@dataclass
class Controlled:
    """A pipeline with control.

    Attributes:
        nets: what computes the control.
        call: arguments of a generation of two samples.
    """

    pipe: Any
    nets: list[nn.Module]
    call: dict[str, Any]

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self.pipe, "unet", None) or self.pipe.transformer

    def generate(self, **options: Any) -> Tensor:
        """The latents of a generation, the same in each call."""
        settings = {
            "num_inference_steps": STEPS,
            "height": SIZE,
            "width": SIZE,
            "generator": [torch.Generator().manual_seed(seed) for seed in (0, 1)],
            "output_type": "latent",
        }
        # Stable Diffusion 3 draws the latents of the control image without a generator.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.pipe(**settings | self.call | options).images

    @contextmanager
    def counted(self) -> Iterator[list[int]]:
        """How often each of the nets runs: its first child, once in each of its runs.

        The net's own hooks would not tell: they also run around a `forward` that is gated.
        """
        runs = [0] * len(self.nets)

        def counter(index: int) -> Callable:
            def count(*_: Any) -> None:
                runs[index] += 1

            return count

        handles = [
            next(net.children()).register_forward_hook(counter(index))
            for index, net in enumerate(self.nets)
        ]
        yield runs
        for handle in handles:
            handle.remove()


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _image(seed: int) -> Tensor:
    return _normal(2, 3, SIZE, SIZE, seed=seed).sigmoid()


def _texts(width: int = 32) -> dict[str, Any]:
    return {
        "prompt_embeds": _normal(2, 7, width, seed=1),
        "negative_prompt_embeds": _normal(2, 7, width, seed=2),
    }


def _pooled(width: int) -> dict[str, Any]:
    return {
        "pooled_prompt_embeds": _normal(2, width, seed=3),
        "negative_pooled_prompt_embeds": _normal(2, width, seed=4),
    }


def _stirred(net: nn.Module, seed: int = 0) -> nn.Module:
    """`net` with weights that matter: what gives control begins at zero."""
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter.add_(0.1 * _normal(*parameter.shape, seed=1000 * seed + index))
    return net.eval().requires_grad_(False)


def _control_of(unet: nn.Module, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = diffusers.ControlNetModel.from_unet(
            unet, conditioning_channels=3, controlnet_conditioning_channel_order="rgb"
        )
        # Images are twice as large as their latents here, not eight times.
        net.controlnet_cond_embedding = type(net.controlnet_cond_embedding)(
            unet.config.block_out_channels[0], block_out_channels=(16, 16)
        )
    return _stirred(net, seed)


def _stable(make: Callable, nets: int = 1, **options: Any) -> Controlled:
    parts = make("unet").components
    controls = [_control_of(parts["unet"], seed) for seed in range(nets)]
    pipe = diffusers.StableDiffusionControlNetPipeline(
        controlnet=controls if nets > 1 else controls[0], **parts, requires_safety_checker=False
    )
    images = [_image(seed) for seed in range(nets)]
    call = _texts() | {"guidance_scale": 5.0, "image": images if nets > 1 else images[0]}
    return Controlled(pipe, controls, call | options)


def _two(make: Callable, bench: Callable) -> Controlled:
    return _stable(make, 2, controlnet_conditioning_scale=[0.5, 0.8])


def _guess(make: Callable, bench: Callable) -> Controlled:
    """ControlNet runs on the conditional rows alone; zeros stand for it in the others."""
    return _stable(make, guess_mode=True)


def _ending(make: Callable, bench: Callable) -> Controlled:
    """From the middle on ControlNet is called with a scale of zero."""
    return _stable(make, control_guidance_end=0.5)


def _xl(make: Callable, bench: Callable) -> Controlled:
    parts = make("unet").components
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = type(parts["unet"]).from_config(
            parts["unet"].config,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        )
    net = _control_of(unet)
    pipe = diffusers.StableDiffusionXLControlNetPipeline(
        vae=parts["vae"],
        unet=unet,
        controlnet=net,
        scheduler=parts["scheduler"],
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        add_watermarker=False,
    )
    return Controlled(pipe, [net], _texts() | _pooled(32) | {"image": _image(0)})


def _flux(make: Callable, bench: Callable) -> Controlled:
    """One call of ControlNet in a step serves both branches of guidance."""
    parts = make("dit").components
    config = dict(parts["transformer"].config) | {"num_layers": 1, "num_single_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _stirred(diffusers.FluxControlNetModel.from_config(config))
    pipe = diffusers.FluxControlNetPipeline(controlnet=net, **parts)
    call = _texts() | _pooled(32) | {"true_cfg_scale": 2.0, "control_image": _image(0)}
    return Controlled(pipe, [net], call)


def _sd3(make: Callable, bench: Callable) -> Controlled:
    transformer = bench("denoisers").build("SD3Transformer2DModel")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.SD3ControlNetModel.from_config(dict(transformer.config) | {"num_layers": 2})
    texts = [f"{part}{end}" for part in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")]
    pipe = diffusers.StableDiffusion3ControlNetPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=make("dit").vae,
        controlnet=_stirred(net),
        **dict.fromkeys(texts),
    )
    return Controlled(pipe, [net], _texts() | _pooled(64) | {"control_image": _image(0)})


def _t2i(make: Callable, bench: Callable) -> Controlled:
    """The adapter runs once, before the loop; UNets add what it gave in place."""
    parts = make("unet").components
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts["unet"] = type(parts["unet"]).from_config(
            parts["unet"].config,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        net = diffusers.T2IAdapter(3, [16, 32], 1, downscale_factor=2)
    parts.pop("image_encoder")
    pipe = diffusers.StableDiffusionAdapterPipeline(
        adapter=_stirred(net), **parts, requires_safety_checker=False
    )
    return Controlled(pipe, [net], _texts() | {"image": _image(0)})


def _ip(make: Callable, bench: Callable) -> Controlled:
    """The image's embedding is projected inside of the UNet."""
    pipe = make("unet")
    pipe.unet._load_ip_adapter_weights(_ip_weights(pipe.unet), low_cpu_mem_usage=False)
    call = _texts() | {"ip_adapter_image_embeds": [_normal(4, 1, 32, seed=5)]}
    return Controlled(pipe, [], call)


def _ip_weights(unet: nn.Module) -> dict[str, Any]:
    """An IP-Adapter's weights as its files have them, which number its layers 1, 3, 5 …"""
    width = unet.config.cross_attention_dim
    crossing = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    layers = {}
    for number, name in enumerate(crossing):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        processor = _stirred(IPAdapterAttnProcessor(attention.to_q.out_features, width))
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{part}.weight"] = processor.state_dict()[f"{part}.0.weight"]
    projection = _stirred(ImageProjection(width, width, num_image_text_embeds=4)).state_dict()
    names = {"image_embeds.": "proj.", "norm.": "norm."}
    renamed = {
        key.replace(old, new): value
        for key, value in projection.items()
        for old, new in names.items()
        if key.startswith(old)
    }
    return {"image_proj": renamed, "ip_adapter": layers}


NETS = {
    "stable": lambda make, bench: _stable(make),
    "two": _two,
    "guess": _guess,
    "ending": _ending,
    "xl": _xl,
    "flux": _flux,
    "sd3": _sd3,
}
"""Makers of pipelines with ControlNets, which run in each step: `NETS[name](make, bench)`."""

ADAPTERS = {"t2i": _t2i, "ip": _ip}
"""Makers of pipelines with adapters, which run before the loop or inside of the denoiser."""


def builder(make: Callable, bench: Callable) -> Callable[[str], Controlled]:
    """Builds any of them by name."""

    def build(name: str) -> Controlled:
        controlled = (NETS | ADAPTERS)[name](make, bench)
        controlled.pipe.set_progress_bar_config(disable=True)
        return controlled

    return build
