"""Wrapped pipelines do not see each other, whatever they share."""

import threading
from typing import Any

import pytest
import torch

import diffcache

TOLERANCE = 0.9
STEPS = 16


@pytest.fixture
def alone(generate: Any) -> Any:
    """Latents and mask of a pipeline wrapped and run with nothing else around."""

    def run(pipe: Any, method: str = "adaptive", **options: Any) -> tuple[torch.Tensor, Any]:
        with diffcache.wrapped(pipe, method, **options):
            return generate(pipe, steps=STEPS), diffcache.report(pipe).mask.tolist()

    return run


@pytest.fixture
def sharer(denoiser_of, pipe: Any, make: Any) -> Any:
    """A second pipeline around the denoiser of `pipe`."""
    other = make("unet" if hasattr(pipe, "unet") else "dit")
    other.register_modules(
        **{"unet" if hasattr(pipe, "unet") else "transformer": denoiser_of(pipe)}
    )
    return other


def test_two_of_one_class(pipe, make, generate, alone, gate):
    other = make("unet" if hasattr(pipe, "unet") else "dit", seed=1)
    first, second = alone(pipe, tolerance=TOLERANCE), alone(other, "interval", every=4)
    diffcache.wrap(pipe, tolerance=TOLERANCE)
    diffcache.wrap(other, "interval", every=4)
    for each, (latents, mask) in ((pipe, first), (other, second), (pipe, first)):
        assert torch.equal(generate(each, steps=STEPS), latents)
        assert diffcache.report(each).mask.tolist() == mask
    diffcache.unwrap(other)
    assert torch.equal(generate(pipe, steps=STEPS), first[0])


def test_two_around_one_denoiser(pipe, sharer, generate, alone, gate):
    first, second = alone(pipe, tolerance=TOLERANCE), alone(sharer, "interval", every=4)
    diffcache.wrap(pipe, tolerance=TOLERANCE)
    diffcache.wrap(sharer, "interval", every=4)
    for each, (latents, mask) in ((pipe, first), (sharer, second), (pipe, first)):
        assert torch.equal(generate(each, steps=STEPS), latents)
        assert diffcache.report(each).mask.tolist() == mask


def test_plain_sharer_stays_plain(pipe, sharer, generate, gate):
    plain = generate(sharer, steps=STEPS)
    diffcache.wrap(pipe, tolerance=TOLERANCE)
    generate(pipe, steps=STEPS)
    assert diffcache.report(pipe).compute_fraction < 1
    assert torch.equal(generate(sharer, steps=STEPS), plain)


@pytest.mark.parametrize("inner_wrapped", [True, False], ids=["both wrapped", "inner plain"])
def test_nested_generations(pipe, sharer, generate, alone, gate, inner_wrapped):
    first = alone(pipe, tolerance=TOLERANCE)
    second = alone(sharer, "interval", every=4) if inner_wrapped else (generate(sharer), None)
    diffcache.wrap(pipe, tolerance=TOLERANCE)
    if inner_wrapped:
        diffcache.wrap(sharer, "interval", every=4)
    inner = []

    def callback(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step in (4, 9):
            inner.append(generate(sharer, steps=STEPS if inner_wrapped else 12))
        return tensors

    latents = generate(pipe, steps=STEPS, callback_on_step_end=callback)
    if inner_wrapped:
        assert torch.equal(latents, first[0])
        assert diffcache.report(pipe).mask.tolist() == first[1]
        assert diffcache.report(sharer).mask.tolist() == second[1]
    assert [torch.equal(found, second[0]) for found in inner] == [True, True]
    assert diffcache.report(pipe).mask.tolist() == first[1]
    assert diffcache.report(pipe).steps == STEPS


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "one denoiser"])
def test_threads(denoiser_of, pipe, sharer, make, generate, alone, gate, shared):
    other = sharer if shared else make("unet" if hasattr(pipe, "unet") else "dit", seed=1)
    expected = {
        id(pipe): alone(pipe, tolerance=TOLERANCE),
        id(other): alone(other, "interval", every=4),
    }
    diffcache.wrap(pipe, tolerance=TOLERANCE)
    diffcache.wrap(other, "interval", every=4)
    found: dict[int, list[Any]] = {id(pipe): [], id(other): []}
    barrier = threading.Barrier(2)

    def work(each: Any) -> None:
        barrier.wait(timeout=60)
        for _ in range(3):
            latents = generate(each, steps=STEPS)
            found[id(each)].append((latents, diffcache.report(each).mask.tolist()))

    threads = [threading.Thread(target=work, args=(each,)) for each in (pipe, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for key, (latents, mask) in expected.items():
        assert len(found[key]) == 3
        for other_latents, other_mask in found[key]:
            assert other_mask == mask
            assert torch.equal(other_latents, latents)
    assert not {"_compiled_call_impl", "forward"} & set(vars(denoiser_of(pipe)))


def test_thread_started_in_a_generation_is_outside_of_it(unet, generate):
    """A thread of the user's own that calls the denoiser gets it plain."""
    diffcache.wrap(unet, "interval", every=4)
    called, results = [], []
    unet.unet.register_forward_hook(lambda *_: called.append(threading.get_ident()))
    inputs = (torch.zeros(2, 4, 8, 8), torch.tensor(5), torch.zeros(2, 7, 32))

    def callback(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: results.append(unet.unet(*inputs).sample))
        thread.start()
        thread.join()
        return tensors

    generate(unet, steps=10, callback_on_step_end=callback)
    assert sum(ident != threading.get_ident() for ident in called) == 10
    assert all(torch.equal(result, results[0]) for result in results)
    assert diffcache.report(unet).compute_fraction < 1
