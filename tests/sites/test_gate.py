"""The gate's private API is what it is taken for, and chains to whoever was there before."""

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import (
    ModelHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
)

import diffcache
from diffcache.sites.gate import _Gate, close_gate, lift_gates, lower_gates, open_gate


class Counting(ModelHook):
    """Counts the calls that pass it."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return args, kwargs


def test_module_calls_look_at_the_instance_first():
    module = torch.nn.Linear(2, 2)
    assert "_compiled_call_impl" in vars(torch.nn.Module)
    assert module._compiled_call_impl is None
    module.__dict__["_compiled_call_impl"] = lambda *args: ("gated", args)
    assert module(3) == ("gated", (3,))
    assert "_compiled_call_impl" not in module.__getstate__()
    assert list(module.state_dict()) == ["weight", "bias"]
    del module.__dict__["_compiled_call_impl"]
    assert module(torch.zeros(1, 2)).shape == (1, 2)


def test_gates_nest_and_leave_nothing(gate):
    module = torch.nn.Linear(2, 2)
    before = dict(vars(module))
    for _ in range(3):
        open_gate(module)
    for _ in range(2):
        close_gate(module)
    assert dict(vars(module)) != before
    assert module(torch.zeros(1, 2)).shape == (1, 2)
    close_gate(module)
    assert dict(vars(module)) == before
    close_gate(module)
    assert dict(vars(module)) == before


def test_lifted_gates_come_back(gate):
    module, shared = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = dict(vars(module))
    for each in (module, shared, shared):
        open_gate(each)
    gated = [dict(vars(each)) for each in (module, shared)]
    lifted = lift_gates([module, shared])
    # The other user of a shared module counts on its gate.
    assert [dict(vars(each)) for each in (module, shared)] == [before, gated[1]]
    lower_gates(lifted)
    assert [dict(vars(each)) for each in (module, shared)] == gated
    close_gate(module)
    assert dict(vars(module)) == before


def test_a_lifted_gate_comes_back_beside_one_that_was_opened_meanwhile(gate):
    module = torch.nn.Linear(2, 2)
    before = dict(vars(module))
    open_gate(module)
    lifted = lift_gates([module])
    open_gate(module)
    lower_gates(lifted)
    close_gate(module)
    assert dict(vars(module)) != before
    close_gate(module)
    assert dict(vars(module)) == before


def test_a_lifted_gate_leaves_who_replaced_it_alone():
    module = torch.nn.Linear(2, 2)
    open_gate(module)
    lifted = lift_gates([module])
    mine = module.__dict__["_compiled_call_impl"] = lambda x: x + 1
    lower_gates(lifted)
    assert module.__dict__["_compiled_call_impl"] is mine


def test_gate_left_alone_by_who_replaced_it():
    module = torch.nn.Linear(2, 2)
    open_gate(module)
    mine = module.__dict__["_compiled_call_impl"] = lambda x: x + 1
    close_gate(module)
    assert module.__dict__["_compiled_call_impl"] is mine
    assert module(1) == 2


@pytest.mark.parametrize("order", ["before", "after"])
def test_hooks_of_accelerate(denoiser_of, pipe, generate, gate, order):
    """A skipped step skips the hooks, with the transfers they make."""
    plain, hook = generate(pipe, cfg=False), Counting()
    if order == "after":
        diffcache.wrap(pipe, tolerance=0)
    add_hook_to_module(denoiser_of(pipe), hook)
    if order == "before":
        diffcache.wrap(pipe, tolerance=0)
    assert torch.equal(generate(pipe, cfg=False), plain)
    assert hook.calls == 12

    diffcache.wrap(pipe, "interval", every=4)
    generate(pipe, cfg=False)
    report = diffcache.report(pipe)
    assert report.calls == 6
    assert hook.calls == 12 + 6
    diffcache.unwrap(pipe)
    remove_hook_from_module(denoiser_of(pipe))
    assert torch.equal(generate(pipe, cfg=False), plain)
    assert not any(isinstance(value, _Gate) for value in vars(denoiser_of(pipe)).values())


def test_hooks_added_during_a_generation(denoiser_of, pipe, generate, gate):
    diffcache.wrap(pipe, "interval", every=4)
    hook, module = Counting(), denoiser_of(pipe)

    def callback(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            add_hook_to_module(module, SequentialHook(hook))
        if step == 8:
            remove_hook_from_module(module)
        return tensors

    assert generate(pipe, callback_on_step_end=callback).isfinite().all()
    assert hook.calls > 0
    assert diffcache.report(pipe).compute_fraction < 1
    generate(pipe)
    assert diffcache.report(pipe).timeline() == "███·█···█··█"


def test_offloading(denoiser_of, pipe, generate, gate):
    plain = generate(pipe)
    for module in (pipe.vae, denoiser_of(pipe)):
        cpu_offload(module, execution_device=torch.device("cpu"))
    assert next(denoiser_of(pipe).parameters()).is_meta
    assert torch.equal(generate(pipe), plain)
    diffcache.wrap(pipe, tolerance=0)
    assert torch.equal(generate(pipe), plain)
    diffcache.wrap(pipe, "interval", every=4)
    assert generate(pipe).isfinite().all()
    assert diffcache.report(pipe).timeline() == "███·█···█··█"


@pytest.fixture
def fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("compiled", ["compile() before", "compile() after", "assigned after"])
def test_compiled_denoiser(unet, generate, compiled):
    plain = generate(unet, steps=10)
    if compiled == "compile() before":
        unet.unet.compile(backend="eager")
    diffcache.wrap(unet, tolerance=0)
    if compiled == "compile() after":
        unet.unet.compile(backend="eager")
    elif compiled == "assigned after":
        unet.unet = torch.compile(unet.unet, backend="eager")
    impl = vars(unet.unet).get("_compiled_call_impl")
    torch.testing.assert_close(generate(unet, steps=10), plain, rtol=1e-3, atol=1e-3)

    diffcache.wrap(unet, "interval", every=4)
    assert generate(unet, steps=10).isfinite().all()
    report = diffcache.report(unet)
    assert report.timeline() == "███·█···██"
    assert report.calls == 6
    diffcache.unwrap(unet)
    assert vars(unet.unet).get("_compiled_call_impl") is impl
    torch.testing.assert_close(generate(unet, steps=10), plain, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("fresh_dynamo")
def test_block_stack_below_a_compiled_root_falls_back(dit, generate):
    """Dynamo goes past the gates of blocks; the output site then serves what it can."""
    dit.transformer = torch.compile(dit.transformer, backend="eager")
    diffcache.wrap(dit, "fbcache", threshold=1e9)
    assert generate(dit, steps=10, cfg=False).isfinite().all()
