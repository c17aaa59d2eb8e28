"""Settings found by a search, on the trained pipelines."""

import json
from dataclasses import replace

import numpy as np
import pytest

import diffcache
from diffcache import metrics, tiny, tuning

PROMPTS = [
    "one red circle",
    "two blue squares",
    "one green triangle and one red square",
    "three yellow circles",
]
CALL = {"num_inference_steps": 16, "guidance_scale": 3.0, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def trained():
    pipe = tiny.pipeline("unet")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_psnr_is_met_by_the_largest_tolerance_tried(trained, tmp_path):
    found = diffcache.tune(trained, PROMPTS, psnr=38, seeds=range(4), batch_size=2, **CALL)
    assert found.searched.psnr_assured >= 38 and found.searched.met == 1.0
    assert (found.searched.pictures, found.confirmed.pictures) == (3, 1)
    assert len(found.tried) <= tuning.RUNS
    good = [entry["tolerance"] for entry in found.tried if entry["psnr_assured"] >= 38]
    assert found.options == {"tolerance": max(good)}
    assert found.searched.compute < 0.9
    found.save(tmp_path / "tuned.json")
    assert diffcache.Tuned.load(tmp_path / "tuned.json") == found
    diffcache.wrap(trained, **diffcache.Tuned.load(tmp_path / "tuned.json").options)
    diffcache.unwrap(trained)


@pytest.mark.parametrize("count", [6, 12, 24])
@pytest.mark.parametrize(("mean", "deviation"), [(42.0, 3.5), (35.0, 5.0)])
def test_what_is_assured_holds_as_often_as_is_promised(count, mean, deviation):
    draws = np.random.default_rng(0).normal(mean, deviation, (2000, count))
    reached = mean - 1.2816 * deviation
    bounds = np.array([tuning.assured(draw) for draw in draws])
    assert (bounds <= reached).mean() >= 0.9
    # And is not bought with a bound far below.
    assert reached - bounds.mean() < 2.7 * deviation / np.sqrt(count) + 2


@pytest.mark.parametrize("prompts", [6, 12])
def test_it_holds_as_often_for_pictures_of_one_prompt(prompts):
    dice, shape = np.random.default_rng(0), (2000, prompts, 24 // prompts)
    alike = dice.normal(0, 0.3**0.5, (*shape[:2], 1))
    draws = (42 + 5 * (alike + dice.normal(0, 0.7**0.5, shape))).reshape(2000, 24)

    def holds(*counted):
        bounds = np.array([tuning.assured(draw, *counted) for draw in draws])
        return (bounds <= 42 - 1.2816 * 5).mean()

    assert holds(prompts) >= 0.95
    # Which it would not, were they counted one by one.
    assert holds() < holds(prompts) - 0.03


def test_pictures_far_above_do_not_make_it_careful_and_those_below_do():
    even = 44 + np.linspace(-6, 6, 25)
    above, below = even + 2 * (even - 44).clip(min=0), even + 2 * (even - 44).clip(max=0)
    assert tuning.assured(above) == tuning.assured(even) > tuning.assured(below) + 4


def test_a_picture_that_turns_out_another_one_is_one_picture():
    draws = np.random.default_rng(1).normal(42.0, 4.0, 16)
    with_one = tuning.assured(np.append(draws, 30.0))
    assert tuning.assured(np.append(draws, 5.0)) == pytest.approx(with_one, abs=0.5)


def test_no_more_is_assured_than_nine_in_ten_of_the_pictures_reach():
    assert tuning.assured(np.array([22.0, 50.0, 51.0, 52.0, 53.0, 54.0])) == 22.0


def test_more_pictures_of_one_spread_assure_more():
    few = np.array([40.0, 44.0, 36.0])
    assert tuning.assured(few[:1]) < tuning.assured(few) < tuning.assured(np.tile(few, 8)) < 40
    assert tuning.assured(np.full(4, metrics.CAP)) == metrics.CAP


def test_without_seeds_prompts_are_repeated_and_unseen_ones_confirm(trained, monkeypatch):
    monkeypatch.setattr(tuning, "PICTURES", 11)
    monkeypatch.setattr(tuning, "RUNS", 1)
    benches, alike, init = [], [], tuning._Bench.__init__
    monkeypatch.setattr(tuning, "assured", lambda _, prompts: alike.append(prompts) or 60.0)

    def noted(self, trial, *asked):
        entries = [entry["prompt"] for entry in trial.entries]
        benches.append(list(zip(entries, trial.seeds, strict=True)))
        init(self, trial, *asked)

    monkeypatch.setattr(tuning._Bench, "__init__", noted)
    found = diffcache.tune(trained, PROMPTS, psnr=20, batch_size=8, **CALL)
    assert (found.searched.pictures, found.confirmed.pictures) == (8, 3)
    searched, confirmed = benches
    assert sorted(searched + confirmed) == sorted((PROMPTS[i % 4], i) for i in range(11))
    assert alike == [3, 1]
    assert {prompt for prompt, _ in confirmed} == {PROMPTS[1]}
    assert PROMPTS[1] not in {prompt for prompt, _ in searched}


def test_unseen_pictures_reach_a_psnr_tuned_on_others(trained):
    call = {**CALL, "batch_size": 8}
    found = diffcache.tune(trained, PROMPTS, psnr=35, **call)
    unseen = {"seeds": range(100, 116), "beside": (), **call}
    table = diffcache.compare(trained, PROMPTS * 4, [("adaptive", found.options)], **unseen)
    reached = table.rows[-1].psnr >= 35
    assert reached.shape == (16,) and reached.mean() >= 0.9
    assert found.searched.compute < 0.8


def test_a_psnr_out_of_reach_is_an_error_that_says_what_is_assured(trained, monkeypatch):
    monkeypatch.setattr(tuning, "RUNS", 1)
    with pytest.raises(
        ValueError, match=r"psnr=59 was not reached: \d+\.\d dB with tolerance=0.08"
    ):
        diffcache.tune(trained, PROMPTS[:2], psnr=59, seeds=(0, 1), batch_size=1, **CALL)


def test_speed_is_met_by_the_largest_share_tried(trained, monkeypatch):
    measure = tuning._Bench.measure

    def timed(self, options):
        """As if a run took its share of the plain time, and a tenth of that besides."""
        found = measure(self, options)
        fast = replace(found, speedup=1 / (found.compute + 0.1))
        self.tried[-1]["speedup"] = fast.speedup
        self.measured[tuple(options.items())] = fast
        return fast

    monkeypatch.setattr(tuning._Bench, "measure", timed)
    found = diffcache.tune(trained, PROMPTS, speedup=1.6, batch_size=2, **CALL)
    assert found.searched.speedup >= 1.6
    assert 0.4 <= found.options["compute"] <= 0.55


def test_progress_bars_say_how_far_the_search_is(trained, monkeypatch, capsys):
    monkeypatch.setattr(trained, "_progress_bar_config", {})
    monkeypatch.setattr(tuning, "RUNS", 2)
    given = tuning.Achieved(1, 0.5, 2.0, 45.0, 45.0, 45.0, 45.0, 1.0)
    monkeypatch.setattr(tuning._Bench, "_achieved", lambda *_: given)
    short = CALL | {"num_inference_steps": 10}
    diffcache.tune(trained, PROMPTS[:1], speedup=2, **short)
    diffcache.tune(trained, PROMPTS[:2], psnr=40, seeds=(0, 1), **short)
    shown = capsys.readouterr().err
    for bar in ("setting 1 of at most 1, compute=0.5", "setting 2 of at most 2, tolerance=0.194"):
        assert f"{bar}, batch 1 of 1: 100%" in shown
    assert "confirming, tolerance=0.194, batch 1 of 1: 100%" in shown


def test_what_was_on_the_pipeline_comes_back(trained):
    diffcache.wrap(trained, "interval", every=3)
    diffcache.tune(trained, PROMPTS[:2], psnr=20, seeds=(0, 1), batch_size=1, **CALL)
    trained("one red circle", **CALL)
    assert diffcache.report(trained).method == "interval"
    diffcache.unwrap(trained)


def test_an_open_request_has_no_say_in_what_is_tuned(trained):
    asked = {"psnr": 20, "seeds": [0], "batch_size": 1, **CALL}
    wanted = diffcache.tune(trained, PROMPTS[:1], **asked)
    with diffcache.request(tolerance=None) as run:
        assert diffcache.tune(trained, PROMPTS[:1], **asked).options == wanted.options
    assert not run.reports


def test_one_prompt_leaves_none_to_confirm(trained):
    found = diffcache.tune(trained, PROMPTS[:1], psnr=20, seeds=[0], batch_size=1, **CALL)
    assert found.confirmed is None and found.searched.pictures == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "pass one of them"),
        ({"psnr": 40, "speedup": 2}, "pass one of them"),
        ({"psnr": 90}, "try psnr=40"),
        ({"speedup": 1.0}, "try speedup=2"),
        ({"speedup": float("inf")}, "speedup=inf is not a number above 1; try speedup=2"),
    ],
)
def test_what_cannot_be_asked_is_refused(trained, asked, words):
    with pytest.raises(ValueError, match=words):
        diffcache.tune(trained, PROMPTS, **asked)


