"""Pipelines of many tasks with tiny random components, and the arguments each is called with."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

SAMPLES = 2


@dataclass
class Family:
    """A pipeline and how to call it.

    Attributes:
        denoisers: those that the pipeline calls, in order of their first call.
    """

    pipe: Any
    call: dict[str, Any]

    @property
    def denoisers(self) -> list[nn.Module]:
        names = ("unet", "transformer", "transformer_2")
        found = [getattr(self.pipe, name, None) for name in names]
        return [module for module in found if module is not None]

    @property
    def is_unet(self) -> bool:
        return hasattr(self.pipe, "unet")

    def generate(self, **options: Any) -> Tensor:
        """The latents of a generation of about ten steps, the same at each call."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(SAMPLES)]
        settings = {"num_inference_steps": 10, "generator": generators, "output_type": "latent"}
        return self.pipe(**settings | self.call | options)[0]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(seed))


def _texts(length: int, width: int) -> dict[str, Any]:
    return {
        "prompt_embeds": _normal(length, width, seed=1),
        "negative_prompt_embeds": _normal(length, width, seed=2),
    }


def _pooled(width: int) -> dict[str, Any]:
    return {
        "pooled_prompt_embeds": _normal(width, seed=3),
        "negative_pooled_prompt_embeds": _normal(width, seed=4),
    }


def _picture(size: int = 16) -> Tensor:
    return _normal(3, size, size, seed=5).clamp(-1, 1) / 2 + 0.5


def _hole(size: int = 16) -> Tensor:
    mask = torch.zeros(SAMPLES, 1, size, size)
    mask[..., : size // 2] = 1.0
    return mask


SIZE = {"height": 16, "width": 16}
TEXTS = _texts(7, 32)
MOST = {"image": _picture(), "strength": 0.8, "num_inference_steps": 12}
FLUX = TEXTS | _pooled(32) | {"true_cfg_scale": 2.0}


def _variant(kind: str, name: str, /, more: dict[str, Any] = {}, **call: Any) -> Callable:  # noqa: B006
    """Another pipeline class around the components of the Stable Diffusion or Flux one."""

    def build(make: Callable, model: Callable) -> Family:
        plain = make(kind)
        options = {"requires_safety_checker": False} if kind == "unet" else {}
        pipe = getattr(diffusers, name)(**plain.components, **options, **more)
        return Family(pipe, (TEXTS if kind == "unet" else FLUX) | call)

    return build


def _freeu(make: Callable, model: Callable) -> Family:
    pipe = make("unet")
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return Family(pipe, TEXTS | SIZE)


def _inpaint_model(make: Callable, model: Callable) -> Family:
    """Inpainting with a UNet that sees the mask and the masked picture, nine channels in all."""
    parts = make("unet").components
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts["unet"] = type(parts["unet"]).from_config(parts["unet"].config, in_channels=9)
    pipe = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    return Family(pipe, TEXTS | SIZE | {"image": _picture(), "mask_image": _hole()})


def _sd3(make: Callable, model: Callable) -> Family:
    texts = [f"{part}{end}" for part in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")]
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=model("SD3Transformer2DModel"),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=make("dit").vae,
        **dict.fromkeys(texts),
    )
    return Family(pipe, TEXTS | _pooled(64) | SIZE)


def _skip_layers(make: Callable, model: Callable) -> Family:
    guided = {"skip_guidance_layers": [2], "skip_layer_guidance_stop": 0.5}
    family = _sd3(make, model)
    return Family(family.pipe, family.call | guided)


def _kontext(make: Callable, model: Callable) -> Family:
    """Editing: the tokens of a reference picture follow those of the sample."""
    reference = {"image": _picture(), "max_area": 256, "_auto_resize": False}
    return _variant("dit", "FluxKontextPipeline", **SIZE, **reference)(make, model)


def _qwen_edit(make: Callable, model: Callable) -> Family:
    pipe = diffusers.QwenImageEditPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        text_encoder=None,
        tokenizer=None,
        processor=None,
        transformer=model("QwenImageTransformer2DModel"),
    )
    masks = {
        f"{end}prompt_embeds_mask": torch.ones(SAMPLES, 7, dtype=torch.long)
        for end in ("", "negative_")
    }
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    picture = {"image": Image.fromarray(pixels), "true_cfg_scale": 2.0}
    return Family(pipe, _texts(7, 16) | masks | picture | SIZE)


