"""What a step costs that computes half of a batch of 8, beside a plain forward of that half."""

import time

import numpy as np
import pytest
import record
import timing
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

import diffcache
from diffcache.sites import BlockStack, Output

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
BATCH, STEPS, TEXT = 8, 14, 32
# A GPU must have more to do than to wait for the next launch.
TOKENS, HEADS = (2048, 64) if DEVICE == "cuda" else (256, 8)
# A head is computed for all rows; in a model of six blocks it would count for more than it is.
SITES = {"output": Output(), "block stack": BlockStack(head=0)}


def build() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=HEADS,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        axes_dims_rope=(8, 12, 12),
    )
    return model.eval().to(DEVICE, DTYPE)


def inputs() -> dict[str, torch.Tensor]:
    """A call's arguments, all rows of it."""
    rows = {
        "hidden_states": torch.randn(BATCH, TOKENS, 64),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 64),
        "pooled_projections": torch.randn(BATCH, 64),
        "timestep": torch.full((BATCH,), 0.5),
    }
    ids = {"img_ids": torch.randn(TOKENS, 3), "txt_ids": torch.zeros(TEXT, 3)}
    return {name: tensor.to(DEVICE, DTYPE) for name, tensor in {**rows, **ids}.items()}


def seconds(call) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def rounds(site) -> list[tuple[float, float]]:
    """Seconds of mixed calls and, right after each, of plain forwards of what they compute."""
    model, plain = build(), build()
    scheduler = FlowMatchEulerDiscreteScheduler()
    half = [row % 2 == 0 for row in range(BATCH)]
    mask = [[True] * BATCH] * 2 + [half] * (STEPS - 2)
    diffcache.wrap(model, diffcache.Method(site=site), scheduler=scheduler, mask=mask)
    whole = inputs()
    few = {name: x[::2] if len(x) == BATCH else x for name, x in whole.items()}
    found = []
    for _ in range(2):
        sample = whole["hidden_states"]
        scheduler.set_timesteps(STEPS, device=DEVICE)
        for step, t in enumerate(scheduler.timesteps):
            arguments = {
                **whole,
                "hidden_states": sample,
                "timestep": t.expand(BATCH).to(DTYPE) / 1000,
            }
            outputs = []
            mixed = seconds(lambda a=arguments, o=outputs: o.append(model(**a).sample))
            gathered = seconds(lambda: plain(**few))
            # The first mixed call is also computed in full, to make sure that rows are apart.
            if step > 2:
                found.append((mixed, gathered))
            sample = scheduler.step(outputs[0], t, sample).prev_sample
    diffcache.unwrap(model)
    return found


@pytest.fixture(scope="module")
def speeds():
    """Per site, the speed of mixed calls over that of plain forwards, a quantile each."""
    rows = []
    for name, site in SITES.items():
        found = rounds(site)
        ratios = [plain / mixed for mixed, plain in found]
        rows.append(
            {
                "site": name,
                "batch": BATCH,
                "computed": BATCH // 2,
                "mixed_ms": round(1e3 * float(np.median([mixed for mixed, _ in found])), 3),
                "gathered_ms": round(1e3 * float(np.median([plain for _, plain in found])), 3),
                **timing.quantiles("speed", ratios),
            }
        )
    record.append("batches", rows)
    print()
    for row in rows:
        print(f"{row['site']:12} {row['speed_p50']:.3f} of the gathered batch's speed")
    return {row["site"]: row for row in rows}


@pytest.mark.parametrize("site", SITES)
def test_half_a_batch_runs_at_0_9_of_its_own_speed(speeds, site):
    assert speeds[site]["speed_p50"] >= 0.9
