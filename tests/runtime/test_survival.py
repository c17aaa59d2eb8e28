"""An error of diffcache's own costs no generation; the model's own errors pass unchanged."""

from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import pytest
import torch

import diffcache
from diffcache.policies import Step
from diffcache.runtime.decisions import Decisions
from diffcache.runtime.history import History
from diffcache.runtime.run import Run


@pytest.fixture
def forgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFCACHE_STRICT")


def broken(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a bug of ours")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(History, "append"), (Decisions, "decide"), (Run, "stepped"), (Run, "_locate")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.parametrize("method", ["adaptive", "interval", "fbcache"])
def test_error_before_any_skip(pipe, generate, monkeypatch, forgiving, gate, method, owner, name):
    if method == "fbcache" and hasattr(pipe, "unet"):
        method = "third_order"
    plain = generate(pipe)
    diffcache.wrap(pipe, method)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        assert torch.equal(generate(pipe), plain)
    notes = diffcache.report(pipe).notes
    assert any("given up" in note and "RuntimeError: a bug of ours" in note for note in notes)
    diffcache.wrap(pipe, "interval", every=4)
    generate(pipe)
    assert diffcache.report(pipe).compute_fraction < 1


def test_error_of_a_forecast(pipe, generate, monkeypatch, forgiving):
    """The first skip fails, so every step is computed after all."""
    plain = generate(pipe)
    diffcache.wrap(pipe, "interval", every=4)
    monkeypatch.setattr(History, "forecast", broken)
    assert torch.equal(generate(pipe), plain)
    report = diffcache.report(pipe)
    assert any("a bug of ours" in note for note in report.notes)
    assert report.steps == 12


def test_error_in_the_middle_finishes(pipe, generate, monkeypatch, forgiving):
    diffcache.wrap(pipe, "interval", every=4)
    calls, plain = [], Decisions.decide

    def decide(self: Decisions, step: Step, *rest: Any) -> Any:
        calls.append(step.index)
        return broken() if step.index == 9 else plain(self, step, *rest)

    monkeypatch.setattr(Decisions, "decide", decide)
    assert generate(pipe).isfinite().all()
    report = diffcache.report(pipe)
    assert calls[-1] == 9
    assert report.mask[:, 0].tolist() == [i < 3 or i == 4 or i == 8 or i >= 9 for i in range(12)]
    assert report.steps == 12 and len(report.trace) == 9
    assert report.compute_fraction < 1
    assert any("a bug of ours" in note for note in report.notes)


def test_strict_raises(pipe, generate, monkeypatch):
    diffcache.wrap(pipe, "interval", every=4)
    monkeypatch.setattr(History, "forecast", broken)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        generate(pipe)


class Mine(Exception):
    """An error of the user's model."""


@pytest.mark.parametrize("method", ["adaptive", "interval", "fbcache"])
@pytest.mark.parametrize("at", [0, 5], ids=["first call", "later call"])
def test_error_of_the_model_passes(pipe, generate, forgiving, gate, method, at):
    """Even one that would not come again: who raises to interrupt means it."""
    if method == "fbcache" and hasattr(pipe, "unet"):
        method = "third_order"
    error, calls = Mine("stop"), []

    def hook(*_: Any) -> None:
        calls.append(None)
        if len(calls) == at + 1:
            raise error

    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    diffcache.wrap(pipe, method)
    generate(pipe, cfg=False)
    next(denoiser.children()).register_forward_pre_hook(hook)
    with pytest.raises(Mine) as caught:
        generate(pipe, cfg=False)
    assert caught.value is error
    assert len(calls) == at + 1
    assert not any("given up" in note for note in diffcache.report(pipe).notes)


def test_cache_that_outgrows_its_limit(pipe, generate):
    plain = generate(pipe)
    diffcache.wrap(pipe, "interval", every=4, max_cache_bytes=100)
    assert torch.equal(generate(pipe), plain)
    assert any("max_cache_bytes=100" in note for note in diffcache.report(pipe).notes)
    diffcache.wrap(pipe, "interval", every=4, max_cache_bytes=10**9)
    generate(pipe)
    assert diffcache.report(pipe).compute_fraction < 1


def test_steps_are_numbered_on_where_caches_shrink(pipe, generate):
    method = "deepcache" if hasattr(pipe, "unet") else "fora"
    diffcache.wrap(pipe, method, mask=[True, False] * 6, max_cache_bytes=9000)
    generate(pipe)
    report = diffcache.report(pipe)
    assert any("only whole outputs were kept" in note for note in report.notes)
    assert [event.step for event in report.trace] == list(range(12))
    assert [event.rules[0] != "skip" for event in report.trace] == report.mask[:, 0].tolist()


def test_tolerances_for_another_batch(pipe, generate, forgiving):
    plain = generate(pipe, 3)
    diffcache.wrap(pipe)
    said = r"computes everything: tolerance=\[0.1, 0.2\] has 2 entries for a batch of 3; pass one"
    with diffcache.request(tolerance=[0.1, 0.2]) as request:
        with pytest.warns(UserWarning, match=said) as heard:
            assert torch.equal(generate(pipe, 3), plain)
        assert len(heard) == 1
        # As an error, which warnings are in these tests, it costs no generation either.
        assert torch.equal(generate(pipe, 3), plain)
    for report in request.reports:
        assert any("2 entries for a batch of 3" in note for note in report.notes)


def test_error_in_the_arguments_of_a_first_mixed_call_is_not_the_models(
    unet, generate, monkeypatch, forgiving
):
    plain = generate(unet)
    diffcache.wrap(unet, mask=[[True, True], [True, False]] * 6)
    monkeypatch.setattr("diffcache.runtime.turn.map_leaves", broken)
    assert torch.equal(generate(unet), plain)
    assert any("a bug of ours" in note for note in diffcache.report(unet).notes)


@pytest.mark.parametrize("where", ["denoisers", "own_processors", "put_on"])
def test_error_before_the_first_call(pipe, generate, monkeypatch, forgiving, where):
    plain = generate(pipe)
    diffcache.wrap(pipe)
    with monkeypatch.context() as patch:
        patch.setattr(f"diffcache.wrapping.{where}", broken)
        assert torch.equal(generate(pipe), plain)
    notes = diffcache.report(pipe).notes
    assert any("given up" in note and "RuntimeError: a bug of ours" in note for note in notes)
    assert type(pipe.scheduler).__dict__.get("_diffcache_base") is None
    generate(pipe)
    assert not any("given up" in note for note in diffcache.report(pipe).notes)


def test_error_of_a_draft(pipe, generate, monkeypatch, forgiving):
    diffcache.wrap(pipe, "interval", every=4)
    wanted = generate(pipe)
    monkeypatch.setattr("diffcache.refining.weights_of", broken)
    with diffcache.request(keep_prefix=True) as run:
        assert torch.equal(generate(pipe), wanted)
    assert run.report.compute_fraction < 1
    assert "nothing was kept to refine: RuntimeError: a bug of ours" in run.report.notes
    with pytest.raises(RuntimeError, match="notes say why"):
        run.refine()


def test_error_before_the_first_call_of_a_loop(unet, monkeypatch, forgiving):
    model, scheduler = unet.unet, unet.scheduler

    @torch.no_grad()
    def loop() -> torch.Tensor:
        latents, texts = torch.ones(1, 4, 8, 8), torch.ones(1, 7, 32)
        scheduler.set_timesteps(12)
        for t in scheduler.timesteps:
            found = model(latents, t, encoder_hidden_states=texts).sample
            latents = scheduler.step(found, t, latents).prev_sample
        return latents

    plain = loop()
    diffcache.wrap(model, scheduler=scheduler)
    with monkeypatch.context() as patch:
        patch.setattr("diffcache.looping.put_on", broken)
        assert torch.equal(loop(), plain)
    assert any("a bug of ours" in note for note in diffcache.report(model).notes)
    loop()
    assert not any("given up" in note for note in diffcache.report(model).notes)


def test_a_scheduler_that_compares_by_value(unet, generate):
    class ByValue(type(unet.scheduler)):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, ByValue)

    unet.scheduler = ByValue.from_config(unet.scheduler.config)
    plain = generate(unet)
    diffcache.wrap(unet, "interval", every=4)
    generate(unet)
    assert diffcache.report(unet).compute_fraction < 1
    assert type(unet.scheduler) is ByValue
    diffcache.unwrap(unet)
    assert torch.equal(generate(unet), plain)


def test_a_pipeline_from_a_file_that_is_no_module(unet, generate, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from diffusers import StableDiffusionPipeline\n\n\n"
        "class Own(StableDiffusionPipeline):\n    pass\n"
    )
    spec = spec_from_file_location("own_pipeline_that_is_no_module", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    pipe = module.Own(**unet.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    diffcache.wrap(pipe, "interval", every=4)
    generate(pipe)
    assert diffcache.report(pipe).compute_fraction < 1
