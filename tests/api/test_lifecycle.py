"""wrap, unwrap, wrapped, request, report, and the switch that turns it all off."""

import logging
from typing import Any, get_args

import pytest
import torch

import diffcache
from diffcache import api
from diffcache.policies import Gated, Interval
from diffcache.runtime.report import Rule


def timeline(pipe: Any, generate: Any) -> str:
    generate(pipe)
    return diffcache.report(pipe).timeline()


EVERY_3 = "████··█··█·█"
EVERY_4 = "███·█···█··█"


def test_wrapping_again_replaces(pipe, generate, gate):
    plain, kind = generate(pipe), type(pipe)
    assert diffcache.wrap(pipe, "interval", every=3) is pipe
    assert timeline(pipe, generate) == EVERY_3
    assert diffcache.wrap(pipe, "interval", every=4) is pipe
    assert timeline(pipe, generate) == EVERY_4
    assert diffcache.unwrap(pipe) is pipe
    assert type(pipe) is kind
    assert torch.equal(generate(pipe), plain)


def test_unwrap_of_a_plain_pipeline_is_nothing(pipe, generate):
    kind, plain = type(pipe), generate(pipe)
    assert diffcache.unwrap(diffcache.unwrap(pipe)) is pipe
    assert type(pipe) is kind
    assert torch.equal(generate(pipe), plain)


def test_wrapped_restores_a_plain_pipeline(pipe, generate):
    kind, plain = type(pipe), generate(pipe)
    with diffcache.wrapped(pipe, "interval", every=3) as inside:
        assert inside is pipe
        assert timeline(pipe, generate) == EVERY_3
    assert type(pipe) is kind
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("error", [None, RuntimeError("mine")], ids=["leaving", "raising"])
def test_wrapped_restores_what_was_wrapped(pipe, generate, error):
    diffcache.wrap(pipe, "interval", every=4)
    try:
        with diffcache.wrapped(pipe, "interval", every=3):
            assert timeline(pipe, generate) == EVERY_3
            if error:
                raise error
    except RuntimeError as found:
        assert found is error
    assert timeline(pipe, generate) == EVERY_4


def test_wrapped_that_refuses_changes_nothing(pipe, generate):
    diffcache.wrap(pipe, "interval", every=4)
    with pytest.raises(ValueError, match="no option"), diffcache.wrapped(pipe, evry=3):
        pass
    assert timeline(pipe, generate) == EVERY_4


def test_request_collects_reports(pipe, generate):
    diffcache.wrap(pipe, "interval", every=4)
    with diffcache.request(every=3) as request:
        generate(pipe)
        with diffcache.request(every=2) as inner:
            generate(pipe)
        generate(pipe, steps=20)
    generate(pipe)
    assert [report.steps for report in request.reports] == [12, 20]
    assert [report.timeline() for report in inner.reports] == ["███·█·█·█·██"]
    assert request.reports[0].timeline() == EVERY_3
    assert request.report is request.reports[-1]
    assert diffcache.report(pipe).timeline() == EVERY_4


def test_request_collects_an_interrupted_generation(pipe, generate):
    def callback(*_: Any) -> None:
        raise KeyboardInterrupt

    diffcache.wrap(pipe, "interval", every=4)
    with diffcache.request(every=3) as request:
        with pytest.raises(KeyboardInterrupt):
            generate(pipe, callback_on_step_end=callback)
        assert request.report.steps == 1
    assert timeline(pipe, generate) == EVERY_4


