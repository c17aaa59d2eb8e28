"""Errors name what was passed, and leave the pipeline as it was."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

import diffcache
from diffcache import Guards, Method
from diffcache.policies import Drafted, Gated, Interval, Threshold
from diffcache.sites import BlockStack, Output


@pytest.fixture
def untouched(generate: Any) -> Any:
    """Checks that a pipeline is and generates what it did before."""

    def watch(pipe: Any) -> Any:
        before, kind = generate(pipe), type(pipe)

        def check() -> None:
            assert type(pipe) is kind
            assert torch.equal(generate(pipe), before)

        return check

    return watch


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("adaptve",), {}, ValueError, ["'adaptve'", "'fbcache'", "mean 'adaptive'?"]),
        ((7,), {}, TypeError, ["method=7", "'adaptive'"]),
        ((), {"tolerence": 0.1}, ValueError, ["'tolerence'", "force", "mean 'tolerance'?"]),
        (("interval",), {"tolerance": 0.1}, ValueError, ["'interval'", "'tolerance'", "every"]),
        (("interval",), {"every": 0}, ValueError, ["every=0", "every=2"]),
        (("interval",), {"every": "2"}, ValueError, ["every='2'", "every=2"]),
        (("interval",), {"start": -1}, ValueError, ["start=-1"]),
        (("interval",), {"within": 3}, ValueError, ["within=3", "within=(100, 800)"]),
        (("spectrum",), {"window": 0}, ValueError, ["window=0", "window=2.0"]),
        ((), {"max_cache_bytes": "1GB"}, ValueError, ["='1GB'", "max_cache_bytes=1073741824"]),
        ((), {"few_steps": "x"}, ValueError, ["few_steps='x'", "few_steps=8"]),
        ((), {"force": "no"}, ValueError, ["force='no'", "force=True"]),
        ((), {"stochastic": 1}, ValueError, ["stochastic=1", "stochastic=True"]),
        ((), {"tolerance": []}, ValueError, ["tolerance=()", "tolerance=0.08"]),
        ((), {"compute": True}, ValueError, ["compute=True", "compute=0.5"]),
        ((), {"compute_rows": True}, ValueError, ["compute_rows=True", "compute_rows=4"]),
        ((), {"calibration": "x.json"}, ValueError, ["='x.json'", "Calibration.load(path)"]),
        ((), {"protect": 3}, ValueError, ["protect=3", "try protect=(1, 0)"]),
        ((), {"protect": (-1, 0)}, ValueError, ["protect=(-1, 0)"]),
        ((), {"max_consecutive_skips": -2}, ValueError, ["max_consecutive_skips=-2"]),
        ((), {"points": 9}, ValueError, ["points=9"]),
        ((), {"tolerance": "high"}, ValueError, ["tolerance='high'", "tolerance=0.08"]),
        ((), {"tolerance": [0.1, -1]}, ValueError, ["tolerance=-1"]),
        (("fbcache",), {"threshold": None}, ValueError, ["threshold=None", "threshold=0.05"]),
        ((), {"policy": "often"}, ValueError, ["policy='often'", "'interval'"]),
        ((), {"policy": Output()}, TypeError, ["policy=Output(", "Policy"]),
        ((), {"mask": []}, ValueError, ["mask has shape (0,)"]),
        (("mask",), {}, ValueError, ["no mask", "mask=report.mask"]),
        ((), {"policy": "mask"}, ValueError, ["no mask", "mask=report.mask"]),
        ((), {"scheduler": DDIMScheduler()}, ValueError, ["brings its own scheduler"]),
        ((), {"policy": Threshold()}, ValueError, ["Threshold", "ProbeChange", "Output"]),
        (("fbcache",), {"head": -1}, ValueError, ["head=-1"]),
        (("fbcache",), {"head": "1"}, ValueError, ["head='1'", "head=1"]),
        (("fbcache",), {"head": 0}, ValueError, ["ProbeChange", "Use head=1"]),
        ((), {"policy": "smoothcache"}, ValueError, ["LagErrors", "Output", "site=Modules()"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_wrap_refuses(dit, untouched, wrapped, arguments, options, error, words):
    if wrapped:
        diffcache.wrap(dit, "interval", every=4)
    check = untouched(dit)
    with pytest.raises(error) as caught:
        diffcache.wrap(dit, *arguments, **options)
    for word in words:
        assert word in str(caught.value)
    check()


def test_block_stack_on_a_unet(unet, untouched):
    check = untouched(unet)
    with pytest.raises(ValueError, match="UNet2DConditionModel has no stack of transformer blocks"):
        diffcache.wrap(unet, "fbcache")
    check()


@pytest.mark.parametrize(("head", "tail"), [(5, 0), (3, 2), (9, 9)])
def test_head_and_tail_too_large(dit, untouched, head, tail):
    check = untouched(dit)
    with pytest.raises(ValueError, match=rf"head={head}, tail={tail}.*has 5 blocks.*<= 4"):
        diffcache.wrap(dit, "fbcache", head=head, tail=tail)
    check()


@pytest.mark.parametrize("method", ["fbcache", "dbcache", "speca"])
def test_a_single_block_leaves_nothing_to_bypass(dit, method):
    plain, scheduler = dit.transformer, dit.scheduler
    model = type(plain).from_config(plain.config, num_layers=1, num_single_layers=0)
    with pytest.raises(ValueError, match=r"has a single block; .*wrap\(pipe, 'adaptive'\)"):
        diffcache.wrap(model, method, scheduler=scheduler)
    assert diffcache.wrap(model, scheduler=scheduler) is model


@pytest.mark.parametrize(
    "target", [3, "pipe", None, SimpleNamespace(components={}), lambda: None], ids=repr
)
def test_target_that_is_neither(target):
    with pytest.raises(TypeError, match=type(target).__name__):
        diffcache.wrap(target)


def test_pipeline_without_a_denoiser(unet):
    pipe = StableDiffusionPipeline(
        vae=unet.vae,
        text_encoder=None,
        tokenizer=None,
        unet=None,
        scheduler=unet.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline has no denoiser.*'unet'"):
        diffcache.wrap(pipe)
    assert type(pipe) is StableDiffusionPipeline


def test_a_class_is_no_pipeline():
    with pytest.raises(TypeError, match="StableDiffusionPipeline is a class; pass an instance"):
        diffcache.wrap(StableDiffusionPipeline)


@pytest.mark.parametrize(
    "scheduler",
    [None, 3, torch.nn.Linear(1, 1), DDIMScheduler],
    ids=["none", "int", "nn", "class"],
)
def test_bare_denoiser_without_its_scheduler(unet, scheduler):
    with pytest.raises(ValueError, match="UNet2DConditionModel needs the scheduler of its loop"):
        diffcache.wrap(unet.unet, scheduler=scheduler)
    assert "_compiled_call_impl" not in vars(unet.unet)


def test_composition_says_what_fits():
    with pytest.raises(ValueError, match=r"Threshold reads ProbeChange.*Use site=BlockStack\(\)"):
        Method(site=Output(), policy=Threshold())
    assert Method(site=BlockStack(), policy=Threshold()).site.head == 1


@pytest.mark.parametrize(
    ("part", "value"),
    [("site", "output"), ("policy", 0.1), ("predictor", Threshold()), ("guards", (3, 1))],
)
def test_part_of_the_wrong_kind(part, value):
    with pytest.raises(TypeError, match=rf"Method\({part}="):
        Method(**{part: value})


def test_report_before_there_is_one(pipe):
    with pytest.raises(ValueError, match=f"{type(pipe).__name__} is not wrapped"):
        diffcache.report(pipe)
    diffcache.wrap(pipe)
    with pytest.raises(ValueError, match="has not generated since it was wrapped"):
        diffcache.report(pipe)


def test_request_refuses_what_no_method_knows(pipe):
    diffcache.wrap(pipe)
    with (
        pytest.raises(ValueError, match=r"no method has an option 'tolerence'.*mean 'tolerance'\?"),
        diffcache.request(tolerence=0.1),
    ):
        pass


def test_a_site_for_drafts_is_one_that_verifies_them():
    with pytest.raises(ValueError, match=r"reads DraftError.*Use site=BlockStack\(tail=1\)"):
        Method(site=BlockStack(), policy=Drafted())
    assert Method(site=BlockStack(tail=1), policy=Drafted()).site.tail == 1


def test_request_knows_options_of_a_method_of_ones_own(pipe, generate):
    diffcache.wrap(pipe, diffcache.Method(policy=Gated(6, Interval(2), Interval(3))))
    with diffcache.request(gate=9) as run:
        generate(pipe)
    assert run.report.timeline() == "███·█·█·██·█"


def test_request_refuses_what_the_wrapped_method_does_not_know(pipe, generate):
    plain = generate(pipe)
    diffcache.wrap(pipe, "interval", every=3)
    with (
        diffcache.request(tolerance=0.1),
        pytest.raises(ValueError, match="'interval' has no option 'tolerance'"),
    ):
        generate(pipe)
    diffcache.unwrap(pipe)
    assert torch.equal(generate(pipe), plain)


def test_request_without_a_generation():
    with diffcache.request(tolerance=0.1) as request, pytest.raises(RuntimeError, match="request"):
        _ = request.report


def test_autoencoder_is_no_denoiser():
    with pytest.raises(ValueError, match="scheduler"):
        diffcache.wrap(AutoencoderKL())


def test_guards_are_checked():
    assert Guards(protect=[2, 1]).protect == (2, 1)
    for protect in ("ab", (True, 0), (1.0, 0)):
        with pytest.raises(ValueError, match=re.escape(f"protect={protect!r}")):
            Guards(protect=protect)


def test_guards_take_integers_of_numpy():
    one = np.int64(1)
    guards = Guards((one, 0), max_consecutive_skips=one, few_steps=one, max_cache_bytes=one)
    assert guards == Guards((1, 0), 1, 1, max_cache_bytes=1)
    counts = (*guards.protect, guards.max_consecutive_skips, guards.few_steps)
    assert {type(count) for count in (*counts, guards.max_cache_bytes)} == {int}


def test_names_are_taken_for_those_they_are_spelt_like_and_no_others(unet):
    for wrong, said in {
        "predictr": "did you mean 'predictor'",
        "calibraton": "did you mean 'calibration'",
        "order": "tolerance$",
    }.items():
        with pytest.raises(ValueError, match=f"has no option '{wrong}'.*{said}"):
            diffcache.wrap(unet, **{wrong: "spectrum"})
    with pytest.raises(ValueError, match=r"predictor='spectrm' names no method.*mean 'spectrum'"):
        diffcache.wrap(unet, predictor="spectrm")
    for wrong, said in {"policy": "diffcache.wrap$", "keep_prefx": "mean 'keep_prefix'"}.items():
        with pytest.raises(ValueError, match=said), diffcache.request(**{wrong: True}):
            pass
