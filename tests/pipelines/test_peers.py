"""What other caches were seen to get wrong, one failure a test."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

import diffcache

# A method of each site: on denoisers that are called by hand, and on pipelines.
BY_HAND = [
    ("WanTransformer3DModel", "adaptive"),
    ("WanTransformer3DModel", "fbcache"),
    ("WanTransformer3DModel", "fora"),
    ("UNet2DConditionModel", "deepcache"),
]
PIPELINES = [
    *(("unet", method) for method in ("adaptive", "deepcache", "fora")),
    *(("dit", method) for method in ("adaptive", "fbcache", "fora")),
]
MASK = [True, False, True, False, False, True, False, False]
SAMPLES = {"WanTransformer3DModel": (4, 2, 16, 16), "UNet2DConditionModel": (4, 8, 8)}
TEXTS = {"WanTransformer3DModel": (12, 16), "UNet2DConditionModel": (7, 16)}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loop(
    model: torch.nn.Module, scheduler: Any, calls: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
) -> list[list[Tensor]]:
    """What the model gives for the samples and texts that `calls` names for each step."""
    scheduler.set_timesteps(len(MASK))
    outputs = []
    for step, time in enumerate(scheduler.timesteps):
        given = list(calls(step))
        with torch.no_grad():
            outputs.append(
                [
                    model(
                        sample,
                        timestep=time.expand(len(sample)),
                        encoder_hidden_states=text,
                        return_dict=False,
                    )[0]
                    for sample, text in given
                ]
            )
        # The same whichever branches are called, as what is corrected by it moves them all.
        scheduler.step(given[0][0], time, given[0][0])
    return outputs


def scheduler_of(name: str) -> Any:
    return DDIMScheduler() if name.startswith("UNet") else FlowMatchEulerDiscreteScheduler()


@pytest.mark.parametrize("name, method", BY_HAND)
def test_guidance_branches_in_calls_of_their_own_are_not_mixed_up(bench, name, method):
    """The unconditional call was given what the conditional one had cached, and guidance vanished.

    Here the calls change places from step to step, as parity would not survive.
    """
    texts = [noise(1, *TEXTS[name], seed=seed) for seed in (1, 2)]
    samples = [noise(1, *SAMPLES[name], seed=10 + step) for step in range(len(MASK))]

    def run(branches: Callable[[int], list[int]]) -> list[dict[int, Tensor]]:
        model, scheduler = bench("denoisers").build(name), scheduler_of(name)
        diffcache.wrap(model, method, scheduler=scheduler, mask=MASK)
        found = loop(
            model, scheduler, lambda step: [(samples[step], texts[b]) for b in branches(step)]
        )
        assert diffcache.report(model).mask[:, 0].tolist() == MASK
        return [dict(zip(branches(step), out, strict=True)) for step, out in enumerate(found)]

    together = run(lambda step: [0, 1] if step % 2 else [1, 0])
    for branch in (0, 1):
        alone = run(lambda step, branch=branch: [branch])
        for step in range(len(MASK)):
            assert torch.equal(together[step][branch], alone[step][branch]), step
    assert not any(torch.equal(out[0], out[1]) for out in together)


@pytest.mark.parametrize("name, method", BY_HAND)
@pytest.mark.parametrize("change", ["batch", "size", "text"])
def test_cache_of_another_shape_is_not_broadcast(bench, name, method, change):
    """Behind a static mask, a cache of one row was added to a batch of two without a word."""
    at = MASK.index(False, 4)
    wider = {"batch": 2}.get(change, 1)
    shape, length = list(SAMPLES[name]), list(TEXTS[name])
    if change == "size":
        shape[-1] *= 2
    if change == "text":
        length[0] += 1
    before = noise(1, *SAMPLES[name], seed=0), noise(1, *TEXTS[name], seed=1)
    text = before[1] if change == "size" else noise(wider, *length, seed=3)
    after = noise(wider, *shape, seed=2), text

    def calls(step: int) -> list[tuple[Tensor, Tensor]]:
        return [before if step < at else after]

    model, scheduler = bench("denoisers").build(name), scheduler_of(name)
    plain = loop(model, scheduler, calls)
    diffcache.wrap(model, method, scheduler=scheduler, mask=MASK)
    found = loop(model, scheduler, calls)
    assert torch.equal(found[at][0], plain[at][0])
    assert found[-1][0].shape == plain[-1][0].shape
    assert any("continued no earlier one" in note for note in diffcache.report(model).notes)


@pytest.mark.parametrize("kind, method", PIPELINES)
def test_interrupted_generation_leaves_nothing_to_the_next(make, generate, kind, method):
    """After an exception, the next prompt was given the last prompt's blocks, or their shapes."""
    pipe, fresh = make(kind), make(kind)

    def stop(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            raise KeyboardInterrupt
        return tensors

    for size in (16, 32):
        diffcache.wrap(pipe, method, mask=MASK)
        with pytest.raises(KeyboardInterrupt):
            generate(pipe, steps=8, callback_on_step_end=stop)
        diffcache.wrap(fresh, method, mask=MASK)
        other = {"samples": [5, 6], "steps": 8, "size": size}
        assert torch.equal(generate(pipe, **other), generate(fresh, **other))


@pytest.mark.parametrize("kind, method", PIPELINES)
def test_batch_and_size_may_change_between_generations(make, generate, kind, method):
    """A request of another batch or size found a cache of the one before."""
    pipe, fresh = make(kind), make(kind)
    diffcache.wrap(pipe, method, mask=MASK)
    for samples, size in ((1, 16), (2, 16), (2, 32), (1, 16)):
        diffcache.wrap(fresh, method, mask=MASK)
        latents = generate(pipe, samples, steps=8, size=size)
        assert torch.equal(latents, generate(fresh, samples, steps=8, size=size))
        assert diffcache.report(pipe).compute_fraction == sum(MASK) / len(MASK)


@pytest.mark.parametrize("kind, method", PIPELINES)
def test_guidance_that_is_off_halves_no_step_count(make, generate, kind, method):
    """With branches told by parity, a run without guidance counted two calls as a step."""
    pipe = make(kind)
    diffcache.wrap(pipe, method, mask=MASK)
    generate(pipe, steps=8, cfg=False)
    report = diffcache.report(pipe)
    assert report.steps == 8 and report.total == 8 * 2
    assert report.mask[:, 0].tolist() == MASK


@pytest.mark.parametrize("method", ["adaptive", "deepcache", "fora"])
def test_eta_and_generator_reach_the_scheduler(unet, generate, method):
    """A patched `step` hid its arguments, and pipelines, which look for them, passed none."""
    plain = generate(unet, steps=10, eta=0.8)
    assert not torch.equal(plain, generate(unet, steps=10))
    diffcache.wrap(unet, method, mask=[True])
    assert torch.equal(generate(unet, steps=10, eta=0.8), plain)
    diffcache.wrap(unet, method, mask=MASK)
    assert torch.equal(generate(unet, eta=0.8), generate(unet, eta=0.8))


def test_last_block_that_returns_no_text(family):
    """SD3's last block gives None for the text, which a cache took for a tensor."""
    made = family("sd3")
    last = made.pipe.transformer.transformer_blocks[-1]
    texts = []
    hook = last.register_forward_hook(lambda block, args, output: texts.append(output[0]))
    plain = made.generate()
    hook.remove()
    assert texts and all(text is None for text in texts)
    for tail in (0, 1):
        diffcache.wrap(made.pipe, "dbcache", head=1, tail=tail, threshold=0.0)
        assert torch.equal(made.generate(), plain)
        diffcache.wrap(made.pipe, "dbcache", head=1, tail=tail, mask=MASK)
        assert made.generate().isfinite().all()
        assert diffcache.report(made.pipe).calls == 10
        assert diffcache.report(made.pipe).compute_fraction == (sum(MASK) + 2) / 10


@pytest.mark.parametrize("method", ["fbcache", "easycache"])
@pytest.mark.parametrize(
    "name", ["SD3Transformer2DModel", "Flux2Transformer2DModel", "ZImageTransformer2DModel"]
)
def test_models_that_return_lists_or_take_other_names(bench, name, method):
    """Blocks whose outputs or arguments are not those of Flux raised a TypeError."""
    denoisers = bench("denoisers")
    model, arguments = denoisers.build(name), denoisers.caller(name, 2)
    scheduler = FlowMatchEulerDiscreteScheduler()
    diffcache.wrap(model, method, scheduler=scheduler, mask=MASK)
    scheduler.set_timesteps(len(MASK))
    for time in scheduler.timesteps:
        with torch.no_grad():
            output = model(**arguments(time.item()), return_dict=False)[0]
        rows = torch.stack(list(output))
        assert rows.isfinite().all()
        scheduler.step(rows, time, rows)
    assert diffcache.report(model).compute_fraction == sum(MASK) / len(MASK)


def test_freeu_does_not_write_into_the_cache(unet):
    """FreeU scales a feature in place, and scaled a cached one again at every skip."""
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    diffcache.wrap(unet.unet, "deepcache", scheduler=unet.scheduler, every=8)
    sample, text = noise(1, 4, 8, 8, seed=0), noise(1, 7, 32, seed=1)
    unet.scheduler.set_timesteps(8)
    outputs = []
    for time in unet.scheduler.timesteps:
        with torch.no_grad():
            outputs.append(unet.unet(sample, 500, encoder_hidden_states=text).sample)
        unet.scheduler.step(outputs[-1], time, sample)
    assert diffcache.report(unet.unet).compute_fraction == 1 / 8
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_repeated_timestep_is_a_step_of_its_own(unet, generate):
    """Steps were found by the value of their timestep, of which PNDM has one twice."""
    unet.scheduler = PNDMScheduler.from_config(unet.scheduler.config, skip_prk_steps=True)
    diffcache.wrap(unet, "deepcache", every=2)
    generate(unet, steps=10)
    assert len(set(unet.scheduler.timesteps.tolist())) < len(unet.scheduler.timesteps)
    mask = diffcache.report(unet).mask[:, 0].tolist()
    assert mask == [step % 2 == 0 for step in range(11)]


@pytest.mark.parametrize("kind, method", PIPELINES)
def test_enabling_twice_does_not_lose_the_original(make, generate, kind, method):
    """A second `enable` took the first one's patches for the originals."""
    pipe = make(kind)
    plain = generate(pipe, steps=8)
    for _ in range(2):
        diffcache.wrap(pipe, method, mask=MASK)
        generate(pipe, steps=8)
        diffcache.wrap(pipe, method, mask=MASK)
    diffcache.unwrap(pipe)
    diffcache.unwrap(pipe)
    assert torch.equal(generate(pipe, steps=8), plain)


@pytest.mark.parametrize("kind, method", PIPELINES)
def test_copy_of_a_cached_model_runs_its_own_weights(make, generate, kind, method):
    """A copy made while the cache was on went on to run the original's blocks."""
    pipe, copies = make(kind), []

    def duplicate(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            copies.append(copy.deepcopy(pipe.unet if kind == "unet" else pipe.transformer))
        return tensors

    diffcache.wrap(pipe, method, mask=MASK)
    generate(pipe, steps=8, callback_on_step_end=duplicate)
    other = make(kind, seed=7)
    wanted = generate(other, steps=8)
    theirs = other.unet if kind == "unet" else other.transformer
    copies[0].load_state_dict(theirs.state_dict())
    name = "unet" if kind == "unet" else "transformer"
    plain = make(kind)
    plain.register_modules(**{name: copies[0]})
    assert torch.equal(generate(plain, steps=8), wanted)


NO_OPS = [
    ("unet", "deepcache", {"every": 1}),
    ("unet", "adaptive", {"tolerance": 1e-12}),
    ("dit", "fbcache", {"threshold": 1e-12}),
    ("dit", "fora", {"every": 12, "protect": (12, 0)}),
]


@pytest.mark.parametrize("kind, method, options", NO_OPS)
def test_cache_that_does_nothing_says_so(make, generate, kind, method, options):
    """A cache that found nothing to skip was silent, and looked like one that works."""
    pipe = make(kind)
    plain = generate(pipe)
    diffcache.wrap(pipe, method, **options)
    assert torch.equal(generate(pipe), plain)
    report = diffcache.report(pipe)
    assert "nothing was skipped" in report.notes and report.compute_fraction == 1.0


def test_modules_that_a_model_lacks_are_reported(dit, generate):
    """Hooks that matched no module were silent as well."""
    diffcache.wrap(dit, "fora", roles=("temporal",))
    generate(dit)
    assert any("no module of the roles" in note for note in diffcache.report(dit).notes)