def test_disabled_by_the_environment(pipe, generate, monkeypatch, caplog):
    plain, kind = generate(pipe), type(pipe)
    api._say_disabled.cache_clear()
    monkeypatch.setenv("DIFFCACHE_DISABLE", "1")
    with caplog.at_level(logging.WARNING, logger="diffcache"):
        for _ in range(3):
            assert diffcache.wrap(pipe, "interval", every=3) is pipe
    assert [record.message for record in caplog.records] == [
        "DIFFCACHE_DISABLE=1: diffcache.wrap leaves everything as it is"
    ]
    assert type(pipe) is kind
    assert torch.equal(generate(pipe), plain)
    with diffcache.request(keep_prefix=True) as run:
        generate(pipe)
    for report in (diffcache.report(pipe), run.report):
        assert str(report) == (
            "diffcache disabled: no denoiser call was observed\n"
            "  note     DIFFCACHE_DISABLE=1: nothing was wrapped"
        )
    with pytest.raises(RuntimeError, match="DIFFCACHE_DISABLE=1: nothing was wrapped, so what"):
        run.refine()
    with pytest.raises(ValueError, match="no option"):
        diffcache.wrap(pipe, "interval", evry=3)

    with diffcache.wrapped(pipe, "interval"):
        generate(pipe)
    assert "DIFFCACHE_DISABLE=1" in diffcache.report(pipe).notes[0]
    diffcache.wrap(pipe, diffcache.Method(policy=Gated(6, Interval(2), Interval(3))))
    with diffcache.request(gate=9):
        generate(pipe)

    monkeypatch.delenv("DIFFCACHE_DISABLE")
    diffcache.wrap(pipe, "interval", every=3)
    assert timeline(pipe, generate) == EVERY_3
    monkeypatch.setenv("DIFFCACHE_DISABLE", "1")
    diffcache.wrap(pipe, "interval", every=4)
    monkeypatch.delenv("DIFFCACHE_DISABLE")
    assert torch.equal(generate(pipe), plain)
    assert "DIFFCACHE_DISABLE=1" in diffcache.report(pipe).notes[0]
    diffcache.unwrap(pipe)
    with pytest.raises(ValueError, match="is not wrapped"):
        diffcache.report(pipe)


# What a method needs that is not there, as published, of five blocks with random weights.
NEEDS = {
    "dbcache": "use head + tail <= 4",
    "deepcache": "FluxTransformer2DModel is no UNet",
    "magcache": "diffcache.calibrate(pipe, prompts",
    "mask": "diffcache.wrap(pipe, mask=report.mask)",
    "smoothcache": "diffcache.calibrate(pipe, prompts",
}


def test_catalogue_names_what_wrap_takes(pipe, generate):
    catalogue = diffcache.methods()
    assert {"adaptive", "interval", "fbcache", "adaptivediffusion"} <= set(catalogue)
    assert all(catalogue.values())
    for name in catalogue:
        try:
            diffcache.wrap(pipe, name)
        except ValueError as refusal:
            # A UNet has no list of blocks; its modules are calibrated like others.
            listless = hasattr(pipe, "unet") and name not in ("smoothcache", "mask")
            assert ("UNet2DConditionModel has no" if listless else NEEDS[name]) in str(refusal)
            continue
        assert generate(pipe).isfinite().all()
        assert diffcache.report(pipe).method == name
    assert "ye2024adaptivediffusion" in diffcache.cite()


def test_report_reads_well(pipe, generate):
    diffcache.wrap(pipe, "interval", every=3)
    generate(pipe)
    text = str(diffcache.report(pipe))
    assert "interval: 28 of 48 row-steps computed (58%)" in text
    assert EVERY_3 in text
    assert "first 2, policy 6, protect 6, skip 10" in text
    assert all(isinstance(event, diffcache.Event) for event in diffcache.report(pipe).trace)
    assert all(f'"{rule}"' in diffcache.Event.__doc__ for rule in get_args(Rule))


def test_a_report_says_that_a_mask_was_played(pipe, generate):
    generate(diffcache.wrap(pipe, "interval", every=3))
    generate(diffcache.wrap(pipe, "interval", mask=diffcache.report(pipe).mask))
    text = str(diffcache.report(pipe))
    assert "diffcache interval, mask played back: 28 of 48 row-steps computed" in text
    generate(diffcache.wrap(pipe, "mask", mask=[True]))
    assert diffcache.report(pipe).method == "mask"


def test_a_mask_of_other_steps_is_played_as_far_as_it_goes_and_says_so(pipe, generate):
    diffcache.wrap(pipe, mask=[True, False] * 6)
    assert timeline(pipe, generate) == "█·" * 6
    assert not diffcache.report(pipe).notes
    diffcache.wrap(pipe, mask=[True, False] * 5)
    assert timeline(pipe, generate) == "█·" * 5 + "██"
    assert "the mask is of 10 steps and the generation made 12" in str(diffcache.report(pipe))


def test_sizes_that_are_no_part_of_the_batch_are_pointed_out(dit, generate):
    def said(rows, samples):
        generate(diffcache.wrap(dit, compute_rows=rows), samples)
        return [note for note in diffcache.report(dit).notes if "compute_rows" in note]

    assert said((4, 2), 2) == [
        "compute_rows=(4, 2) has no size below the batch of 2, so that a step computes all of it "
        "or nothing"
    ]
    assert not said(1, 2) and not said(4, 1)
