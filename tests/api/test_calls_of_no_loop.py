"""Calls of a wrapped bare denoiser that no loop makes, and calls that are made twice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import diffcache

# What vmap says of attention.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

STEPS = 16
MASK = [step < 3 or step % 3 == 0 for step in range(STEPS)]
TEXTS = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def run(pipe: Any, between: Callable[[int, Callable], None] = lambda *_: None) -> torch.Tensor:
    """A loop over the pipeline's UNet; `between` is given each step's number and its call."""
    unet, scheduler = pipe.unet, pipe.scheduler
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step, t in enumerate(scheduler.timesteps):

        def call(latents: torch.Tensor = latents, t: torch.Tensor = t) -> torch.Tensor:
            return unet(latents, t, encoder_hidden_states=TEXTS).sample

        between(step, call)
        latents = scheduler.step(call(), t, latents).prev_sample
    return latents


def on_meta(model: torch.nn.Module) -> torch.Size:
    meta = torch.empty(2, 4, 8, 8, device="meta")
    return model(meta, meta[0, 0, 0, 0], encoder_hidden_states=TEXTS.to("meta")).sample.shape


def in_vmap(model: torch.nn.Module) -> torch.Size:
    def one(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return model(sample[None], timestep, encoder_hidden_states=TEXTS[:1]).sample[0]

    return torch.func.vmap(one)(torch.randn(2, 4, 8, 8), torch.tensor([1, 2])).shape


@pytest.mark.parametrize("call", [on_meta, in_vmap])
def test_a_timestep_without_a_value(unet, call):
    model = unet.unet.to("meta") if call is on_meta else unet.unet
    diffcache.wrap(model, scheduler=unet.scheduler)
    with torch.no_grad():
        assert call(model) == (2, 4, 8, 8)


def test_a_timestep_without_a_value_amid_a_loop(unet):
    diffcache.wrap(unet.unet, scheduler=unet.scheduler, mask=MASK)
    wanted = run(unet)
    assert torch.equal(run(unet, lambda step, _: step == 7 and in_vmap(unet.unet)), wanted)
    report = diffcache.report(unet.unet)
    assert report.mask[:, 0].tolist() == MASK and report.notes == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["adaptive", "taylorseer", "deepcache", "fora"])
def test_a_call_that_failed_and_is_made_again(unet, method, error):
    model = unet.unet
    diffcache.wrap(model, method, scheduler=unet.scheduler, force=True)
    wanted = run(unet)
    report = diffcache.report(model)
    at = report.timeline().index("█", 6)
    failed = []

    def fail(step: int, call: Callable) -> None:
        if step == at:

            def stop(*_: Any) -> None:
                failed.append(step)
                raise error("no memory")

            handle = model.mid_block.register_forward_pre_hook(stop)
            with pytest.raises(error):
                call()
            handle.remove()

    assert torch.equal(run(unet, fail), wanted)
    again = diffcache.report(model)
    assert failed == [at] and again.notes == report.notes
    assert torch.equal(again.mask, report.mask) and again.computed == report.computed


def test_a_timetable_without_a_loop_leaves_no_report(unet):
    diffcache.wrap(unet.unet, scheduler=unet.scheduler)
    for _ in range(2):
        unet.scheduler.set_timesteps(STEPS)
    with pytest.raises(ValueError, match="has not generated since it was wrapped; call"):
        diffcache.report(unet.unet)