def test_arguments_of_neither_tune_nor_the_call_are_refused(trained):
    with pytest.raises(ValueError, match=r"takes no batch_sise; it takes .*did you mean 'batch_s"):
        diffcache.tune(trained, PROMPTS, psnr=40, batch_sise=2)
    with pytest.raises(ValueError, match=r"got seeds=\[1\]; leave them out, or pass seeds=range\("):
        diffcache.tune(trained, PROMPTS, psnr=40, seeds=[1])


def test_prompts_have_to_be_a_list(trained):
    with pytest.raises(
        ValueError, match=r"prompts=None is no list of prompts; pass \['a prompt'\]"
    ):
        diffcache.tune(trained, None, psnr=40)


def test_a_speed_out_of_reach_is_an_error_that_says_what_was_reached(trained):
    with pytest.raises(ValueError, match=r"speedup=500 was not reached, only \d"):
        diffcache.tune(trained, PROMPTS[:2], speedup=500, batch_size=1, **CALL)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"psnr": 40}, "psnr=40: nothing was skipped "),
        ({"speedup": 1.0001}, "speedup=1.0001 was not reached, as nothing was skipped; ask for "),
    ],
)
def test_where_nothing_can_be_skipped_it_is_said_why(trained, asked, said):
    short = CALL | {"num_inference_steps": 6}
    with pytest.raises(ValueError, match=rf"{said}.* force=True"):
        diffcache.tune(trained, PROMPTS[:2], **asked, seeds=(0, 1), **short)


