"""A denoiser of two streams, as LTX2 has for video and sound, of whose schedulers one is seen."""

import copy

import pytest
import torch

import diffcache
from diffcache.predictors import Kriging

MASK = [[step in (0, 1, 2, 5, 8, 11, 15)] for step in range(16)]


class TwoStreams(torch.nn.Module):
    """Gives a prediction for each of two samples that do not see each other."""

    def __init__(self, denoiser: torch.nn.Module) -> None:
        super().__init__()
        self.first, self.second = denoiser, copy.deepcopy(denoiser)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        other_sample: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        streams = (self.first, sample), (self.second, other_sample)
        return tuple(net(x, timestep, encoder_hidden_states).sample for net, x in streams)


@pytest.mark.parametrize("size", [8, 16], ids=["same shape", "another shape"])
def test_corrections_of_the_observed_stream_leave_the_other_alone(unet, size):
    model, scheduler = TwoStreams(unet.unet), unet.scheduler

    def second(corrects: bool) -> tuple[torch.Tensor, torch.Tensor]:
        predictor = Kriging(corrects=corrects, damps=False)
        diffcache.wrap(model, mask=MASK, predictor=predictor, scheduler=scheduler)
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, 8, 8, generator=draw)
        y = torch.randn(1, 4, size, size, generator=draw)
        texts = torch.randn(1, 7, 32, generator=draw)
        scheduler.set_timesteps(len(MASK))
        for time in scheduler.timesteps:
            with torch.no_grad():
                noise, other = model(x, time, y, texts)
            x = scheduler.step(noise, time, x).prev_sample
            y = y - 0.1 * other
        assert diffcache.report(model).mask.tolist() == MASK
        return x, y

    corrected, plain = second(True), second(False)
    assert not torch.equal(corrected[0], plain[0])
    assert torch.equal(corrected[1], plain[1])
