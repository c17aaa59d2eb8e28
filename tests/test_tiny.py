"""The tiny pipelines: loading, what they draw, and the reader that judges it."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionPipeline,
)

from diffcache import tiny
from diffcache.tiny import _models, _pipelines

ROOT = Path(__file__).parents[1]
BENCH = ROOT / "bench" / "tiny"
KINDS = ("unet", "dit")


def _guided(kind: str, scale: float) -> dict[str, float]:
    return {"guidance_scale" if kind == "unet" else "true_cfg_scale": scale}


@pytest.fixture(scope="module")
def scenes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_scenes", BENCH / "scenes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def held_out() -> list[tuple[str, int]]:
    entries = json.loads((BENCH / "prompts.json").read_text())["prompts"]
    return [(entry["prompt"], entry["seed"]) for entry in entries]


def test_captions_parse_back(scenes):
    rng = np.random.default_rng(1)
    for _ in range(500):
        spec = scenes.sample(rng)
        assert scenes.parse(scenes.caption(spec)) == spec
    with pytest.raises(ValueError, match="two grey cats"):
        scenes.parse("one red circle and two grey cats")


def test_reader_agrees_with_rendered_scenes(scenes):
    rng = np.random.default_rng(2)
    agreed = 0
    for _ in range(400):
        spec = scenes.sample(rng)
        agreed += scenes.matches(scenes.render(spec, rng), scenes.caption(spec))
    assert agreed >= 396


def test_reader_notices_every_kind_of_difference(scenes):
    image = scenes.render(scenes.parse("two red circles and one blue square"), _rng())
    assert scenes.read(image) == Counter(
        {("plain", "red", "circle"): 2, ("plain", "blue", "square"): 1}
    )
    assert scenes.matches(image / 255, "one blue square and two red circles")
    for other in (
        "one red circle and one blue square",
        "two green circles and one blue square",
        "two red squares and one blue square",
        "two red circles",
    ):
        assert not scenes.matches(image, other)
    striped = "two striped red circles and one blue square"
    assert not scenes.matches(image, striped)
    assert scenes.matches(image, striped, textures=False)


def test_reader_rejects_other_sizes(scenes):
    with pytest.raises(ValueError, match=r"\(32, 32, 3\)"):
        scenes.read(np.zeros((32, 32, 3), np.uint8))


def test_reader_reads_broken_pictures_too(scenes):
    image = np.full((64, 64, 3), 128, np.uint8)
    image[10:54, 30:37] = 0
    image[10:54, 30:37, 0] = 255
    image[12:54:6, 30:37, 0] = 130
    assert sum(scenes.read(image).values()) == 1


def test_held_out_prompts_are_as_generated(scenes, held_out):
    assert held_out == scenes.held_out(96)
    assert len({text for text, _ in held_out}) == 96


@pytest.mark.parametrize(
    ("kind", "base"), [("unet", StableDiffusionPipeline), ("dit", FluxPipeline)]
)
def test_pipelines_are_diffusers_own(kind, base):
    pipe = tiny.pipeline(kind)
    assert isinstance(pipe, base)
    assert isinstance(pipe.vae, AutoencoderKL)
    assert {module.dtype for module in (pipe.vae, pipe.text_encoder)} == {torch.float32}
    made = pipe(tiny.prompts[0], num_inference_steps=2, output_type="np").images
    assert made.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_dtype_and_scheduler_are_taken(kind):
    scheduler = EulerDiscreteScheduler()
    pipe = tiny.pipeline(kind, dtype=torch.bfloat16, scheduler=scheduler)
    assert pipe.dtype == torch.bfloat16
    assert pipe.scheduler is scheduler


@pytest.mark.parametrize("kind", ["sdxl", None])
def test_bad_kind_is_named_with_what_works(kind):
    with pytest.raises(ValueError, match=rf'"unet" or "dit", got {kind!r}'):
        tiny.pipeline(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_pipeline_loads_and_draws_the_same(kind, tmp_path):
    ours = tiny.pipeline(kind)
    ours.save_pretrained(tmp_path)
    base = StableDiffusionPipeline if kind == "unet" else FluxPipeline
    theirs = base.from_pretrained(tmp_path, local_files_only=True)
    drawn = [
        _draw(pipe, height=64, width=64, **({} if kind == "unet" else {"max_sequence_length": 24}))
        for pipe in (ours, theirs)
    ]
    # Loaded weights lie elsewhere in memory, which can change how their products are summed.
    np.testing.assert_allclose(*drawn, atol=1e-4)


def test_package_weights_stay_small():
    folder = Path(tiny.__file__).parent / "weights"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16e6


@pytest.mark.slow
# The stored weights matched 21 and 17 of these when they were trained: see bench/results.
@pytest.mark.parametrize(("kind", "scale", "least"), [("unet", 2.5, 18), ("dit", 2.5, 13)])
def test_pictures_match_held_out_captions(kind, scale, least, scenes, held_out):
    pipe = tiny.pipeline(kind)
    texts, seeds = zip(*held_out[:24], strict=True)
    images = pipe(
        list(texts),
        negative_prompt=[""] * len(texts),
        num_inference_steps=25,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
        **_guided(kind, scale),
    ).images
    matched = sum(scenes.matches(image, text) for image, text in zip(images, texts, strict=True))
    assert matched >= least


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _draw(pipe: DiffusionPipeline, **options: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe(
        tiny.prompts[1],
        num_inference_steps=3,
        generator=generator,
        output_type="np",
        **options,
    ).images


class ClipBefore5(torch.nn.Module):
    """CLIP's text model as transformers 4 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.text_model = _models.clip()


def test_weights_load_with_either_layout_of_clip():
    old = _pipelines._loaded("unet_clip", ClipBefore5, torch.float32).text_model
    new = tiny.pipeline("unet").text_encoder
    for name, weight in new.state_dict().items():
        assert torch.equal(old.get_parameter(name), weight)
