"""Measuring on a pipeline what a method needs, and what happens when the pipeline changes."""

import time
from functools import partial

import pytest
import torch
from peft import LoraConfig

import diffcache
from diffcache.calibration import guidance_of
from diffcache.methods import find
from diffcache.policies import AccumulatedProbe, MagnitudeRatios, Statistics
from diffcache.sites import BlockStack


def arguments(steps=12):
    """Two samples for the tiny Flux of the tests."""
    generator = torch.Generator().manual_seed(3)
    return {
        "prompt_embeds": torch.randn(2, 7, 32, generator=generator),
        "pooled_prompt_embeds": torch.randn(2, 32, generator=generator),
        "generator": torch.Generator().manual_seed(4),
        "num_inference_steps": steps,
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }


def measure(pipe, method, steps=12):
    call = arguments(steps)
    prompt = {name: call.pop(name) for name in ("prompt_embeds", "pooled_prompt_embeds")}
    return diffcache.calibrate(pipe, [prompt], method, **call)


@pytest.mark.parametrize(
    ("method", "option"),
    [("magcache", "threshold"), ("smoothcache", "alpha"), ("teacache", "threshold")],
)
def test_a_calibrated_method_skips(dit, generate, method, option):
    plain = generate(dit, cfg=False)
    calibration = measure(dit, method)
    assert torch.equal(generate(dit, cfg=False), plain)
    assert calibration.statistics.steps == 12
    assert calibration.setting["num_inference_steps"] == 12
    diffcache.wrap(dit, method, calibration=calibration, **{option: 5.0})
    generate(dit, cfg=False)
    report = diffcache.report(dit)
    assert report.compute_fraction < 0.8
    assert not any("calibration" in note for note in report.notes)
    diffcache.unwrap(dit)
    assert torch.equal(generate(dit, cfg=False), plain)


def test_ratios_are_those_of_the_residuals(dit):
    calibration = measure(dit, "magcache")
    seen = []
    last = dit.transformer.transformer_blocks[-1]
    entry = []
    hooks = [
        dit.transformer.transformer_blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: entry.append(
                (kwargs["encoder_hidden_states"], kwargs["hidden_states"])
            ),
            with_kwargs=True,
        ),
        last.register_forward_hook(
            lambda _, args, out: seen.append([a - b for a, b in zip(out, entry[-1], strict=True)])
        ),
    ]
    dit(**arguments())
    for hook in hooks:
        hook.remove()
    expected = [
        sum(float((n.norm(dim=-1) / o.norm(dim=-1)).mean()) for n, o in zip(*pair, strict=True)) / 2
        for pair in zip(seen[1:], seen, strict=False)
    ]
    assert calibration.statistics.ratios["0"][0] is None
    assert calibration.statistics.ratios["0"][1:] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("method", ["magcache", "smoothcache"])
def test_what_was_wrapped_stays_so_and_a_file_holds_it_all(dit, tmp_path, method):
    diffcache.wrap(dit, "adaptive")
    calibration = measure(dit, method)
    dit(**arguments())
    assert diffcache.report(dit).method == "adaptive"
    calibration.save(tmp_path / "ratios.json")
    assert diffcache.Calibration.load(tmp_path / "ratios.json") == calibration
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other.json holds no calibration; write one with"):
        diffcache.Calibration.load(tmp_path / "other.json")


def test_what_is_missing_is_refused_with_the_call_that_measures_it(dit):
    with pytest.raises(ValueError, match=r"'magcache' needs ratios .* diffcache.calibrate\(pipe"):
        diffcache.wrap(dit, "magcache")
    with pytest.raises(
        ValueError, match=r"'smoothcache' needs errors .* diffcache.calibrate\(pipe"
    ):
        diffcache.wrap(dit, "smoothcache")
    with pytest.raises(ValueError, match="'adaptive' needs no calibration; call"):
        measure(dit, "adaptive")
    with pytest.raises(ValueError, match="ErrorBudget takes no calibration"):
        diffcache.wrap(dit, "adaptive", calibration=measure(dit, "magcache"))


def test_another_method_is_refused(dit):
    calibration = measure(dit, "teacache")
    refused = r"for 'teacache' and is given to 'magcache'; call .*calibrate\(pipe.*'magcache'\)"
    with pytest.raises(ValueError, match=refused):
        diffcache.wrap(dit, "magcache", calibration=calibration)
    with pytest.raises(ValueError, match="is not wrapped"):
        diffcache.report(dit)
    diffcache.wrap(dit, "teacache", calibration=calibration, threshold=0.5)