def _wan(make: Callable, model: Callable, **options: Any) -> Family:
    pipe = diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        transformer=model("WanTransformer3DModel"),
        **options,
    )
    return Family(pipe, _texts(12, 16) | {"height": 32, "width": 32, "num_frames": 5})


def _wan_two(make: Callable, model: Callable) -> Family:
    """One transformer for the noisy half of the steps, and another one for the rest."""
    second = model("WanTransformer3DModel")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.1)
    return _wan(make, model, transformer_2=second, boundary_ratio=0.55)


def _wan_image(make: Callable, model: Callable) -> Family:
    """A video that begins with a picture, whose latents are channels beside the sample's."""
    pipe = diffusers.WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        transformer=model("WanTransformer3DModel", in_channels=36, out_channels=16),
    )
    call = {"height": 32, "width": 32, "num_frames": 5, "image": _picture(32)[:1]}
    return Family(pipe, _texts(12, 16) | call)


def _animate(make: Callable, model: Callable) -> Family:
    plain = make("unet")
    pipe = diffusers.AnimateDiffPipeline(
        vae=plain.vae,
        text_encoder=None,
        tokenizer=None,
        unet=model("UNetMotionModel"),
        motion_adapter=None,
        scheduler=plain.scheduler,
    )
    return Family(pipe, _texts(7, 16) | SIZE | {"num_frames": 3})


def _svd(make: Callable, model: Callable) -> Family:
    # transformers takes seconds to import what only this pipeline needs.
    transformers = importlib.import_module("transformers")
    encoder = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=56,
        projection_dim=32,
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
        ),
        image_encoder=transformers.CLIPVisionModelWithProjection(encoder).eval(),
        unet=model("UNetSpatioTemporalConditionModel", in_channels=8),
        scheduler=diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction", use_karras_sigmas=True, timestep_type="continuous"
        ),
        feature_extractor=transformers.CLIPImageProcessor(),
    )
    pixels = np.random.default_rng(0).integers(0, 255, (SAMPLES, 16, 16, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in pixels]
    return Family(pipe, {"image": pictures, "num_frames": 2} | SIZE)


def _audio(make: Callable, model: Callable) -> Family:
    pipe = diffusers.StableAudioPipeline(
        vae=diffusers.AutoencoderOobleck(
            encoder_hidden_size=6,
            downsampling_ratios=[1, 2],
            decoder_channels=3,
            decoder_input_channels=3,
            audio_channels=2,
            channel_multiples=[2, 4],
            sampling_rate=4,
        ),
        text_encoder=None,
        projection_model=diffusers.pipelines.stable_audio.StableAudioProjectionModel(4, 4, 0, 32),
        tokenizer=None,
        transformer=model("StableAudioDiTModel", cross_attention_input_dim=4),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0
        ),
    )
    masks = {f"{end}attention_mask": torch.ones(SAMPLES, 7) for end in ("", "negative_")}
    return Family(pipe, _texts(7, 4) | masks)


FAMILIES: dict[str, Callable[[Callable, Callable], Family]] = {
    "freeu": _freeu,
    "pag": _variant("unet", "StableDiffusionPAGPipeline", **SIZE),
    "img2img": _variant("unet", "StableDiffusionImg2ImgPipeline", **MOST),
    "inpaint": _variant(
        "unet", "StableDiffusionInpaintPipeline", image=_picture(), mask_image=_hole(), **SIZE
    ),
    "inpaint of nine channels": _inpaint_model,
    "animatediff": _animate,
    "svd": _svd,
    "sd3": _sd3,
    "skip-layer guidance": _skip_layers,
    "flux img2img": _variant("dit", "FluxImg2ImgPipeline", **MOST, **SIZE),
    "flux kontext": _kontext,
    "qwen edit": _qwen_edit,
    "wan": _wan,
    "wan of two transformers": _wan_two,
    "wan of a timestep a token": partial(_wan, expand_timesteps=True),
    "wan image-to-video": _wan_image,
    "stable audio": _audio,
}


@pytest.fixture
def family(
    make: Callable, bench: Callable, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Family]:
    """Builds a pipeline by its name among FAMILIES: `family("sd3")`."""
    edit = importlib.import_module("diffusers.pipelines.qwenimage.pipeline_qwenimage_edit")
    # The pipeline scales every reference picture to a megapixel.
    monkeypatch.setattr(edit, "calculate_dimensions", lambda area, ratio: (16, 16, None))

    def build(name: str) -> Family:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = FAMILIES[name](make, bench("denoisers").build)
        found.pipe.set_progress_bar_config(disable=True)
        return found

    return build
