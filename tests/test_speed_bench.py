"""The benches of speed: that they can be run, and what is made of their results."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import diffcache

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(scope="module")
def of() -> Iterator[Callable[[str], ModuleType]]:
    """A module of the folder `bench` by name, where it finds its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module


@pytest.mark.parametrize("name", ["test_kernels", "test_speedup", "test_memory", "test_sync"])
def test_the_benches_can_be_imported(of, name):
    assert [test for test in vars(of(name)) if test.startswith("test_")]


def test_the_reference_of_each_kernel_is_what_it_computes(of):
    kernels = of("test_kernels")
    for kernel in kernels.KERNELS.values():
        tensors = [torch.randn(2, 3, 40).bfloat16() for _ in range(kernel.reads)]
        assert kernels._equal_enough(kernel, tensors)
        tensors[0][1, 2, 3] += 100
        assert kernels._equal_enough(kernel, tensors)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("flux-1-dev", "output"),
        ("flux-1-dev", "block stack"),
        ("wan-2.1-1.3b", "block stack"),
        ("sd-1.5", "UNet branch"),
        ("sdxl", "UNet branch"),
    ],
)
def test_the_ideal_skips_what_the_library_skips(of, name, site):
    bench, models = of("test_speedup"), of("models")
    model = models.build(name, small=True, num_inference_steps=6)
    module = bench.bypassed(model.denoiser, site)[0]
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    worker = next(part for part in module.modules() if isinstance(part, kinds))
    calls = []
    worker.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = model.run()
    full, calls[:] = len(calls), []
    with bench.ideal(model, site):
        model.run()
    ideal, calls[:] = len(calls), []
    with bench.put_on(model, site):
        model.run()
        report = diffcache.report(model.pipe)
    assert ideal == len(calls) == full // 2
    assert report.compute_fraction == 0.5
    assert torch.equal(model.run(), plain)


def test_published_sizes_are_as_published(of):
    models = of("models")
    sizes = {
        name: sum(p.numel() for p in models.denoiser(name, "meta", torch.bfloat16).parameters())
        for name in ("sd-1.5", "sdxl", "pixart-sigma", "sd-3.5-medium", "wan-2.1-1.3b")
    }
    assert sizes["sd-1.5"] == 859_520_964
    assert sizes["sdxl"] == 2_567_463_684
    assert 0.60e9 < sizes["pixart-sigma"] < 0.62e9
    assert 2.2e9 < sizes["sd-3.5-medium"] < 2.6e9
    assert 1.4e9 < sizes["wan-2.1-1.3b"] < 1.45e9


HERE = {
    "cpu": "x",
    "gpu": None,
    "threads": 1,
    "torch": "2",
    "diffusers": "0",
    "date": "2026-11-21",
}


def _quantiles(*names):
    return {f"{name}_p{q}": 1.25 for name in names for q in (20, 50, 80)}


def _lines(path, rows):
    path.write_text("\n".join(json.dumps(row | HERE) for row in rows))


def test_the_report_says_what_is_unmeasured(of, tmp_path):
    report, document = of("speed_report"), tmp_path / "speed.md"
    report.write(tmp_path, document)
    text = document.read_text()
    assert text.count("| **unmeasured** |") == 4
    latest = {"model": "m", "site": "output", "library": "diffcache", "parameters": 1e8}
    latest |= {"dtype": "float32", **_quantiles("plain_s", "ideal_s", "seconds", "speedup")}
    refused = {"model": "m", "site": "output", "library": "peer", "refused": "TypeError: no"}
    runs = [latest | _quantiles("realised"), latest | {f"realised_p{q}": 0.5 for q in (20, 50, 80)}]
    _lines(tmp_path / "speedup.jsonl", [*runs, refused])
    kept = {"model": "m", "method": "adaptive", "how": "cuda", "cache_mib": 3.0, "peak_mib": 4.0}
    idle = {"model": "m", "method": "fastercache", "how": "meta", "cache_mib": 0.0}
    peer = {"model": "m", "method": "peer", "how": "cuda", "peak_mib": 5.0}
    _lines(tmp_path / "memory.jsonl", [kept, idle, peer])
    found = {"cell": "c", "tolerance": 0.1, "lagged": True, "compute": 0.4, "host_reads": 0}
    _lines(tmp_path / "lagged.jsonl", [found | {"psnr": 50.0, "psnr_p5": 40.0}])
    kernel = {"kernel": "combine", "latents": "flux", "device": "cpu", "clock": "wall"}
    _lines(tmp_path / "kernels.jsonl", [kernel | _quantiles("ours_us", "eager_us")])
    report.write(tmp_path, document)
    text = document.read_text()
    assert text.count("| **unmeasured** |") == 3
    assert "| m (100 M, float32) | output | diffcache | 1.250 | 1.250 |" in text
    assert "| 0.500 / 0.500 / 0.500 |" in text
    assert "- peer on m: TypeError: no" in text
    assert "| m | adaptive | cuda | 3.0 | 4.0 |" in text
    assert "| m | fastercache | meta | nothing |  |" in text
    assert "| m | peer | cuda |  | 5.0 |" in text
    assert "| c | 0.1 | lagged | 0.400 | 50.0 / 40.0 | 0 |" in text
    assert "| combine | flux | cpu | wall | 1.2 / 1.2 / 1.2 |" in text
