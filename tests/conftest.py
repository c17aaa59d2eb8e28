"""Pipelines with random weights, small enough to run a whole generation in a moment."""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this when it is imported, and diffusers imports triton.
    os.environ["TRITON_INTERPRET"] = "1"

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

WIDTH = 32

# One thread sums in one order, so that equal work gives equal bits.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Spares every later collection of garbage what was imported, and the tests themselves."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes diffcache raise its own errors instead of surviving them."""
    monkeypatch.setenv("DIFFCACHE_STRICT", "1")


@pytest.fixture(params=["private", "forward"])
def gate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of standing in front of a module's call."""
    if request.param == "forward":
        monkeypatch.setenv("DIFFCACHE_GATE", "forward")
    return request.param


def _vae(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        **options,
    )


def _unet(seed: int = 0) -> StableDiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        pipe = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=None,
            tokenizer=None,
            unet=unet,
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                set_alpha_to_one=False,
                steps_offset=1,
                clip_sample=False,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _dit(seed: int = 0) -> FluxPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=[4, 4, 8],
        )
        # A fresh Flux modulates by next to nothing; a trained one answers to its timestep.
        for name, parameter in transformer.named_parameters():
            if "norm" in name and name.endswith("weight") and parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=_vae(shift_factor=0.1, scaling_factor=0.5),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def bench() -> Callable[[str], ModuleType]:
    """A module of the folder `bench`, which is not installed: `bench("denoisers")`."""

    @cache
    def load(name: str) -> ModuleType:
        path = Path(__file__).parent.parent / "bench" / f"{name}.py"
        spec = spec_from_file_location(f"bench_{name}", path)
        module = sys.modules[spec.name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def of() -> Iterator[Callable[[str], ModuleType]]:
    """A module of the folder `bench` by name, where it finds its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
        yield importlib.import_module


@pytest.fixture(scope="session")
def denoiser_of() -> Callable[[Any], torch.nn.Module]:
    """The UNet or transformer of a pipeline."""
    return lambda pipe: pipe.unet if hasattr(pipe, "unet") else pipe.transformer


@pytest.fixture(scope="session")
def make() -> Callable[..., Any]:
    """Builds a pipeline: `make("unet")` is Stable Diffusion's, `make("dit")` Flux's."""
    builders = {"unet": _unet, "dit": _dit}
    return lambda kind, seed=0: builders[kind](seed)


@pytest.fixture
def unet(make: Callable[..., Any]) -> StableDiffusionPipeline:
    return make("unet")


@pytest.fixture
def dit(make: Callable[..., Any]) -> FluxPipeline:
    return make("dit")


@pytest.fixture(params=["unet", "dit"])
def pipe(request: pytest.FixtureRequest, make: Callable[..., Any]) -> Any:
    return make(request.param)


def _normal(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """One row of noise a seed, whatever the others are."""
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def _prompts(pipe: Any, seeds: Sequence[int], cfg: bool) -> dict[str, Any]:
    texts, negatives = _normal((7, WIDTH), seeds), _normal((7, WIDTH), [99] * len(seeds))
    if hasattr(pipe, "unet"):
        return {
            "prompt_embeds": texts,
            "negative_prompt_embeds": negatives,
            "guidance_scale": 5.0 if cfg else 1.0,
        }
    prompts = {"prompt_embeds": texts, "pooled_prompt_embeds": _normal((WIDTH,), seeds)}
    if cfg:
        prompts |= {
            "negative_prompt_embeds": negatives,
            "negative_pooled_prompt_embeds": _normal((WIDTH,), [99] * len(seeds)),
            "true_cfg_scale": 2.0,
        }
    return prompts


@pytest.fixture(scope="session")
def generate() -> Callable[..., Tensor]:
    """Runs a pipeline: `generate(pipe, samples=2, steps=12, cfg=True)` gives its latents.

    `samples` is a count, or the seeds of the samples: a seed's sample is the same in any batch.
    """

    def run(
        pipe: Any,
        samples: int | Sequence[int] = 2,
        steps: int = 12,
        *,
        cfg: bool = True,
        size: int = 16,
        **options: Any,
    ) -> Tensor:
        seeds = list(range(samples)) if isinstance(samples, int) else list(samples)
        settings = {
            **_prompts(pipe, seeds, cfg),
            "num_inference_steps": steps,
            "height": size,
            "width": size,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "output_type": "latent",
            **options,
        }
        return pipe(**settings).images

    return run
