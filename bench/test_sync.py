"""That the host does not wait for the device, with CUDA told to raise where it would.

From the second step on: the first one of a pipeline settles what it is, its kernels are compiled,
and one mixed step is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable

import models
import pytest
import torch

import diffcache
from diffcache.runtime.generation import Generation

pytestmark = pytest.mark.gpu

STATIC = [
    ("flux-1-dev", "mask"),
    ("sd-1.5", "mask"),
    ("sd-1.5", "deepcache"),
    ("flux-1-dev", "fora"),
]
LAGGED = [("flux-1-dev", "adaptive"), ("sd-1.5", "adaptive"), ("flux-1-dev", "fbcache")]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes CUDA raise where the host would wait inside of the named methods of generations."""

    def watch(*names: str) -> None:
        for name in names:
            plain = getattr(Generation, name)

            def strict(self, *args, plain=plain, **kwargs):
                if self.run is None or self.run.index < 2:
                    return plain(self, *args, **kwargs)
                torch.cuda.set_sync_debug_mode("error")
                try:
                    return plain(self, *args, **kwargs)
                finally:
                    torch.cuda.set_sync_debug_mode("default")

            monkeypatch.setattr(Generation, name, strict)

    return watch


@pytest.mark.parametrize(("name", "method"), STATIC)
def test_static_masks_wait_for_nothing(raising, name, method):
    model = models.build(name, "cuda", torch.bfloat16, small=True, num_inference_steps=14)
    options = {"mask": models.half(14)} if method == "mask" else {}
    diffcache.wrap(model.pipe, method, **options)
    model.run()
    raising("call", "scheduler_stepped")
    model.run()
    report = diffcache.report(model.pipe)
    assert (report.host_reads, report.compute_fraction < 1) == (0, True)


@pytest.mark.parametrize(("name", "method"), LAGGED)
def test_lagged_evidence_waits_for_nothing(raising, name, method):
    model = models.build(name, "cuda", torch.bfloat16, small=True, num_inference_steps=20)
    diffcache.wrap(model.pipe, method, lagged=True)
    model.run()
    raising("call", "scheduler_stepped")
    model.run()
    assert diffcache.report(model.pipe).host_reads == 0


@pytest.mark.parametrize("name", ["flux-1-dev", "sd-1.5"])
def test_evidence_of_the_output_site_is_read_outside_of_calls(raising, name):
    model = models.build(name, "cuda", torch.bfloat16, small=True, num_inference_steps=20)
    diffcache.wrap(model.pipe)
    model.run()
    raising("call")
    model.run()
    assert 0 < diffcache.report(model.pipe).host_reads <= 20


def test_a_mixed_batch_waits_for_nothing(raising):
    mask = torch.ones(14, 4, dtype=torch.bool)
    mask[4:12:2, :2] = mask[5:12:2, 2:] = False
    model = models.build(
        "flux-1-dev",
        "cuda",
        torch.bfloat16,
        small=True,
        num_inference_steps=14,
        num_images_per_prompt=4,
    )
    diffcache.wrap(model.pipe, mask=mask)
    model.run()
    raising("call", "scheduler_stepped")
    model.run()
    assert diffcache.report(model.pipe).host_reads == 0
