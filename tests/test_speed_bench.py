"""The benches of speed: that they can be run, and what is made of their results."""

import json
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch

import diffcache

BENCHES = ["test_kernels", "test_speedup", "test_memory", "test_sync", "test_batches"]


@pytest.mark.parametrize("name", BENCHES)
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


def test_a_bench_that_hangs_or_fails_stops_no_other(of, monkeypatch):
    on_cuda = of("on_cuda")
    monkeypatch.setattr(on_cuda, "GRACE", 0.2)
    python = [sys.executable, "-S", "-c"]
    hanging = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    commands = {
        "fails": ([*python, "raise SystemExit(1)"], 30.0),
        "hangs": ([*python, hanging], 1.0),
        "works": ([*python, "pass"], 30.0),
        "waits": ([*python, "import time; time.sleep(60)"], 30.0),
        "late": ([*python, "pass"], 30.0),
    }
    assert on_cuda.run(commands, 4.0) == {
        "fails": "failed",
        "hangs": "interrupted",
        "works": "done",
        "waits": "interrupted",
        "late": "no time left",
    }


class Broken(Exception):
    pass


def test_whole_rounds_are_kept_and_a_rival_that_fails_is_left_out(of, tmp_path, monkeypatch):
    bench, models, record = of("test_speedup"), of("models"), of("record")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    model = models.build("flux-1-dev", small=True, num_inference_steps=6)
    calls = []

    @contextmanager
    def fails(model):
        raise Broken("no such blocks")
        yield

    @contextmanager
    def breaks_in_the_second_round(model):
        calls.append(model.steps)
        if len(calls) == 3:
            raise KeyboardInterrupt
        yield

    rivals = {"one": ("output", fails), "two": ("output", breaks_in_the_second_round)}
    monkeypatch.setattr(bench, "RIVALS", rivals)
    with pytest.raises(KeyboardInterrupt):
        bench.compare(model, ["output"], (2, 7))
    assert calls == [bench.SHORT, 6, 6]
    rows = [json.loads(line) for line in (tmp_path / "speedup.jsonl").read_text().splitlines()]
    found = {row["library"]: row for row in rows}
    assert found.keys() == {"one", "two", "diffcache"}
    assert found["one"]["refused"] == "Broken: no such blocks"
    assert found["diffcache"]["rounds"] == found["two"]["rounds"] == 1


def test_rounds_fill_the_time_that_there_is(of, tmp_path, monkeypatch):
    bench, models = of("test_speedup"), of("models")
    model = models.build("flux-1-dev", small=True, num_inference_steps=6)
    variants = {("", "plain"): lambda model: nullcontext()}
    for seconds, rounds in ((0.0, 2), (1e9, 3)):
        race = bench.Race(model, variants)
        race.run(2, 3, seconds)
        assert len(race.seconds["", "plain"]) == rounds


@pytest.mark.parametrize("name", ["pixart-sigma", "sd-3.5-medium", "sd-1.5"])
def test_real_sizes_are_raced_and_weighed_as_small_ones_in_bf16(of, name, tmp_path, monkeypatch):
    """But for cache-dit, which patches classes, what a GPU does once, on the CPU."""
    speed, models = of("test_speedup"), of("models")
    monkeypatch.setattr(of("record"), "RESULTS", tmp_path)
    rivals = {n: rival for n, rival in speed.RIVALS.items() if "cache-dit" not in n}
    monkeypatch.setattr(speed, "RIVALS", rivals)
    model = models.build(name, "cpu", torch.bfloat16, small=True, num_inference_steps=4)
    assert model.run().isfinite().all()
    site = "UNet branch" if name == "sd-1.5" else "block stack"
    realised = speed.compare(model, ["output", site], (1, 1))
    assert realised.keys() == {"output", site}
