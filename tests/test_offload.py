"""Weights that accelerate and diffusers move in and out: a skip moves none of what it bypasses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import accelerate.hooks
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks import group_offloading
from diffusers.hooks.group_offloading import GroupOffloadingConfig, ModuleGroup

import diffcache
from diffcache.sites.discovery import block_lists, denoisers
from diffcache.sites.modules import modules_of
from diffcache.sites.unet_levels import below

CPU = torch.device("cpu")
MASK = [True, True, False, False, True, False, True, False]
STEPS = len(MASK)


class Stream:
    """A stream for copies that do not arrive before somebody waits for them."""

    def __init__(self) -> None:
        self.copies: dict[ModuleGroup, Callable[[], None]] = {}

    def synchronize(self) -> None:
        for arrive in self.copies.values():
            arrive()
        self.copies.clear()


@dataclass
class Moves:
    """What was loaded, by step: for each load the modules whose weights it brought.

    Attributes:
        groups: those of diffusers that are loaded now.
    """

    steps: list[list[list[torch.nn.Module]]] = field(default_factory=lambda: [[]])
    groups: set[ModuleGroup] = field(default_factory=set)

    def load(self, *modules: torch.nn.Module) -> None:
        self.steps[-1].append(list(modules))

    def step(self, _pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.steps.append([])
        return tensors

    def of(self, parts: list[torch.nn.Module]) -> list[int]:
        """How many loads of each step brought nothing but weights of `parts`."""
        inside = {id(module) for part in parts for module in part.modules()}
        return [
            sum(all(id(module) in inside for module in load) for load in step)
            for step in self.steps[:STEPS]
        ]


def tensors_of(group: ModuleGroup) -> Iterator[torch.Tensor]:
    inside = (chain(module.parameters(), module.buffers()) for module in group.modules)
    return filter(
        torch.is_floating_point, chain(chain.from_iterable(inside), group.parameters, group.buffers)
    )


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    """Counts loads. Weights of a group that is not there, or not yet, are NaN."""
    found, kept = Moves(), {}
    set_tensor = accelerate.hooks.set_module_tensor_to_device
    pre_forward = accelerate.hooks.CpuOffload.pre_forward

    def set_and_count(module: Any, name: str, device: Any, value: Any = None, **rest: Any) -> None:
        if value is not None:
            found.load(module)
        set_tensor(module, name, device, value=value, **rest)

    def move_and_count(hook: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        found.load(module)
        return pre_forward(hook, module, *args, **kwargs)

    def onload(group: ModuleGroup) -> None:
        def arrive() -> None:
            for tensor in tensors_of(group):
                tensor.data = kept[tensor]

        if group.stream is not None:
            group.stream.synchronize()
        found.load(*group.modules or [group.onload_leader])
        found.groups.add(group)
        # Any other device than the one weights are on; there is only one here.
        group.offload_device = torch.device("meta")
        if group.non_blocking:
            group.stream.copies[group] = arrive
        else:
            arrive()

    def offload(group: ModuleGroup) -> None:
        if group.stream is not None:
            group.stream.copies.pop(group, None)
        found.groups.discard(group)
        group.offload_device = CPU
        for tensor in tensors_of(group):
            kept.setdefault(tensor, tensor.data)
            tensor.data = torch.full_like(tensor, float("nan"))

    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", set_and_count)
    monkeypatch.setattr(accelerate.hooks.CpuOffload, "pre_forward", move_and_count)
    monkeypatch.setattr(ModuleGroup, "_init_cpu_param_dict", lambda group: {})
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    return found


def offload_groups(pipe: Any, level: str, blocks: int = 1, streams: bool = False) -> None:
    (module,) = denoisers(pipe).values()
    config = GroupOffloadingConfig(
        onload_device=CPU,
        offload_device=CPU,
        offload_type=group_offloading.GroupOffloadingType(level),
        non_blocking=False,
        record_stream=False,
        low_cpu_mem_usage=False,
        num_blocks_per_group=blocks,
        stream=Stream() if streams else None,
    )
    # The public function refuses streams where there is no accelerator.
    group_offloading._apply_group_offloading(module, config)


OFFLOADS = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    # What enable_sequential_cpu_offload does to each component, on accelerators only.
    "sequential": lambda pipe: [
        cpu_offload(part, CPU) for part in (pipe.vae, *denoisers(pipe).values())
    ],
    "blocks": lambda pipe: offload_groups(pipe, "block_level"),
    "pairs of blocks": lambda pipe: offload_groups(pipe, "block_level", 2),
    "leaves": lambda pipe: offload_groups(pipe, "leaf_level"),
    "blocks, streams": lambda pipe: offload_groups(pipe, "block_level", streams=True),
    "leaves, streams": lambda pipe: offload_groups(pipe, "leaf_level", streams=True),
}


def blocks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [block for _, blocks in block_lists(model) for block in blocks]


# Pipeline, method, its options, and what a skip bypasses.
SITES = {
    "output": ("unet", "interval", {}, lambda model: [model]),
    "block stack": ("dit", "fbcache", {}, lambda model: blocks_of(model)[1:]),
    "ends computed": (
        "dit",
        "dbcache",
        {"head": 1, "tail": 2},
        lambda model: blocks_of(model)[1:-2],
    ),
    "UNet branch": ("unet", "deepcache", {}, lambda model: list(below(model, 0, 1).modules)),
    "modules": ("dit", "fora", {}, lambda model: list(modules_of(model).values())),
}


CASES = [
    (site, offload, first)
    for site in SITES
    for offload in OFFLOADS
    for first in (["wrap", "offload"] if site in ("output", "block stack") else ["offload"])
    # The modules of a block are never alone in a group of blocks.
    if site != "modules" or "blocks" not in offload
]


@pytest.mark.parametrize(("site", "offload", "first"), CASES)
def test_a_skip_moves_nothing_that_it_bypasses(make, generate, moves, site, offload, first):
    kind, method, options, bypassed = SITES[site]
    plain, pipe = make(kind), make(kind)
    call = {"steps": STEPS, "cfg": False}
    exact = generate(plain, **call)
    expected = generate(diffcache.wrap(plain, method, mask=MASK, **options), **call)
    assert not torch.equal(expected, exact)
    if first == "offload":
        OFFLOADS[offload](pipe)
    diffcache.wrap(pipe, method, mask=MASK, **options)
    if first == "wrap":
        OFFLOADS[offload](pipe)
    parts = bypassed(*denoisers(pipe).values())
    moves.steps[:] = [[]]
    found = generate(pipe, **call, callback_on_step_end=moves.step)
    assert torch.equal(found, expected)
    report = diffcache.report(pipe)
    assert report.mask[:, 0].tolist() == MASK
    assert not any("changed" in note for note in report.notes)
    loads = moves.of(parts)
    # Some pairs of blocks and the whole model are of bypassed and computed modules.
    assert loads[0] or offload in ("model", "pairs of blocks")
    # With streams, what runs before a bypassed part loads its weights, knowing of no skip.
    ahead = (len(parts) if site == "modules" else 1) if "streams" in offload else 0
    ahead = 0 if site == "output" else ahead
    assert all(done or count <= ahead for count, done in zip(loads, MASK, strict=True))
    assert not moves.groups

    diffcache.unwrap(pipe)
    assert torch.equal(generate(pipe, **call), exact)
    assert not moves.groups


MIXED = [[step, step or index == 3] for index, step in enumerate(MASK)]
DECIDING = {
    "rows apart": ("dbcache", {"head": 1, "tail": 2, "mask": MIXED}),
    "drafts rejected": ("speca", {"head": 1, "tail": 2, "base": 20.0}),
    "first block probed": ("teacache", {"threshold": 0.3}),
    "by module": ("foresight", {"gamma": 2.0, "warmup": 3}),
}


@pytest.mark.parametrize("offload", ["sequential", "pairs of blocks", "leaves", "blocks, streams"])
@pytest.mark.parametrize("case", DECIDING)
def test_offloaded_as_plain_whatever_decides(make, generate, moves, case, offload):
    method, options = DECIDING[case]
    plain, pipe = (diffcache.wrap(make("dit"), method, **options) for _ in range(2))
    OFFLOADS[offload](pipe)
    for _ in range(2):
        assert torch.equal(generate(pipe), generate(plain))
        report = diffcache.report(pipe)
        assert report.compute_fraction < 1
        assert report.notes == diffcache.report(plain).notes
        assert not moves.groups


@pytest.mark.parametrize("first", ["calibrate", "offload"])
def test_a_calibration_fits_weights_that_are_away(dit, generate, first):
    prompt = {"prompt_embeds": torch.ones(1, 7, 32), "pooled_prompt_embeds": torch.ones(1, 32)}
    settings = {"num_inference_steps": 12, "height": 16, "width": 16, "output_type": "latent"}
    if first == "offload":
        OFFLOADS["sequential"](dit)
    calibration = diffcache.calibrate(dit, [prompt], "magcache", **settings)
    if first == "offload":
        remove_hook_from_module(dit.transformer, recurse=True)
    else:
        OFFLOADS["sequential"](dit)
    diffcache.wrap(dit, "magcache", calibration=calibration)
    generate(dit, 1, cfg=False)
    assert not any("calibration" in note for note in diffcache.report(dit).notes)


def groups_on_cuda(**options: Any) -> Callable[[Any], None]:
    def offload(pipe: Any) -> None:
        pipe.unet.enable_group_offload(torch.device("cuda"), **options)

    return offload


ON_CUDA = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "pairs of blocks": groups_on_cuda(offload_type="block_level", num_blocks_per_group=2),
    "blocks, streams": groups_on_cuda(
        offload_type="block_level", num_blocks_per_group=1, use_stream=True
    ),
    "leaves, streams": groups_on_cuda(offload_type="leaf_level", use_stream=True),
    "leaves, recorded streams": groups_on_cuda(
        offload_type="leaf_level", use_stream=True, record_stream=True
    ),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("first", ["wrap", "offload"])
@pytest.mark.parametrize("offload", ON_CUDA)
@pytest.mark.parametrize("method", ["interval", "deepcache", "fora"])
def test_on_cuda(make, generate, method, offload, first):
    """The same values as on the CPU, and no group left on the device."""
    plain, pipe = diffcache.wrap(make("unet"), method, mask=MASK), make("unet")
    if first == "offload":
        ON_CUDA[offload](pipe)
    diffcache.wrap(pipe, method, mask=MASK)
    if first == "wrap":
        ON_CUDA[offload](pipe)
    for _ in range(2):
        found, expected = generate(pipe, steps=STEPS), generate(plain, steps=STEPS)
        torch.testing.assert_close(found.cpu(), expected, rtol=2e-2, atol=2e-2)
        assert diffcache.report(pipe).mask[:, 0].tolist() == MASK
    if offload != "model":
        assert not any(parameter.is_cuda for parameter in pipe.unet.parameters())
