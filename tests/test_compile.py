"""Under torch.compile: the same outputs, one graph to compute and one to skip, then no more."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import diffcache
from diffcache.policies import ByRole, Interval
from diffcache.sites import BlockStack, Modules, Output, UNetBranch, recording
from diffcache.sites.block_ports import BlockPort
from diffcache.sites.ports import Port

STEPS = 8
MASK = [True, True, False, False, True, False, True, False]
SITES = {"output": Output(), "branch": UNetBranch(), "stack": BlockStack(), "modules": Modules()}


class Graphs(list):
    """A backend that runs graphs as they are and lists those that it was given."""

    def __call__(self, graph: torch.fx.GraphModule, example: Any) -> Any:
        self.append(graph)
        return graph.forward


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    # A trace of every graph is logged, which pytest would format and keep.
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch._dynamo.reset()
    counters.clear()
    yield Graphs()
    torch._dynamo.reset()


def name_of(pipe: Any) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


def compile_as(how: str, pipe: Any, **options: Any) -> None:
    module = getattr(pipe, name_of(pipe))
    if how == "repeated blocks":
        module.compile_repeated_blocks(fullgraph=True, **options)
    elif how == "compile()":
        module.compile(fullgraph=True, **options)
    else:
        setattr(pipe, name_of(pipe), torch.compile(module, fullgraph=True, **options))


def settled() -> Any:
    """Nothing may be compiled again inside of this."""
    return torch._dynamo.config.patch(error_on_recompile=True)


def thinned(dit: Any) -> Any:
    """With one block a list, as tracing takes its time."""
    model = dit.transformer
    model.transformer_blocks = model.transformer_blocks[:1]
    model.single_transformer_blocks = model.single_transformer_blocks[:1]
    return dit


HOWS = ("repeated blocks", "compile()", "torch.compile")
CELLS = [
    ("dit", "output", "torch.compile"),
    *[("dit", "stack", how) for how in HOWS],
    ("dit", "modules", "repeated blocks"),
    ("dit", "modules", "compile()"),
    ("unet", "branch", "repeated blocks"),
    ("unet", "branch", "torch.compile"),
]


@pytest.mark.parametrize(("kind", "site", "how"), CELLS)
def test_sites(make, generate, graphs, kind, site, how):
    method = diffcache.Method(site=SITES[site])
    plain = diffcache.wrap(make(kind), method, mask=MASK)
    expected = generate(plain, 2, STEPS)
    pipe = make(kind)
    # Each way of compiling comes before and after `wrap` on one of the sites.
    before = (len(how) + len(site)) % 2
    if before:
        compile_as(how, pipe, backend=graphs)
    diffcache.wrap(pipe, method, mask=MASK)
    if not before:
        compile_as(how, pipe, backend=graphs)

    torch.testing.assert_close(generate(pipe, 2, STEPS), expected)
    assert diffcache.report(pipe).timeline() == diffcache.report(plain).timeline()
    assert not counters["graph_break"]
    made = len(graphs)
    if how == "repeated blocks":
        # As many as without us, and with what is skipped inside of blocks twice as many.
        assert made <= {"unet": 1, "dit": 3}[kind] * (2 if site == "modules" else 1)
    else:
        assert made == (1 if site == "output" else 2)
    if made == 2:
        full, skip = (len(graph.graph.nodes) for graph in graphs)
        assert skip < 0.8 * full
    with settled():
        again = generate(pipe, 2, STEPS)
    torch.testing.assert_close(again, expected)
    assert len(graphs) == made

    module = getattr(pipe, name_of(pipe))
    diffcache.unwrap(pipe)
    inner = getattr(module, "_orig_mod", module)
    assert not any("forward" in vars(each) for each in inner.modules() if each is not module)


@pytest.mark.parametrize(("kind", "site"), [("dit", "stack"), ("unet", "branch")])
def test_what_is_not_computed_is_not_read(make, generate, graphs, monkeypatch, kind, site):
    method = diffcache.Method(site=SITES[site])
    expected = generate(diffcache.wrap(make(kind), method, mask=MASK), 1, STEPS, cfg=False)
    monkeypatch.setattr(
        recording,
        "placeholder",
        lambda meta: torch.full(meta[0], float("nan"), dtype=meta[1], device=meta[2]),
    )
    pipe = diffcache.wrap(make(kind), method, mask=MASK)
    compile_as("compile()", pipe, backend=graphs)
    torch.testing.assert_close(generate(pipe, 1, STEPS, cfg=False), expected)


def test_parents_that_write_in_place(make, generate, graphs):
    """FreeU scales what blocks return; graphs are made functional here, as for inductor."""
    method = diffcache.Method(site=UNetBranch())

    def free(pipe: Any) -> Any:
        pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        return diffcache.wrap(pipe, method, mask=MASK)

    expected, pipe = generate(free(make("unet")), 1, STEPS), free(make("unet"))
    compile_as("compile()", pipe, backend="aot_eager")
    torch.testing.assert_close(generate(pipe, 1, STEPS), expected)


def test_probe_behind_a_compiled_block(make, generate, graphs):
    plain = diffcache.wrap(make("dit"), "teacache", threshold=0.3)
    expected = generate(plain, 2, STEPS + 2)
    pipe = make("dit")
    compile_as("repeated blocks", pipe, backend=graphs)
    diffcache.wrap(pipe, "teacache", threshold=0.3)
    torch.testing.assert_close(generate(pipe, 2, STEPS + 2), expected)
    assert diffcache.report(pipe).timeline() == diffcache.report(plain).timeline()
    assert diffcache.report(pipe).compute_fraction < 1


def test_policies_that_ask_inside_of_one_graph_compute(dit, generate, graphs):
    expected = generate(dit, 2, STEPS + 2)
    compile_as("torch.compile", dit, backend=graphs)
    diffcache.wrap(dit, "fbcache", threshold=1e9)
    torch.testing.assert_close(generate(dit, 2, STEPS + 2), expected)
    assert any("compile_repeated_blocks() would" in n for n in diffcache.report(dit).notes)


def test_decisions_by_role_and_by_module(make, generate, graphs):
    policy = ByRole({"mlp": Interval(3), "self": Interval(2)})
    method = diffcache.Method(site=Modules(), policy=policy, guards=diffcache.Guards.none())
    expected = generate(diffcache.wrap(thinned(make("dit")), method), 1, 10, cfg=False)
    pipe = diffcache.wrap(thinned(make("dit")), method)
    compile_as("compile()", pipe, backend=graphs)
    torch.testing.assert_close(generate(pipe, 1, 10, cfg=False), expected)
    # All, the one, the other, and neither of two roles.
    assert len(graphs) == 4
    assert diffcache.report(pipe).compute_fraction < 0.8

    plain = generate(diffcache.unwrap(pipe), 1, 10, cfg=False)
    diffcache.wrap(pipe, "foresight")
    torch.testing.assert_close(generate(pipe, 1, 10, cfg=False), plain)
    assert any("decisions by module" in note for note in diffcache.report(pipe).notes)


def loop(model: Any, scheduler: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 7, 32, generator=generator)
    scheduler.set_timesteps(12)
    for t in scheduler.timesteps:
        with torch.no_grad():
            noise = model(sample, t, encoder_hidden_states=text, return_dict=False)[0]
        sample = scheduler.step(noise, t, sample, return_dict=False)[0]
    return sample


def test_bare_denoiser_compiled_after_wrap(unet, graphs):
    model, scheduler = unet.unet, unet.scheduler
    diffcache.wrap(model, "interval", every=4, scheduler=scheduler)
    expected = loop(model, scheduler)
    model.compile(backend=graphs, fullgraph=True)
    torch.testing.assert_close(loop(model, scheduler), expected)
    assert diffcache.report(model).calls == 6
    assert len(graphs) == 1
    compiled = model._compiled_call_impl
    diffcache.unwrap(model)
    assert model._compiled_call_impl is compiled

    diffcache.wrap(model, "interval", every=4, scheduler=scheduler)
    del model._compiled_call_impl
    other = torch.compile(model, backend=graphs, fullgraph=True)
    assert loop(other, scheduler).isfinite().all()
    assert any("diffcache.wrap(torch.compile(model)" in n for n in diffcache.report(model).notes)


@pytest.mark.parametrize(
    ("site", "how", "rows", "counts"),
    [
        ("output", "torch.compile", (1, 2), 3),
        ("output", "torch.compile", None, 4),
        # Three graphs of blocks; that of the head sees all rows, the others three sizes.
        ("stack", "repeated blocks", (1, 2), 7),
    ],
)
def test_nothing_is_compiled_after_warmup(make, generate, graphs, site, how, rows, counts):
    pipe = make("dit") if how == "repeated blocks" else thinned(make("dit"))
    method = diffcache.Method(site=SITES[site])
    # Without dynamic shapes every number of rows has a graph of its own.
    compile_as(how, pipe, backend=graphs, dynamic=False)
    tolerance = (0.1, 0.4, 1.6, None)
    diffcache.wrap(pipe, method, tolerance=tolerance, compute_rows=rows, protect=(3, 0))
    call = {
        "prompt_embeds": torch.randn(4, 7, 32),
        "pooled_prompt_embeds": torch.randn(4, 32),
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    state = torch.get_rng_state()
    diffcache.warmup(pipe, [call])
    assert torch.equal(torch.get_rng_state(), state)
    assert len(graphs) == counts
    with pytest.raises(ValueError, match="has not generated"):
        diffcache.report(pipe)

    with settled():
        for seed in range(2):
            generate(pipe, [seed, seed + 1, seed + 2, seed + 3], 20, cfg=False)
            report = diffcache.report(pipe)
            # Rows were found to be independent in the warm-up.
            assert not any("independent" in note for note in report.notes)
            sizes = set(report.mask.sum(1).tolist())
            assert sizes <= ({0, 1, 2, 4} if rows else set(range(5)))
            assert sizes - {0, 4}
    assert len(graphs) == counts


def broken(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("a bug of ours")


@pytest.mark.parametrize(
    ("kind", "site"), [("dit", "stack"), ("unet", "branch"), ("dit", "modules")]
)
def test_graph_of_a_skip_that_fails(make, generate, monkeypatch, graphs, kind, site):
    """The rest of the generation is computed."""
    monkeypatch.delenv("DIFFCACHE_STRICT")
    pipe = make(kind)
    expected = generate(pipe, 1, STEPS, cfg=False)
    diffcache.wrap(pipe, diffcache.Method(site=SITES[site]), mask=[True, True, False, False])
    monkeypatch.setattr(Port, "bridge", broken)
    monkeypatch.setattr(BlockPort, "bridge", broken)
    getattr(pipe, name_of(pipe)).compile(backend=graphs)
    torch.testing.assert_close(generate(pipe, 1, STEPS, cfg=False), expected)
    assert any("given up" in note for note in diffcache.report(pipe).notes)


@pytest.mark.slow
@pytest.mark.skipif(
    "DIFFCACHE_INDUCTOR" not in os.environ,
    reason="compiles C++ for half a minute; DIFFCACHE_INDUCTOR=1 runs it",
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_inductor(make, generate, graphs):
    method = diffcache.Method(site=BlockStack())
    plain, pipe = (diffcache.wrap(thinned(make("dit")), method, mask=MASK) for _ in range(2))
    expected = generate(plain, 1, STEPS, cfg=False)
    compile_as("compile()", pipe)
    torch.testing.assert_close(generate(pipe, 1, STEPS, cfg=False), expected, rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == 2
