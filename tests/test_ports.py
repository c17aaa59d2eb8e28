"""What modules inside of compiled regions have in place of their `forward`, and for how long."""

import copy
import logging
import pickle
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import diffcache
from diffcache.policies import ByRole, Interval
from diffcache.sites import BlockStack, Modules
from diffcache.sites.ports import Port, Ports

STEPS = 8
MASK = [True, True, False, False, True, False, True, False]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A trace of every graph is logged, which pytest would format and keep.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def unused(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("called")


def test_ports_leave_a_forward_that_is_not_theirs(dit):
    first, second = list(dit.transformer.transformer_blocks)[:2]
    ports = Ports([Port(first, unused), Port(second, unused)], nullcontext())
    with ports.opened():
        first.forward = unused
        del second.__dict__["forward"]
    assert vars(first)["forward"] is unused
    with pytest.raises(RuntimeError, match="was hooked"), ports.opened():
        pass
    assert vars(first).pop("forward") is unused
    assert "forward" not in vars(second)


def test_what_a_callback_copies_is_plain(make, generate):
    method = diffcache.Method(site=BlockStack())
    expected = generate(diffcache.wrap(make("dit"), method, mask=MASK), 1, STEPS, cfg=False)
    pipe, copies = diffcache.wrap(make("dit"), method, mask=MASK), []
    pipe.transformer.compile_repeated_blocks(backend="eager")

    def copied(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        block = pipe.transformer.transformer_blocks[1]
        copies.extend([copy.deepcopy(block), pickle.loads(pickle.dumps(block))])
        return tensors

    call = {"cfg": False, "callback_on_step_end": copied}
    torch.testing.assert_close(generate(pipe, 1, STEPS, **call), expected)
    assert len(copies) == 2 * STEPS
    assert not any("forward" in vars(each) for block in copies for each in block.modules())


@pytest.mark.parametrize("wrapped", [False, True])
def test_threads_that_share_a_compiled_denoiser(make, generate, wrapped):
    """One that skips inside of the graph, and one that does not, or skips others."""
    first, method = make("dit"), diffcache.Method(site=BlockStack())
    second = type(first)(**first.components)
    second.scheduler = copy.deepcopy(first.scheduler)
    second.set_progress_bar_config(disable=True)
    first.transformer.compile(backend="eager")
    diffcache.wrap(first, method, mask=MASK)
    if wrapped:
        diffcache.wrap(second, method, mask=[True, True, True, False, False, True, False, True])
    pipes = {first: [], second: []}
    expected = {pipe: generate(pipe, 1, STEPS, cfg=False) for pipe in pipes}
    together = threading.Barrier(2)

    def run(pipe: Any) -> None:
        together.wait()
        pipes[pipe] = [generate(pipe, 1, STEPS, cfg=False) for _ in range(8)]

    threads = [threading.Thread(target=run, args=(pipe,)) for pipe in pipes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pipe, found in pipes.items():
        assert len(found) == 8
        for latents in found:
            torch.testing.assert_close(latents, expected[pipe])
    assert not any("forward" in vars(module) for module in first.transformer.modules())


def test_hooks_that_a_callback_adds_end_the_skips(make, generate, monkeypatch):
    monkeypatch.delenv("DIFFCACHE_STRICT")
    pipe = make("dit")
    plain = generate(pipe, 1, STEPS, cfg=False)
    pipe.transformer.compile(backend="eager")
    diffcache.wrap(pipe, diffcache.Method(site=BlockStack()), mask=[True, True, True, False])

    def hooked(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        block = pipe.transformer.transformer_blocks[1]
        block.forward = block.forward
        return tensors

    found = generate(pipe, 1, STEPS, cfg=False, callback_on_step_end=hooked)
    torch.testing.assert_close(found, plain)
    assert any("was hooked" in note for note in diffcache.report(pipe).notes)


def test_warmup_of_decisions_by_role_compiles_every_pattern(make, generate):
    policy = ByRole({"mlp": Interval(3), "self": Interval(2)})
    method = diffcache.Method(site=Modules(), policy=policy, guards=diffcache.Guards.none())
    pipe = make("dit")
    model = pipe.transformer
    model.transformer_blocks = model.transformer_blocks[:1]
    model.single_transformer_blocks = model.single_transformer_blocks[:1]
    graphs = []

    def listing(graph: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model.compile(backend=listing)
    diffcache.wrap(pipe, method)
    call = {
        "prompt_embeds": torch.randn(1, 7, 32),
        "pooled_prompt_embeds": torch.randn(1, 32),
        "num_inference_steps": 10,
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    diffcache.warmup(pipe, [call])
    # All, the one, the other, and neither of two roles.
    assert len(graphs) == 4
    generate(pipe, 1, 10, cfg=False)
    assert len(graphs) == 4
    assert diffcache.report(pipe).compute_fraction < 0.8
