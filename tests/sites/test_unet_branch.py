"""The UNet branch site: what a skip bypasses, and that nothing of it leaks."""

from typing import Any

import diffusers
import pytest
import torch

import diffcache
from diffcache.methods import Method
from diffcache.policies import Mask
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import UNetBranch, recording
from diffcache.sites.unet_levels import below

ROWS = 2
FRAMES = 3
CROSS = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
TEXT = {"encoder_hidden_states": (ROWS, 5, 8)}
IMAGE, VIDEO = (ROWS, 4, 8, 8), (ROWS, 4, FRAMES, 8, 8)


def three(first: str, rest: str) -> tuple[str, str, str]:
    return (first, rest, rest)


MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], dict[str, Any]]] = {
    "2d": (
        "UNet2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (8, 16, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 4,
            "down_block_types": three("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        },
        IMAGE,
        {},
    ),
    "2d skip": (
        "UNet2DModel",
        {
            "sample_size": 8,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (32, 32),
            "layers_per_block": 1,
            "attention_head_dim": 8,
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        },
        (ROWS, 3, 8, 8),
        {},
    ),
    "condition": (
        "UNet2DConditionModel",
        CROSS
        | {
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        },
        IMAGE,
        TEXT,
    ),
    "3d": (
        "UNet3DConditionModel",
        CROSS
        | {
            "down_block_types": three("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "UpBlock3D", "CrossAttnUpBlock3D"),
        },
        VIDEO,
        TEXT,
    ),
    "motion": (
        "UNetMotionModel",
        {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 2,
            "norm_num_groups": 4,
            "motion_num_attention_heads": 2,
            "num_attention_heads": 2,
            "cross_attention_dim": 8,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        },
        VIDEO,
        {"encoder_hidden_states": (ROWS * FRAMES, 5, 8)},
    ),
    "spatio temporal": (
        "UNetSpatioTemporalConditionModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "block_out_channels": (32, 32),
            "layers_per_block": 2,
            "cross_attention_dim": 8,
            "num_attention_heads": 2,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        },
        (ROWS, FRAMES, 4, 8, 8),
        {"encoder_hidden_states": (ROWS, 1, 8), "added_time_ids": (ROWS, 3)},
    ),
    "i2vgen": (
        "I2VGenXLUNet",
        {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 8,
            "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        VIDEO,
        TEXT
        | {
            "fps": (ROWS,),
            "image_latents": VIDEO,
            "image_embeddings": (ROWS, 8),
        },
    ),
    "kandinsky3": (
        "Kandinsky3UNet",
        {
            "time_embedding_dim": 8,
            "groups": 4,
            "attention_head_dim": 4,
            "layers_per_block": 2,
            "block_out_channels": (8, 16, 16, 16),
            "cross_attention_dim": 8,
            "encoder_hid_dim": 8,
        },
        IMAGE,
        TEXT | {"encoder_attention_mask": (ROWS, 5)},
    ),
}
BRANCHES = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, torch.Tensor, dict[str, Any]]:
    name, options, sample, shapes = MODELS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = getattr(diffusers, name)(**options).eval().requires_grad_(False)
        x = torch.randn(sample)
        inputs = {key: torch.rand(shape) for key, shape in shapes.items()}
        # Fresh temporal layers end in zeros; a leak through them would not show.
        for parameter in unet.parameters():
            if parameter.numel() and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    if "encoder_attention_mask" in inputs:
        inputs["encoder_attention_mask"] = torch.ones(ROWS, 5)
    return unet, x, inputs


@torch.no_grad()
def loop(unet: Any, scheduler: Any, x: torch.Tensor, inputs: dict[str, Any], steps: int = 6) -> Any:
    """Predictions of a hand-written loop whose latents do not depend on them."""
    scheduler.set_timesteps(steps)
    found = []
    for i, t in enumerate(scheduler.timesteps):
        noisy = x * (1 + 0.1 * i)
        prediction = unet(noisy, t, **inputs, return_dict=False)[0]
        scheduler.step(prediction[:, :4], t, noisy[:, :4], return_dict=False)
        found.append(prediction)
    return found


def branch(mask: Any, depth: int = 0, inner: int = 1) -> Method:
    return Method(UNetBranch(depth, inner), Mask(mask), Reuse(), Guards.none())


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    def placeholder(meta: Any) -> torch.Tensor:
        return torch.full(meta[0], float("nan"), dtype=meta[1], device=meta[2])

    monkeypatch.setattr(recording, "placeholder", placeholder)


def levels_of(unet: Any) -> int:
    return len(unet.up_blocks)


def test_a_skip_runs_nothing_below_and_leaks_nothing(model, poison):
    unet, x, inputs = model
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    plain = loop(unet, scheduler, x, inputs)
    attributes = [set(vars(module)) for module in unet.modules()]
    for depth, inner in BRANCHES:
        if depth >= levels_of(unet):
            continue
        ran: list[int] = []
        hooks = [
            leaf.register_forward_hook(lambda *_, ran=ran: ran.append(1))
            for module in below(unet, depth, inner).modules
            for leaf in module.modules()
            if not any(leaf.children())
        ]
        counts = []
        for mask in ([True] * 6, [True, False, False, True, False, True]):
            diffcache.wrap(unet, branch(mask, depth, inner), scheduler=scheduler)
            ran.clear()
            found = loop(unet, scheduler, x, inputs)
            report = diffcache.report(unet)
            assert not any("whole output" in note for note in report.notes), report.notes
            diffcache.unwrap(unet)
            counts.append(len(ran))
            assert all(each.isfinite().all() for each in found), (depth, inner)
            for i, computed in enumerate(mask):
                assert torch.equal(found[i], plain[i]) == computed, (depth, inner, i)
        assert counts[1] * 2 == counts[0] > 0
        for hook in hooks:
            hook.remove()
    assert attributes == [set(vars(module)) for module in unet.modules()]


def test_rows_of_a_batch_are_independent(model, poison):
    unet, x, inputs = model
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    plain = loop(unet, scheduler, x, inputs)
    rows = [(True, True), (True, False), (False, True), (False, False), (True, False), (True, True)]
    masks = [rows, [r[:1] * 2 for r in rows], [r[1:] * 2 for r in rows]]
    for depth, inner in BRANCHES:
        if depth >= levels_of(unet):
            continue
        found = []
        for mask in masks:
            diffcache.wrap(unet, branch(tuple(mask), depth, inner), scheduler=scheduler)
            found.append(loop(unet, scheduler, x, inputs))
            notes = diffcache.report(unet).notes
            diffcache.unwrap(unet)
            assert not any("couples" in note for note in notes)
        for i, mask in enumerate(rows):
            for row in range(ROWS):
                alone = found[1 + row][i][row]
                torch.testing.assert_close(found[0][i][row], alone, rtol=1e-3, atol=1e-4)
                if mask[row]:
                    torch.testing.assert_close(alone, plain[i][row], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("extra", ["controlnet", "t2i", "freeu"])
def test_what_the_parent_adds_is_counted_once(extra, poison):
    """Where inputs repeat, a skip gives what a full pass does."""
    name, options, sample, shapes = MODELS["condition"]
    torch.manual_seed(0)
    unet = getattr(diffusers, name)(**options).eval().requires_grad_(False)
    x, inputs = torch.randn(sample), {key: torch.rand(shape) for key, shape in shapes.items()}
    timestep, scheduler = torch.tensor(7), diffusers.DDIMScheduler(clip_sample=False)
    shape = [(8, 8)] * 3 + [(8, 4)] + [(16, 4)] * 2 + [(16, 2)] + [(16, 2)] * 2
    residuals = [torch.randn(ROWS, width, side, side) for width, side in shape]
    middle = torch.randn(ROWS, 16, 2, 2)
    intra = [torch.randn(ROWS, width, side, side) for width, side in ((8, 8), (16, 4), (16, 2))]
    if extra == "freeu":
        for block in unet.up_blocks:
            for key, value in (("s1", 0.9), ("s2", 0.2), ("b1", 1.2), ("b2", 1.4)):
                setattr(block, key, value)

    @torch.no_grad()
    def call() -> torch.Tensor:
        added: dict[str, Any] = {}
        if extra == "controlnet":
            added["down_block_additional_residuals"] = tuple(r.clone() for r in residuals)
            added["mid_block_additional_residual"] = middle.clone()
        if extra == "t2i":
            added["down_intrablock_additional_residuals"] = [r.clone() for r in intra]
        return unet(x, timestep, **inputs, **added, return_dict=False)[0]

    expected = call()
    for depth, inner in [*BRANCHES, (2, 1)]:
        mask = ((True, True), (False, False), (True, False), (False, False))
        diffcache.wrap(unet, branch(mask, depth, inner), scheduler=scheduler)
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            found = call()
            scheduler.step(found, t, x)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        assert diffcache.report(unet).compute_fraction < 1
        diffcache.unwrap(unet)
