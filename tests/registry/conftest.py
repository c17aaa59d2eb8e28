"""A pipeline of every family, small enough to run all methods on it."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderOobleck,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiTPipeline,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from torch import Tensor

import diffcache
from diffcache import tiny
from diffcache.methods import find

SAMPLES = 2
STEPS = 12
SMALL, LARGE = {"height": 64, "width": 64}, {"height": 64, "width": 96}

Build = Callable[..., torch.nn.Module]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(seed))


def _both(**prompts: Tensor) -> dict[str, Tensor]:
    """The prompts, and negative ones of the same shapes; masks are of ones."""
    negative = {
        f"negative_{name}": value.flip(0) * 0.5 if value.is_floating_point() else value
        for name, value in prompts.items()
    }
    return prompts | negative


def _ones(length: int) -> Tensor:
    return torch.ones(SAMPLES, length, dtype=torch.long)


def _without(*names: str) -> dict[str, None]:
    return dict.fromkeys(["vae", "text_encoder", "tokenizer", *names])


@dataclass
class Subject:
    """A pipeline and what to call it with.

    Attributes:
        name: its name in the table.
        pipe: the pipeline.
        prompts: arguments of every call.
        sizes: arguments of a small and of a large generation; where it is trained, of one as it
            was trained.
    """

    name: str
    pipe: Any
    prompts: dict[str, Any]
    sizes: tuple[dict[str, Any], ...] = (SMALL, LARGE)
    _plain: list[Tensor] = field(default_factory=list)
    _calibrations: dict[tuple, diffcache.Calibration] = field(default_factory=dict)

    def settings(self, size: int = 0, steps: int = STEPS) -> dict[str, Any]:
        """The arguments of a call, with new generators."""
        settings = {
            "num_inference_steps": steps,
            "output_type": "latent",
            **self.prompts,
            **self.sizes[size],
        }
        samples = len(settings.get("prompt", settings.get("prompt_embeds")))
        generators = [torch.Generator().manual_seed(seed) for seed in range(samples)]
        return {**settings, "generator": generators}

    def generate(self, size: int = 0, steps: int = STEPS) -> Tensor:
        """The latents of a generation."""
        return self.pipe(**self.settings(size, steps), return_dict=False)[0]

    @property
    def plain(self) -> Tensor:
        """The small generation of the plain pipeline."""
        if not self._plain:
            self._plain.append(self.generate())
        return self._plain[0]

    def wrap(
        self, name: str, generation: Mapping[str, int] = MappingProxyType({}), **options: Any
    ) -> None:
        """Wraps the pipeline; a method that wants it is calibrated on that kind of `generation`.

        Raises:
            ValueError: the method does not apply.
        """
        key = (name, *generation.items())
        if find(name).policy.measured is not None and key not in self._calibrations:
            settings = self.settings(**generation)
            self._calibrations[key] = diffcache.calibrate(self.pipe, [settings], name)
        diffcache.wrap(self.pipe, name, calibration=self._calibrations.get(key), **options)


def _tiny(kind: str, guidance: str) -> Subject:
    prompts = {"prompt": list(tiny.prompts[:SAMPLES]), "negative_prompt": [""] * SAMPLES}
    sizes = ({"height": 32, "width": 32}, {"height": 32, "width": 48}, {})
    return Subject(kind, tiny.pipeline(kind), {**prompts, guidance: 2.5}, sizes)


def _sd3(build: Build) -> Subject:
    pipe = StableDiffusion3Pipeline(
        transformer=build("SD3Transformer2DModel"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **_without("text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
    )
    return Subject(
        "sd3", pipe, _both(prompt_embeds=_normal(7, 32), pooled_prompt_embeds=_normal(64))
    )


def _pixart(build: Build) -> Subject:
    pipe = PixArtSigmaPipeline(
        transformer=build("PixArtTransformer2DModel"),
        scheduler=DPMSolverMultistepScheduler(),
        **_without(),
    )
    prompts = _both(prompt_embeds=_normal(8, 8), prompt_attention_mask=_ones(8))
    return Subject(
        "pixart-sigma", pipe, prompts | {"use_resolution_binning": False, "negative_prompt": None}
    )


def _sdxl(build: Build) -> Subject:
    unet = build(
        "UNet2DConditionModel",
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    pipe = StableDiffusionXLPipeline(
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
        **_without("text_encoder_2", "tokenizer_2"),
    )
    return Subject(
        "sdxl", pipe, _both(prompt_embeds=_normal(7, 16), pooled_prompt_embeds=_normal(16))
    )


def _wan(build: Build) -> Subject:
    pipe = WanPipeline(
        transformer=build("WanTransformer3DModel"),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        **_without(),
    )
    return Subject("wan", pipe, _both(prompt_embeds=_normal(12, 16)) | {"num_frames": 5})


def _cogvideox(build: Build) -> Subject:
    pipe = CogVideoXPipeline(
        transformer=build("CogVideoXTransformer3DModel"),
        scheduler=CogVideoXDDIMScheduler(),
        **_without(),
    )
    return Subject("cogvideox", pipe, _both(prompt_embeds=_normal(8, 8)) | {"num_frames": 8})


def _animatediff(build: Build) -> Subject:
    pipe = AnimateDiffPipeline(
        unet=build("UNetMotionModel"),
        scheduler=DDIMScheduler(clip_sample=False),
        **_without("motion_adapter"),
    )
    return Subject("animatediff", pipe, _both(prompt_embeds=_normal(4, 16)) | {"num_frames": 2})


def _hunyuandit(build: Build) -> Subject:
    pipe = HunyuanDiTPipeline(
        transformer=build("HunyuanDiT2DModel"),
        scheduler=DDIMScheduler(clip_sample=False),
        requires_safety_checker=False,
        **_without("text_encoder_2", "tokenizer_2", "safety_checker", "feature_extractor"),
    )
    prompts = _both(
        prompt_embeds=_normal(4, 8),
        prompt_embeds_2=_normal(4, 8, seed=1),
        prompt_attention_mask=_ones(4),
        prompt_attention_mask_2=_ones(4),
    )
    return Subject("hunyuandit", pipe, prompts | {"use_resolution_binning": False})


def _stable_audio(build: Build) -> Subject:
    vae = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    pipe = StableAudioPipeline(
        transformer=build("StableAudioDiTModel", sample_size=32, global_states_input_dim=16),
        scheduler=EDMDPMSolverMultistepScheduler(),
        projection_model=StableAudioProjectionModel(8, 8, 0, 32),
        **_without() | {"vae": vae},
    )
    # Its latents have one length, whatever is cut off at the end: batches differ.
    prompts = _both(prompt_embeds=_normal(7, 8))
    sizes = (prompts, {name: value[:1] for name, value in prompts.items()})
    return Subject("stable-audio", pipe, {"audio_end_in_s": 4.0}, sizes)


def _qwenimage(build: Build) -> Subject:
    pipe = QwenImagePipeline(
        transformer=build("QwenImageTransformer2DModel"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **_without(),
    )
    return Subject(
        "qwen-image", pipe, _both(prompt_embeds=_normal(8, 16), prompt_embeds_mask=_ones(8))
    )


MAKERS = {
    "unet": lambda _: _tiny("unet", "guidance_scale"),
    "dit": lambda _: _tiny("dit", "true_cfg_scale"),
    "sd3": _sd3,
    "pixart-sigma": _pixart,
    "sdxl": _sdxl,
    "wan": _wan,
    "cogvideox": _cogvideox,
    "animatediff": _animatediff,
    "hunyuandit": _hunyuandit,
    "stable-audio": _stable_audio,
    "qwen-image": _qwenimage,
}


@pytest.fixture(scope="session")
def subjects(bench: Callable[[str], Any]) -> Callable[[str], Subject]:
    """A pipeline by its name, made once."""
    made: dict[str, Subject] = {}

    def get(name: str) -> Subject:
        if name not in made:
            # What models warn of when they are made is theirs.
            with warnings.catch_warnings(action="ignore"):
                made[name] = MAKERS[name](bench("denoisers").build)
            made[name].pipe.set_progress_bar_config(disable=True)
        return made[name]

    return get


# Of the session, so that pytest runs all methods on one pipeline before it turns to the next.
@pytest.fixture(scope="session", params=MAKERS)
def _named(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    return subjects(request.param)


@pytest.fixture
def subject(_named: Subject) -> Iterator[Subject]:
    """One of the pipelines, plain before and after."""
    yield _named
    diffcache.unwrap(_named.pipe)
