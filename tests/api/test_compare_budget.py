"""Comparisons within minutes: noise floor, equal time, recommendation, what is left out."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler

import diffcache
from diffcache import measuring, metrics, tiny
from diffcache.comparison import Comparison
from diffcache.methods import find
from diffcache.metrics import psnr
from diffcache.trial import Trial

STEPS = 16


@pytest.fixture(scope="module")
def trained() -> Any:
    pipe = tiny.pipeline("unet")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare(pipe: Any, count: int = 2, **options: Any) -> Comparison:
    captions = [tiny.prompts[i % len(tiny.prompts)] for i in range(count)]
    return diffcache.compare(pipe, captions, num_inference_steps=STEPS, **options)


def p5(row: Any) -> float:
    return float(np.percentile(row.psnr, 5))


def test_minutes_recommend_a_tolerance(trained, tmp_path):
    found = compare(trained, minutes=10, psnr=45)
    tolerance = found.recommended["tolerance"]
    row = found[found.recommended["label"]]
    again = compare(trained, methods={"again": ("adaptive", {"tolerance": tolerance})})["again"]
    np.testing.assert_array_equal(row.pictures, again.pictures)
    assert p5(row) >= 45
    assert found.recommended["psnr_p5"] == pytest.approx(p5(row))
    assert found.recommended["compute"] == row.compute < 1
    ladder = {"adaptive": find("adaptive").options()["tolerance"]} | {
        each.label: float(each.label.partition("=")[2])
        for each in found.methods
        if "tolerance=" in each.label
    }
    assert len(ladder) > 1
    passing = [value for label, value in ladder.items() if p5(found[label]) >= 45]
    assert tolerance == max(passing)
    assert f"recommended: tolerance={tolerance:g}" in str(found)
    saved = json.loads(found.save(tmp_path)[1].read_text(encoding="utf-8"))
    assert saved["recommended"] == found.recommended
    assert saved["floor"] == found.floor == found.rows[1].label == "plain, one by one"


def test_an_open_request_has_no_say_in_what_is_compared(trained):
    options = {"methods": [("adaptive", {"tolerance": 0.02})], "beside": ()}
    wanted = compare(trained, **options).methods[0]
    with diffcache.request(tolerance=0.5) as run:
        found = compare(trained, **options).methods[0]
    assert found.compute == wanted.compute and not run.reports
    np.testing.assert_array_equal(found.pictures, wanted.pictures)


def test_no_tolerance_may_be_good_enough(trained, monkeypatch):
    # More than any picture can have, which is refused otherwise.
    monkeypatch.setattr(metrics, "check_asked", lambda psnr, example: None)
    found = compare(trained, minutes=10, psnr=61, beside=())
    assert found.recommended is None
    assert [row.label for row in found.rows][:2] == ["plain", "adaptive"]
    assert len(found.rows) == measuring.RUNGS
    assert any("no tolerance that was tried keeps" in note for note in found.notes)


def test_the_floor_is_a_run_one_by_one(trained):
    found = compare(trained, 3, methods=["interval"], batch_size=2, beside=("noise",))
    alone = compare(trained, 3, methods=["interval"], batch_size=1, beside=())
    assert [row.label for row in found.rows] == ["plain", "plain, one by one", "interval"]
    floor = found[found.floor]
    np.testing.assert_array_equal(floor.pictures, alone.plain.pictures)
    np.testing.assert_array_equal(floor.psnr, psnr(found.plain.pictures, floor.pictures))
    assert floor.compute == 1 and "noise floor: " in str(found)
    assert found.recommended is None


def test_the_floor_of_batches_of_one_is_another_precision(trained):
    found = compare(trained, 1, methods=["interval"], beside=("noise",))
    floor = found[found.floor]
    assert floor.label == "plain, bf16 autocast"
    assert 20 < floor.psnr[0] < 60
    assert floor.pictures.dtype == found.plain.pictures.dtype and not torch.is_autocast_enabled()


def test_half_precision_one_by_one_has_no_floor(unet):
    unet.to(torch.bfloat16)
    texts = torch.zeros(1, 7, 32, dtype=torch.bfloat16)
    entry = {"prompt_embeds": texts, "negative_prompt_embeds": texts}
    call = {"num_inference_steps": 12, "height": 16, "width": 16}
    found = diffcache.compare(unet, [entry], ["interval"], beside=("noise",), **call)
    assert found.floor is None
    assert any("no noise floor in batches of one; try batch_size=2" in n for n in found.notes)


@pytest.fixture
def timed(monkeypatch):
    """Lets `interval` take some seconds, and everybody else 1/8 s a step and nothing else."""
    plainly = Trial.run

    def take(seconds: float) -> None:
        def run(self: Trial, label: str, **options: Any) -> Any:
            count = options.get("num_inference_steps", STEPS)
            taken = seconds if label == "interval" else count / 8
            return plainly(self, label, **options)._replace(seconds=taken)

        monkeypatch.setattr(Trial, "run", run)

    return take


@pytest.mark.parametrize(
    ("seconds", "steps"), [(1.0, 8), (1.5, 12), (2.0, None), (2.6, None), (0.1, 1)]
)
def test_as_many_steps_as_take_the_time(trained, timed, seconds, steps):
    timed(seconds)
    found = compare(trained, 1, methods=["interval"], beside=("steps", "time"))
    row = found["interval"]
    assert row.as_fast == (None if steps is None else f"{steps} steps")
    assert row.fewer is not None
    if steps is not None:
        assert found[row.as_fast].steps == pytest.approx(steps)
        assert "at equal row-steps" in str(found)
    # A twentieth of the time is more than was left out.
    assert found.timed == (seconds > 0.1) == (not any("take no time" in n for n in found.notes))
    assert ("at equal time" in str(found)) == (found.timed and steps is not None)


def test_a_floor_may_be_faster(trained, monkeypatch):
    plainly = Trial.run

    def run(self: Trial, label: str, **options: Any) -> Any:
        seconds = 0.1 if label.startswith("plain, ") else 1.0
        return plainly(self, label, **options)._replace(seconds=seconds)

    monkeypatch.setattr(Trial, "run", run)
    found = compare(trained, 1, methods=["interval"], beside=("noise",))
    assert found[found.floor].seconds == 0.1 and found.timed


def test_steps_that_take_the_time_are_those_to_ask_for(trained, timed, monkeypatch):
    """Of two evaluations a step the scheduler makes nearly twice as many."""
    heun = HeunDiscreteScheduler.from_config(trained.scheduler.config)
    monkeypatch.setattr(trained, "scheduler", heun)
    timed(1.0)
    found = compare(trained, 1, methods=["interval"], beside=("steps", "time"))
    assert found["interval"].as_fast == "8 steps"


def test_what_does_not_fit_is_left_out(trained):
    found = compare(trained, 4, batch_size=2, methods=["adaptive", "interval"], minutes=0.001)
    assert [row.label for row in found.rows] == ["plain", "adaptive"]
    assert len(found.prompts) == len(found.seeds) == len(found.plain.pictures) == 2
    assert "2 of 4 prompts fitted the time" in found.notes
    (left,) = [note for note in found.notes if note.startswith("left out")]
    for label in ("plain, one by one", "interval", "steps", "adaptive tolerance="):
        assert label in left


def test_bad_budgets_are_refused(trained):
    for minutes in (0, True):
        with pytest.raises(ValueError, match=f"minutes={minutes} leaves no time; try minutes=10"):
            compare(trained, minutes=minutes)
    for wanted in ("35", 0, 60):
        with pytest.raises(ValueError, match=r"psnr=.* is not between 0 and 60 dB; try psnr=35"):
            compare(trained, minutes=10, psnr=wanted)
    for others in ({}, {"minutes": 10, "methods": [("adaptive", {"tolerance": 0.1})]}):
        with pytest.raises(ValueError, match=r"psnr=40 is for .*; call .*minutes=10, psnr=40\)"):
            compare(trained, psnr=40, **others)
    with pytest.raises(ValueError, match=r"beside='noise' is not of .*try beside="):
        compare(trained, beside="noise")
    with pytest.raises(ValueError, match=r"beside=\('nois',\) is not of"):
        compare(trained, beside=("nois",))


def test_a_setting_of_ones_own_is_a_rung_and_parts_are_named(trained):
    methods = ["adaptive", ("adaptive", {"tolerance": 0.16}), "deepcache", "fastercache"]
    found = compare(trained, minutes=10, psnr=20, beside=(), methods=methods)
    labels = [row.label for row in found.rows]
    assert len(set(labels)) == len(labels)
    assert found.recommended["tolerance"] > 0.08
    left_out = [note for note in found.notes if "row-steps leave out" in note]
    assert [note.split(":")[0] for note in left_out] == ["deepcache"]
