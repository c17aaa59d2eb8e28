"""Samplers that step a part of what a denoiser gives, or lay it out otherwise, are corrected."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import diffcache

MASK = [step < 2 or step % 3 == 0 for step in range(24)]


class Pointwise(nn.Module):
    """Predicts each frame of a video by itself, `[rows, channels, frames, height, width]`."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.into = nn.Parameter(0.4 * torch.randn(8, 8, generator=generator))
        self.out = nn.Parameter(0.4 * torch.randn(8, 8, generator=generator))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        time = timestep.reshape(-1, 1, 1, 1, 1)
        hidden = torch.einsum("oc,bcfhw->bofhw", self.into, hidden_states)
        turned = torch.einsum("oc,bcfhw->bofhw", self.out, torch.tanh(hidden + time / 1000))
        return (hidden_states / 2 + turned * (1 + torch.sin(time / 300)),)


class Packed(Pointwise):
    """The same for tokens `[rows, frames × height × width, channels]`."""

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        (found,) = super().forward(unpacked(hidden_states), timestep)
        return (packed(found),)


def packed(latents: Tensor) -> Tensor:
    return latents.flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (4, 4, 4))


def loop(model: nn.Module, scheduler: FlowMatchEulerDiscreteScheduler, frames: slice) -> Tensor:
    """Steps these frames alone, as image-to-video pipelines leave out those of the image."""
    sample = torch.randn(2, 8, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(len(MASK))
    for t in scheduler.timesteps:
        if isinstance(model, Packed):
            prediction = unpacked(model(packed(sample), t.expand(2))[0])
        else:
            (prediction,) = model(sample, t.expand(2))
        sample = sample.clone()
        own = sample[:, :, frames]
        sample[:, :, frames] = scheduler.step(prediction[:, :, frames], t, own)[0]
    return sample[:, :, frames]


@pytest.mark.parametrize("kind", [Pointwise, Packed])
@pytest.mark.parametrize("frames", [slice(4), slice(3), slice(1, 4)], ids=["all", "first", "last"])
@torch.no_grad()
def test_predictions_that_are_a_part_of_the_output_are_corrected(kind, frames):
    model, scheduler = kind(), FlowMatchEulerDiscreteScheduler(shift=2.0)
    plain = loop(model, scheduler, frames)
    errors = []
    for corrects in (True, False):
        diffcache.wrap(model, "adaptive", corrects=corrects, mask=MASK, scheduler=scheduler)
        errors.append(float((loop(model, scheduler, frames) - plain).norm()))
        report = diffcache.report(model)
        assert (report.mask[:, 0].tolist(), report.notes) == (MASK, [])
        diffcache.unwrap(model)
    corrected, uncorrected = errors
    assert 0 < corrected < 0.9 * uncorrected
