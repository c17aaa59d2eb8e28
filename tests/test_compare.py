"""Comparisons: what is run, what it costs, what is measured, and what is left behind."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import diffcache
from diffcache.metrics import mean_error_psnr, psnr, ssim

STEPS = 12
CALL = {"num_inference_steps": STEPS, "height": 16, "width": 16}
HALF = ("interval", {"every": 2})
NEVER = ("interval", {"every": 1})
SEEDS = [7, 3, 5]


def entry(pipe: Any, seed: int) -> dict[str, Any]:
    """One picture's own arguments, as text encoders would give them."""
    noise = torch.Generator().manual_seed(1000 + seed)
    texts = {"prompt_embeds": torch.randn(1, 7, 32, generator=noise)}
    if hasattr(pipe, "unet"):
        return texts | {"negative_prompt_embeds": torch.zeros(1, 7, 32)}
    return texts | {"pooled_prompt_embeds": torch.randn(1, 32, generator=noise)}


def entries(pipe: Any, count: int = 3) -> list[dict[str, Any]]:
    return [entry(pipe, i) for i in range(count)]


def direct(pipe: Any, seeds: list[int], steps: int = STEPS) -> np.ndarray:
    """The pictures as their owner would generate them, one call each."""
    made = [
        pipe(
            **entry(pipe, i),
            **{**CALL, "num_inference_steps": steps},
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images
        for i, seed in enumerate(seeds)
    ]
    return np.concatenate(made)


@pytest.fixture
def ran(unet: StableDiffusionPipeline) -> list[int]:
    """Batch sizes of the denoiser's forwards."""
    sizes: list[int] = []
    unet.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def test_rows_hold_what_direct_calls_give(pipe: Any) -> None:
    plain = direct(pipe, SEEDS)
    found = diffcache.compare(pipe, entries(pipe), [HALF], SEEDS, batch_size=1, **CALL)
    method = "interval every=2"
    (report, *_) = found[method].reports
    fewer = int(report.mask[:, 0].sum())
    assert 2 < fewer < STEPS
    assert [row.label for row in found.rows] == ["plain", method, f"{fewer} steps"]
    np.testing.assert_array_equal(found.plain.pictures, plain)
    assert len(np.unique(plain)) > 256, "quantised pictures could not tell small errors apart"
    np.testing.assert_array_equal(found[f"{fewer} steps"].pictures, direct(pipe, SEEDS, fewer))
    with diffcache.wrapped(pipe, "interval", every=2):
        np.testing.assert_array_equal(found[method].pictures, direct(pipe, SEEDS))
    for row in found.rows[1:]:
        np.testing.assert_array_equal(row.psnr, psnr(plain, row.pictures))
        np.testing.assert_array_equal(row.ssim, ssim(plain, row.pictures))
        assert row.mean_error_psnr == mean_error_psnr(plain, row.pictures)
        assert row.psnr.min() < 60
        assert row.worst(2) == np.argsort(row.psnr)[:2].tolist()


def test_costs_are_what_the_denoiser_ran(unet: StableDiffusionPipeline, ran: list[int]) -> None:
    sizes: dict[str, int] = {}

    class Counting(StableDiffusionPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            before = sum(ran)
            output = super().__call__(*args, **kwargs)
            label = self._progress_bar_config.get("desc", "warm-up").partition(",")[0]
            sizes[label] = sizes.get(label, 0) + sum(ran) - before
            return output

    unet.__class__ = Counting
    unet.set_progress_bar_config()
    found = diffcache.compare(unet, entries(unet), [HALF], batch_size=2, **CALL)
    plain, method, fewer = found.rows
    assert plain.row_steps == 2 * STEPS and plain.steps == STEPS and plain.compute == 1
    for row in (plain, method, fewer):
        assert row.row_steps * 3 == pytest.approx(sizes[row.label])
        assert row.compute == pytest.approx(sizes[row.label] / sizes["plain"])
        assert row.steps == pytest.approx(STEPS * row.compute)
    assert method.compute == fewer.compute < 1
    assert method.fewer == fewer.label
    computed = torch.cat([report.mask for report in method.reports], dim=1)
    np.testing.assert_array_equal(method.mask, computed.numpy())


def test_a_method_that_never_skips_changes_nothing(pipe: Any) -> None:
    found = diffcache.compare(pipe, entries(pipe), {"all": NEVER}, batch_size=2, **CALL)
    assert [row.label for row in found.rows] == ["plain", "all"]
    assert found["all"].psnr.tolist() == [60.0] * 3
    assert found["all"].mean_error_psnr == 60.0
    assert found["all"].ssim.min() == pytest.approx(1)
    assert found["all"].compute == 1 and found["all"].fewer is None
    assert "all: nothing was skipped" in found.notes


def test_several_methods_share_a_row_of_fewer_steps(unet: StableDiffusionPipeline) -> None:
    methods = {"a": HALF, "b": ("interval", {"every": 2, "order": 0}), "c": "interval"}
    found = diffcache.compare(unet, entries(unet, 1), methods, **CALL)
    assert [row.label for row in found.rows if row.reports] == ["a", "b", "c"]
    assert found["a"].fewer == found["b"].fewer != found["c"].fewer
    labels = [row.label for row in found.rows]
    assert labels == ["plain", "a", found["a"].fewer, "b", "c", found["c"].fewer]
    assert found["a"].psnr[0] != found["b"].psnr[0]


def test_batches_do_not_change_pictures(unet: StableDiffusionPipeline) -> None:
    one, three = (
        diffcache.compare(unet, entries(unet), [HALF], SEEDS, batch_size=size, **CALL)
        for size in (1, 3)
    )
    for label in ("plain", "interval every=2"):
        np.testing.assert_allclose(one[label].pictures, three[label].pictures, atol=1e-4)
    assert len(one["interval every=2"].reports) == 3
    assert len(three["interval every=2"].reports) == 1


def test_seconds_are_the_median_batch_by_picture(
    unet: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([0, 8, 10, 16, 20, 21] + [0, 2] * 6)
    fake = SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr(sys.modules["diffcache.trial"], "time", fake)
    found = diffcache.compare(unet, entries(unet, 5), [HALF], batch_size=2, **CALL)
    assert found.plain.seconds == 3
    assert found["interval every=2"].seconds == 1
    assert "3.00×" in str(found)


@pytest.mark.parametrize("before", [None, "third_order"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_left_as_it_was(
    unet: StableDiffusionPipeline, before: str | None, fails: bool
) -> None:
    calls = 0

    def interrupt(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if fails and calls == 3 + STEPS + STEPS + 5:
            raise KeyboardInterrupt
        return {}

    plain = direct(unet, [0])
    scheduler = unet.scheduler
    if before is not None:
        diffcache.wrap(unet, before, threshold=0.5)
        expected = direct(unet, [0])
        report = diffcache.report(unet)
        assert np.abs(expected - plain).max() > 0
    state = dict(unet.__dict__)
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
        more = {**CALL, "callback_on_step_end": interrupt}
        diffcache.compare(unet, entries(unet), [HALF], batch_size=3, **more)
    assert unet.scheduler is scheduler
    assert unet.__dict__["_progress_bar_config"] == state["_progress_bar_config"]
    assert set(unet.__dict__) == set(state)
    if before is None:
        assert type(unet) is StableDiffusionPipeline
        with pytest.raises(ValueError, match="is not wrapped"):
            diffcache.report(unet)
        np.testing.assert_array_equal(direct(unet, [0]), plain)
    else:
        assert diffcache.report(unet) is report
        np.testing.assert_array_equal(direct(unet, [0]), expected)
        assert diffcache.report(unet).method == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": []}, r"prompts=\[\] is empty; pass \['a prompt'\]"),
        ({"prompts": "a cat"}, r"'a cat' is one prompt; pass a list, prompts=\['a cat'\]"),
        ({"prompts": [3]}, "3 among prompts is neither a string nor a mapping"),
        ({"prompts": ["a cat", {"image": 1}]}, r"\['prompt'\] and \['image'\]"),
        ({"prompts": [{"imag": 1}]}, "StableDiffusionPipeline takes no imag; it takes prompt, "),
        ({"seeds": [1, 2]}, r"3 prompts need as many seeds, got seeds=\[1, 2\].*seeds=range\(3\)"),
        ({"seeds": 4}, "3 prompts need as many seeds, got seeds=4"),
        ({"methods": ["adaptiv"]}, "no method 'adaptiv'; use one of 'abcache', 'adaptive'"),
        ({"methods": ["adaptive", ("interval", {"evry": 2})]}, "no option 'evry'; it takes"),
        ({"methods": []}, r"empty; call compare\(pipe, prompts, methods=\['adaptive'\]\)"),
        ({"methods": [("adaptive", 0.04)]}, r"\('adaptive', 0.04\) among methods"),
        ({"methods": ["adaptive", "adaptive"]}, "two of 'adaptive'.*methods={'one label'"),
        ({"batch_size": 0}, "batch_size=0 is not a count; try batch_size=4"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is not a count"),
        ({"generator": None}, r"generator cannot be given: seeds="),
        ({"output_type": "pil"}, "output_type cannot be given"),
        ({"num_images_per_prompt": 2}, "list a prompt twice"),
        ({"guidance": 3}, "takes no guidance; it takes"),
        ({"prompt_embeds": None}, "prompt_embeds is given with the prompts and for every call"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    unet: StableDiffusionPipeline, ran: list[int], changes: dict[str, Any], said: str
) -> None:
    diffcache.wrap(unet, "third_order")
    disguise = type(unet)
    with pytest.raises(ValueError, match=said):
        diffcache.compare(unet, **{"prompts": entries(unet), **CALL, **changes})
    assert ran == []
    assert type(unet) is disguise


def test_other_targets_are_refused(
    unet: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TypeError, match=r"bare denoiser; call diffcache\.compare\(pipe, prompts\)"):
        diffcache.compare(unet.unet, ["a cat"])
    monkeypatch.setenv("DIFFCACHE_DISABLE", "1")
    with pytest.raises(ValueError, match="DIFFCACHE_DISABLE=1"):
        diffcache.compare(unet, entries(unet))


def test_steps_default_to_the_pipelines_own(unet: StableDiffusionPipeline) -> None:
    found = diffcache.compare(unet, entries(unet, 1), [HALF], height=16, width=16)
    assert found.plain.steps == found.setting["steps"] == 50


def test_a_timetable_of_ones_own_has_no_fewer_steps(dit: Any) -> None:
    call = {"sigmas": np.linspace(1, 1 / STEPS, STEPS).tolist(), "height": 16, "width": 16}
    found = diffcache.compare(dit, entries(dit, 1), [HALF], **call)
    assert [row.label for row in found.rows] == ["plain", "interval every=2"]
    assert found.plain.steps == STEPS and found["interval every=2"].compute < 1
    assert any("not compared with fewer steps" in note for note in found.notes)


def test_progress_bars_say_what_runs(
    unet: StableDiffusionPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    unet.set_progress_bar_config()
    diffcache.compare(unet, entries(unet), {"mine": HALF}, batch_size=2, **CALL)
    shown = capsys.readouterr().err
    for label in ("plain", "mine", "8 steps"):
        assert f"{label}, batch 2 of 2: 100%" in shown
    assert f"/{STEPS} [" in shown and "/8 [" in shown and "/3 [" not in shown
    unet.set_progress_bar_config(disable=True)
    diffcache.compare(unet, entries(unet, 1), {"mine": HALF}, **CALL)
    assert capsys.readouterr().err == ""


class Video(StableDiffusionPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        images = super().__call__(*args, **kwargs).images
        return (np.stack([images, images[:, ::-1], images[:, :, ::-1]], axis=1),)


class Sound(StableDiffusionPipeline):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        images = super().__call__(*args, **kwargs).images
        return (images.reshape(len(images), -1) * 4 - 2,)


def test_video_has_no_ssim_and_shows_a_frame(unet: StableDiffusionPipeline, tmp_path: Any) -> None:
    pictures = diffcache.compare(unet, entries(unet, 2), [HALF], **CALL)
    unet.__class__ = Video
    found = diffcache.compare(unet, entries(unet, 2), [HALF], **CALL)
    video, picture = found["interval every=2"], pictures["interval every=2"]
    assert video.pictures.shape == (2, 3, 16, 16, 3)
    np.testing.assert_allclose(video.psnr, picture.psnr)
    assert video.ssim is None and picture.ssim is not None
    assert len(found.save(tmp_path)) == 3


def test_sound_is_scaled_to_its_range(unet: StableDiffusionPipeline, tmp_path: Any) -> None:
    pictures = diffcache.compare(unet, entries(unet, 2), [HALF], **CALL)
    unet.__class__ = Sound
    found = diffcache.compare(unet, entries(unet, 2), [HALF], **CALL)
    assert found.plain.pictures.min() == 0 and found.plain.pictures.max() == 1
    low, high = (getattr(pictures.plain.pictures, end)() for end in ("min", "max"))
    gained = 20 * np.log10(1 / (high - low))
    np.testing.assert_allclose(
        found["interval every=2"].psnr, pictures["interval every=2"].psnr - gained, atol=1e-3
    )
    assert any("scaled to 0 to 1" in note for note in found.notes)
    assert {path.suffix for path in found.save(tmp_path)} == {".md", ".json"}


def test_compare_stays_a_function_of_the_package() -> None:
    """Importing the module of that name rebinds the attribute, whoever imports it."""
    for _ in range(2):
        with pytest.raises(ValueError, match="among methods"):
            diffcache.compare(None, ["a cat"], methods=[3])
