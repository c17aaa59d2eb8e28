"""DeepCache against the released package, which runs in a process of its own as it patches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

import diffcache
from diffcache.policies import PowerLaw

STEPS = 12
CASES = [(2, 0), (3, 0), (5, 0), (3, 1), (3, 2), (3, 3)]
SCHEDULES = [
    (50, 5, 15, 1.4),
    (50, 10, 15, 1.4),
    (50, 20, 10, 1.4),
    (28, 3, 8, 1.2),
    (50, 3, 15, 1.4),
]


def build() -> StableDiffusionPipeline:
    """Two layers a level, as the package takes for granted."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    pipe = StableDiffusionPipeline(
        vae, None, None, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe: StableDiffusionPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    texts = torch.randn(2, 2, 6, 16, generator=generator)
    return pipe(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        num_inference_steps=STEPS,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        height=8,
        width=8,
        output_type="pt",
    ).images


def peer(path: str) -> None:
    """Writes the package's images and schedules, or what it raised."""
    import ast

    import DeepCache
    import numpy as np
    from DeepCache.extension.deepcache import DeepCacheSDHelper

    pipe = build()
    found = {}
    for every, branch in CASES:
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=every, cache_branch_id=branch)
        helper.enable()
        found[every, branch] = images(pipe)
        helper.disable()
    # The module with the schedule needs an old diffusers, the function itself numpy alone.
    source = Path(DeepCache.__path__[0], "sd/pipeline_stable_diffusion.py").read_text()
    function = next(
        node
        for node in ast.parse(source).body
        if getattr(node, "name", "") == "sample_from_quad_center"
    )
    scope = {"np": np}
    exec(ast.unparse(function), scope)
    schedules = []
    for total, every, center, power in SCHEDULES:
        try:
            steps, _ = scope["sample_from_quad_center"](total, -(-total // every), center, power)
            schedules.append(sorted(map(int, steps)))
        except ValueError:
            schedules.append(None)
    torch.save({"images": found, "schedules": json.dumps(schedules)}, path)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    path = tmp_path_factory.mktemp("deepcache") / "peer.pt"
    done = subprocess.run(
        [sys.executable, __file__, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(path)


@pytest.mark.parametrize(("every", "branch"), CASES)
def test_same_images_as_the_package(released, every, branch):
    pipe = build()
    plain = images(pipe)
    diffcache.wrap(pipe, "deepcache", every=every, depth=branch // 3, inner=branch % 3 + 1)
    found = images(pipe)
    assert diffcache.report(pipe).mask[:, 0].tolist() == [i % every == 0 for i in range(STEPS)]
    torch.testing.assert_close(found, released["images"][every, branch], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-4)


def test_same_schedule_as_the_script(released):
    schedules = json.loads(released["schedules"])
    assert sum(steps is not None for steps in schedules) >= 3
    for (total, every, center, power), steps in zip(SCHEDULES, schedules, strict=True):
        if steps is None:
            steps = list(range(0, total, every))
        assert sorted(PowerLaw(every, center, power).steps(total)) == steps


if __name__ == "__main__":
    peer(sys.argv[1])
