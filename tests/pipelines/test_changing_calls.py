"""Generations whose calls change on the way, or whose timesteps come twice or on another scale."""

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback

import diffcache
from diffcache import tiny

METHODS = ["adaptive", "deepcache", "fora"]
HALF = [step % 2 == 0 for step in range(10)]
THIRD = [step % 3 == 0 for step in range(10)]


@pytest.mark.parametrize("method", METHODS)
def test_guidance_that_ends_on_the_way(unet, generate, method):
    """diffusers' callback halves the rows after the fifth step; what is cached fits no longer."""

    def cut():
        end = SDCFGCutoffCallback(cutoff_step_ratio=0.4)
        return generate(unet, 1, steps=10, callback_on_step_end=end)

    plain = cut()
    diffcache.wrap(unet, method, mask=[True])
    assert torch.equal(cut(), plain)
    diffcache.wrap(unet, method, mask=HALF)
    latents = cut()
    report = diffcache.report(unet)
    assert report.mask[:, 0].tolist() == [row or step == 5 for step, row in enumerate(HALF)]
    assert (report.computed, report.total) == (3 * 2 + 3, 5 * 2 + 5)
    assert torch.equal(cut(), latents)
    diffcache.unwrap(unet)
    assert torch.equal(cut(), plain)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("compute", [0.5, 0.65])
def test_a_share_counts_rows_where_guidance_ends_on_the_way(unet, generate, compute, ratio):
    diffcache.wrap(unet, compute=compute)
    end = SDCFGCutoffCallback(cutoff_step_ratio=ratio)
    generate(unet, 1, steps=40, callback_on_step_end=end)
    report = diffcache.report(unet)
    assert report.total == 40 + round(40 * ratio) + 1
    # By half of what was planned for a run of one kind of step, and a step of two rows.
    assert abs(report.computed - compute * report.total) <= 2 + 0.04 * report.total
    assert report.mask[-12:].sum() >= 2


@pytest.mark.parametrize(("before", "after"), [(8.0, 1.5), (1.5, 8.0), (2.5, 2.5)])
def test_a_change_of_guidance_is_not_corrected_as_an_error(before, after):
    pipe = tiny.pipeline("unet")
    pipe.set_progress_bar_config(disable=True)
    mask = [step not in (9, 10, 11) for step in range(16)]

    def change(pipe, step, timestep, tensors):
        if step == 9:
            pipe._guidance_scale = after
        return tensors

    def latents(corrects):
        with diffcache.wrapped(pipe, mask=mask, corrects=corrects):
            return pipe(
                ["two red circles", "three blue squares", "one green triangle"],
                num_inference_steps=len(mask),
                guidance_scale=before,
                generator=[torch.Generator().manual_seed(seed) for seed in range(3)],
                callback_on_step_end=change,
                output_type="latent",
            ).images

    assert torch.equal(latents(corrects=True), latents(corrects=False)) == (before != after)


@pytest.mark.parametrize("begin", [3, 4], ids=["skipped step", "computed step"])
def test_guidance_that_begins_on_the_way(unet, begin):
    """A branch's first call is computed; where the step computes anyhow, nothing is to be said."""
    model, scheduler, calls = unet.unet, unet.scheduler, []
    model.down_blocks[0].register_forward_hook(lambda *_: calls.append(step))
    diffcache.wrap(model, "interval", scheduler=scheduler, mask=HALF)
    texts = [torch.full((1, 7, 32), float(value)) for value in (1, 2)]
    scheduler.set_timesteps(len(HALF))
    latents = torch.ones(1, 4, 8, 8)
    for step, time in enumerate(scheduler.timesteps):
        with torch.no_grad():
            found = [
                model(latents, time, encoder_hidden_states=text).sample
                for text in texts[: 1 + (step >= begin)]
            ]
        latents = scheduler.step(sum(found), time, latents).prev_sample
    assert sorted(calls) == sorted([0, 2, 4, 6, 8, *{begin, 4, 6, 8}])
    notes = diffcache.report(model).notes
    assert any("begins late" in note for note in notes) == (begin == 3)


@pytest.mark.parametrize("method", METHODS)
def test_video_that_is_denoised_twice(family, method):
    """FreeInit runs all timesteps twice; the second run finds nothing of the first one's cache."""
    made = family("animatediff")
    made.pipe.enable_free_init(num_iters=2)

    def generate():
        # It draws noise in the second run, of the shape of a batch.
        return made.generate(generator=torch.Generator().manual_seed(0))

    plain = generate()
    diffcache.wrap(made.pipe, method, mask=[True])
    assert torch.equal(generate(), plain)
    diffcache.wrap(made.pipe, method, mask=HALF + THIRD)
    latents = generate()
    report = diffcache.report(made.pipe)
    assert report.mask[:, 0].tolist() == HALF + THIRD
    assert [event.step for event in report.trace] == list(range(len(HALF + THIRD)))
    assert report.compute_fraction == 0.45
    diffcache.wrap(made.pipe, method, mask=report.mask)
    assert torch.equal(generate(), latents)
    assert diffcache.report(made.pipe).mask.tolist() == report.mask.tolist()


@pytest.mark.parametrize(("name", "period"), [("stable audio", 6), ("svd", 12)])
def test_timesteps_of_another_scale_are_brought_to_a_methods_own(family, name, period):
    """A schedule written in timesteps up to 1000 never applied to logarithms of sigma."""
    made = family(name)
    plain = made.generate()
    diffcache.wrap(made.pipe, "pab")
    assert not torch.equal(made.generate(), plain)
    report = diffcache.report(made.pipe)
    times = [event.timestep for event in report.trace]
    assert min(times) < 0 and max(times) < 10
    first, last = times[0], times[-1]
    within = [0.1 < (time - last) / (first - last) < 0.8 for time in times]
    wanted = [not skips or index % period == 0 for index, skips in enumerate(within)]
    assert report.mask[:, 0].tolist() == wanted and not all(wanted)


@pytest.mark.parametrize("method", ["interval", "adaptive"])
def test_conditioning_that_a_callback_writes_over_is_computed_with(unet, generate, method):
    def negate(pipe, step, timestep, tensors):
        if step == 5:
            tensors["prompt_embeds"].neg_()
        return tensors

    inputs = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    diffcache.wrap(unet, method, **({"every": 8} if method == "interval" else {"tolerance": 9.0}))
    generate(unet, steps=16)
    assert not diffcache.report(unet).mask[6].any()
    generate(unet, steps=16, callback_on_step_end=negate, **inputs)
    report = diffcache.report(unet)
    assert report.mask[6].all() and not report.mask[7].any()
    assert any("conditioning written over" in note for note in report.notes)