def test_a_share_that_skips_nothing_is_not_taken_for_a_speed(trained, monkeypatch):
    achieved = tuning._Bench._achieved

    def measured(self, run):
        """As if the machine had been busy while the plain pipeline ran."""
        return replace(achieved(self, run), speedup=1.02)

    monkeypatch.setattr(tuning._Bench, "_achieved", measured)
    found = diffcache.tune(trained, PROMPTS[:1], speedup=1.01, **CALL)
    assert found.searched.compute < 1 and found.tried[0]["compute"] == 1


def test_where_a_tolerance_computes_everything_larger_ones_are_tried(trained, monkeypatch):
    measure = tuning._Bench.measure

    def careful(self, options):
        found = measure(self, options)
        if options["tolerance"] <= 0.08:
            found = self.measured[tuple(options.items())] = replace(found, compute=1.0)
        return found

    monkeypatch.setattr(tuning._Bench, "measure", careful)
    found = diffcache.tune(trained, PROMPTS[:2], psnr=2, seeds=(0, 1), batch_size=1, **CALL)
    assert found.options["tolerance"] > 0.08 and found.searched.compute < 1


def test_disabled_by_the_environment_there_is_nothing_to_tune(trained, monkeypatch):
    monkeypatch.setenv("DIFFCACHE_DISABLE", "1")
    with pytest.raises(ValueError, match="DIFFCACHE_DISABLE=1"):
        diffcache.tune(trained, PROMPTS, psnr=40, **CALL)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"tolerance": 1}))
    with pytest.raises(ValueError, match=r"other\.json holds no tuned setting"):
        diffcache.Tuned.load(tmp_path / "other.json")
