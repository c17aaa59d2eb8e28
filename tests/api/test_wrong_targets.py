"""What is no pipeline, no list of calls and no file of ours is named in the error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diffcache
from diffcache import tiny

PROMPTS = ["one red circle"]


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (lambda pipe: diffcache.compare(pipe, PROMPTS), "diffcache.compare(pipe, prompts)"),
        (lambda pipe: diffcache.tune(pipe, PROMPTS, psnr=40), "diffcache.tune(pipe, prompts, "),
        (
            lambda pipe: diffcache.calibrate(pipe, PROMPTS, "magcache"),
            "diffcache.calibrate(pipe, prompts, 'magcache')",
        ),
        (diffcache.report, "diffcache.report(pipe)"),
        (diffcache.unwrap, "diffcache.unwrap(pipe)"),
        (lambda pipe: diffcache.wrapped(pipe).__enter__(), "diffcache.wrapped(pipe)"),
        (lambda pipe: diffcache.warmup(pipe, [{}]), "diffcache.warmup(diffcache.wrap(pipe), "),
    ],
)
@pytest.mark.parametrize("target", [None, "pipe", []], ids=repr)
def test_what_is_no_pipeline(call: Callable, advice: str, target: Any) -> None:
    with pytest.raises(TypeError) as caught:
        call(target)
    said = f"{type(target).__name__} is neither a diffusers pipeline nor a module; call {advice}"
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: diffcache.tune(model, PROMPTS, psnr=40),
        lambda model: diffcache.calibrate(model, PROMPTS, "magcache"),
    ],
)
def test_a_bare_denoiser_is_no_pipeline(dit: Any, call: Callable) -> None:
    with pytest.raises(TypeError, match=r"is a bare denoiser; call .* the pipeline it belongs to"):
        call(dit.transformer)


@pytest.mark.parametrize(("shapes", "named"), [(["a cat"], "a cat"), ("a cat", "a cat"), (3, 3)])
def test_shapes_are_dicts_of_arguments(dit: Any, shapes: Any, named: Any) -> None:
    diffcache.wrap(dit)
    with pytest.raises(ValueError, match=rf"^{named!r} among shapes .*warmup\(pipe, \[{{"):
        diffcache.warmup(dit, shapes)


def changed(saved: Any, path: Path, place: list[str], value: Any) -> Path:
    """The file of `saved` with another value at `place`."""
    saved.save(path)
    whole = part = json.loads(path.read_text(encoding="utf-8"))
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def measured() -> diffcache.Calibration:
    pipe = tiny.pipeline("dit")
    pipe.set_progress_bar_config(disable=True)
    return diffcache.calibrate(pipe, PROMPTS, "magcache", num_inference_steps=4)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["base"], None),
        (["base"], []),
        (["adapters"], None),
        (["statistics"], []),
        (["statistics", "changes"], []),
        (["statistics", "ratios"], None),
        (["statistics", "ratios"], {"0": "abc"}),
        (["statistics", "errors"], {"0": ["abc"]}),
    ],
)
def test_a_damaged_calibration_is_refused(
    measured: Any, tmp_path: Path, place: list[str], value: Any
) -> None:
    path = changed(measured, tmp_path / "calibration.json", place, value)
    with pytest.raises(ValueError, match="holds no calibration; write one with"):
        diffcache.Calibration.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("options", "tolerance"),
        ("options", [1]),
        ("options", {"tolerance": "a"}),
        ("options", {"tolerance": True}),
        ("asked", {}),
        ("asked", {"dB": 40}),
        ("asked", {"psnr": "40"}),
        ("searched", 1),
        ("searched", None),
        ("confirmed", {"psnr": 40.0}),
        ("tried", None),
        ("setting", 5),
    ],
)
def test_a_damaged_setting_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    found = diffcache.tuning.Achieved(1, 0.5, 2.0, 40.0, 40.0, 40.0, 40.0, 1.0)
    tuned = diffcache.Tuned({"tolerance": 0.1}, {"psnr": 40}, found, None, [], {})
    path = changed(tuned, tmp_path / "tuned.json", [name], value)
    with pytest.raises(ValueError, match="holds no tuned setting; write one with"):
        diffcache.Tuned.load(path)