def test_another_scheduler_is_refused(dit):
    calibration = measure(dit, "magcache")
    dit.scheduler = type(dit.scheduler).from_config(dit.scheduler.config, shift=3.0)
    with pytest.raises(ValueError, match=r"another configuration .*FlowMatch.*diffcache.calibrate"):
        diffcache.wrap(dit, "magcache", calibration=calibration)


def change_weights(pipe):
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(1.01)


def add_adapter(pipe):
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "late")


def change_scheduler(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=3.0)


CHANGES = {
    "another configuration of 1 FlowMatchEulerDiscreteScheduler": (change_scheduler, {}),
    "other weights": (change_weights, {}),
    "adapters {'late': 4.0} in place of {}": (add_adapter, {}),
    "10 steps in place of 12": (None, {"steps": 10}),
    "11 steps in place of 12": (None, {"sigmas": [1 - i / 11 for i in range(11)]}),
    "guidance {'true_cfg_scale': 2.0, 'guidance_scale': 3.5} in place of": (None, {"cfg": True}),
    "latents [64, 16] in place of [16, 16]": (None, {"size": 32}),
}


@pytest.mark.parametrize("words", CHANGES)
def test_what_changes_later_is_a_note_and_caution(dit, generate, words):
    calibration = measure(dit, "magcache")
    diffcache.wrap(dit, "magcache", calibration=calibration, threshold=9.0, max_skips=9)
    generate(dit, cfg=False)
    assert "··" in diffcache.report(dit).timeline()
    change, options = CHANGES[words]
    if change is not None:
        change(dit)
    generate(dit, **{"cfg": False} | options)
    report = diffcache.report(dit)
    assert any(words in note for note in report.notes), report.notes
    assert "·" in report.timeline() and "··" not in report.timeline()


def test_steps_left_after_caches_were_too_large_are_no_other_number_of_steps(dit, generate):
    diffcache.wrap(dit, "magcache", calibration=measure(dit, "magcache"), max_cache_bytes=5000)
    generate(dit, cfg=False)
    notes = diffcache.report(dit).notes
    assert any("outgrew" in note for note in notes) and not any("otherwise" in n for n in notes)


@pytest.mark.parametrize("wrapped", ["custom", "interval"])
def test_a_composition_without_a_name_is_asked_for_by_itself(dit, wrapped):
    method = diffcache.Method(site=BlockStack(), policy=MagnitudeRatios())
    if wrapped == "interval":
        method = find("interval").configured(policy="magcache", site="magcache")
    with pytest.raises(
        ValueError, match=r"calibrate\(pipe, prompts, method=method\), then .*method,"
    ):
        diffcache.wrap(dit, method)
    diffcache.wrap(dit, method, calibration=measure(dit, method))


def test_guidance_counts_however_it_is_given(dit):
    call = type(dit).__call__
    assert guidance_of(partial(call, dit, "a cat")) == {
        "true_cfg_scale": 1.0,
        "guidance_scale": 3.5,
    }
    given = partial(call, dit, "a cat", None, None, None, 4.0, guidance_scale=2)
    assert guidance_of(given) == {"true_cfg_scale": 4.0, "guidance_scale": 2.0}
    assert guidance_of(partial(call, dit, no_such_argument=1)) == {}


def test_an_open_request_has_no_say_in_what_is_measured(dit):
    wanted = measure(dit, "teacache").statistics
    with diffcache.request(protect=(1, 0), threshold=9.0) as run:
        assert measure(dit, "teacache").statistics == wanted
    assert not run.reports


def test_a_fingerprint_is_taken_in_under_a_second(dit):
    calibration = measure(dit, "magcache")
    began = time.perf_counter()
    assert calibration.drift([dit.transformer], [dit.scheduler], {}) == []
    assert time.perf_counter() - began < 1


def test_a_polynomial_is_fitted_to_what_was_measured():
    probe = tuple(0.02 * i for i in range(1, 20))
    output = tuple(3 * x**2 + 0.5 * x + 0.01 for x in probe)
    nothing = (None, None)
    statistics = Statistics(20, {"probe": ((None, *probe),) * 3, "0": ((None, *output),) * 3})
    fitted = AccumulatedProbe().fit(statistics)
    assert fitted.polynomial == pytest.approx((0, 0, 3, 0.5, 0.01), abs=1e-3)
    with pytest.raises(ValueError, match="0 steps are too few"):
        AccumulatedProbe().fit(Statistics(2, {"probe": (nothing,), "0": (nothing,)}))
