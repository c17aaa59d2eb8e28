"""ControlNets do not run where the denoiser does not, and what they give is used as it should."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import diffcache
from diffcache import wrapping
from diffcache.runtime import checking
from diffcache.runtime.history import History
from diffcache.runtime.promises import Promise
from diffcache.runtime.rows import leaves
from diffcache.sites import BlockStack, UNetBranch
from diffcache.sites.helpers import helpers
from diffcache.sites.recording import Recording
from diffcache.sites.unet_branch import _BranchAttachment as BranchAttachment

from .controls import ADAPTERS, NETS, STEPS, Controlled, builder

# FluxControlNetModel itself builds what diffusers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

STEP_MASK = [True, True, False, True, False, False, True, True]
MASK = [[computed] * 2 for computed in STEP_MASK]
COMPUTED = sum(STEP_MASK)


@pytest.fixture
def build(make: Callable, bench: Callable) -> Callable[[str], Controlled]:
    return builder(make, bench)


@pytest.fixture
def left_running(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Generates while helpers run in every step."""

    def generate(controlled: Controlled, **options: Any) -> Tensor:
        with monkeypatch.context() as patch, controlled.counted() as runs:
            patch.setattr(wrapping, "helpers", lambda pipe: [])
            found = controlled.generate(**options)
        assert min(runs) >= STEPS
        return found

    return generate


def only_values(denoiser: torch.nn.Module) -> Any:
    """Makes sure that the denoiser itself is given no promise."""

    def look(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        assert not any(isinstance(leaf, Promise) for leaf in leaves((args, kwargs)))

    return denoiser.register_forward_pre_hook(look, with_kwargs=True)


@pytest.mark.parametrize("name", NETS)
def test_nets_run_with_the_denoiser(name, build, left_running):
    controlled = build(name)
    diffcache.wrap(controlled.pipe, mask=MASK)
    with controlled.counted() as runs:
        with only_values(controlled.denoiser):
            found = controlled.generate()
        again = controlled.generate()
    assert runs == [2 * COMPUTED] * len(runs)
    assert torch.equal(again, found)
    assert torch.equal(left_running(controlled), found)
    assert diffcache.report(controlled.pipe).steps == STEPS


@pytest.mark.parametrize("name", [*NETS, *ADAPTERS])
def test_never_skipping_is_bit_identical_and_unwrapping_is_plain(name, build):
    controlled = build(name)
    plain = controlled.generate()
    diffcache.wrap(controlled.pipe, mask=[[True] * 2])
    assert torch.equal(controlled.generate(), plain)
    diffcache.wrap(controlled.pipe, mask=MASK)
    assert not torch.equal(controlled.generate(), plain)
    diffcache.unwrap(controlled.pipe)
    with controlled.counted() as runs:
        assert torch.equal(controlled.generate(), plain)
    assert runs == [1 if name in ADAPTERS else STEPS] * len(runs)
    assert not any("_compiled_call_impl" in vars(net) for net in helpers(controlled.pipe))


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_run_as_ever(name, build):
    controlled = build(name)
    assert helpers(controlled.pipe) == []
    diffcache.wrap(controlled.pipe, mask=MASK)
    with controlled.counted() as runs:
        found = controlled.generate()
        assert torch.equal(controlled.generate(), found)
    assert runs == [2] * len(runs)
    assert diffcache.report(controlled.pipe).compute_fraction < 1


def test_helpers_are_found(build):
    assert [type(net).__name__ for net in helpers(build("two").pipe)] == ["MultiControlNetModel"]
    assert [type(net).__name__ for net in helpers(build("flux").pipe)] == ["FluxControlNetModel"]


@pytest.mark.parametrize("name", ["stable", "flux"])
def test_rows_that_differ(name, build, left_running, gate):
    """A net runs in full where any row computes."""
    controlled = build(name)
    mask = [row[:] for row in MASK]
    mask[2] = [True, False]
    mask[6] = [False, True]
    diffcache.wrap(controlled.pipe, mask=mask)
    with controlled.counted() as runs:
        found = controlled.generate()
    assert runs == [sum(any(row) for row in mask)]
    assert torch.equal(left_running(controlled), found)
    assert diffcache.report(controlled.pipe).mask.tolist() == mask


@pytest.mark.parametrize("name", ["stable", "guess", "flux"])
def test_coupled_rows_are_computed_after_all(name, build, left_running, monkeypatch):
    controlled = build(name)
    monkeypatch.setattr(checking, "_agree", lambda *_: False)
    mask = [row[:] for row in MASK]
    mask[2] = mask[4] = [True, False]
    diffcache.wrap(controlled.pipe, mask=mask)
    with controlled.counted() as runs:
        found = controlled.generate()
    report = diffcache.report(controlled.pipe)
    assert any("couples the rows" in note for note in report.notes)
    assert runs == [COMPUTED + 2] == [int(report.mask[:, 0].sum())]
    diffcache.wrap(controlled.pipe, mask=mask)
    assert torch.equal(left_running(controlled), found)


@pytest.mark.parametrize("name", ["stable", "guess"])
def test_another_prompt_is_computed_after_all(name, build, left_running):
    """The step's decision is to skip, but no earlier call has the prompt."""
    controlled = build(name)

    def change(pipe: Any, step: int, t: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": given["prompt_embeds"] * 1.5} if step == 3 else {}

    options = {
        "callback_on_step_end": change,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    diffcache.wrap(controlled.pipe, mask=MASK)
    with controlled.counted() as runs:
        found = controlled.generate(**options)
    assert runs == [COMPUTED + 1]
    assert any("continued no earlier one" in n for n in diffcache.report(controlled.pipe).notes)
    assert torch.equal(left_running(controlled, **options), found)


@pytest.mark.parametrize("name", ["stable", "guess", "two", "flux"])
def test_a_cache_given_up_is_computed_after_all(name, build, monkeypatch):
    controlled = build(name)
    plain = controlled.generate()
    monkeypatch.delenv("DIFFCACHE_STRICT")

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(History, "forecast", broken)
    diffcache.wrap(controlled.pipe, mask=MASK)
    with controlled.counted() as runs, only_values(controlled.denoiser):
        assert torch.equal(controlled.generate(), plain)
    assert runs == [STEPS] * len(runs)
    assert any("a bug of ours" in note for note in diffcache.report(controlled.pipe).notes)


class Mine(Exception):
    """An error of the user's net."""


@pytest.mark.parametrize("at", [0, 3], ids=["first run", "late run"])
def test_errors_of_the_net_pass(build, monkeypatch, at):
    controlled = build("stable")
    plain = controlled.generate()
    monkeypatch.delenv("DIFFCACHE_STRICT")
    runs: list[None] = []

    def hook(*_: Any) -> None:
        runs.append(None)
        if len(runs) == at + 1:
            raise Mine

    diffcache.wrap(controlled.pipe, mask=MASK)
    handle = next(controlled.nets[0].children()).register_forward_pre_hook(hook)
    with pytest.raises(Mine):
        controlled.generate()
    assert len(runs) == at + 1
    assert not any("given up" in note for note in diffcache.report(controlled.pipe).notes)
    handle.remove()
    diffcache.unwrap(controlled.pipe)
    assert torch.equal(controlled.generate(), plain)


@pytest.mark.parametrize("name", ["stable", "guess"])
def test_samplers_with_two_evaluations_a_step(name, build, left_running):
    controlled = build(name)
    pipe = controlled.pipe
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    diffcache.wrap(pipe, "interval", every=3)
    with controlled.counted() as runs:
        found = controlled.generate()
    report = diffcache.report(pipe)
    assert runs == [report.calls]
    assert report.compute_fraction < 0.6
    assert torch.equal(left_running(controlled), found)


@pytest.mark.parametrize("name", ["guess", "stable"])
@pytest.mark.parametrize("mode", ["inference", "autocast"])
def test_modes_of_torch(name, mode, build, left_running):
    controlled = build(name)
    diffcache.wrap(controlled.pipe, mask=MASK)
    autocast = mode == "autocast"
    with torch.autocast("cpu", torch.bfloat16) if autocast else torch.inference_mode():
        with controlled.counted() as runs:
            found = controlled.generate()
        assert runs == [COMPUTED]
        assert torch.equal(left_running(controlled), found)


def test_methods_that_decide_from_evidence(build, left_running):
    controlled = build("stable")
    diffcache.wrap(controlled.pipe, "adaptive", tolerance=1e6, max_consecutive_skips=1)
    with controlled.counted() as runs:
        found = controlled.generate(num_inference_steps=12)
    report = diffcache.report(controlled.pipe)
    assert runs == [report.calls]
    assert report.compute_fraction < 1
    assert torch.equal(left_running(controlled, num_inference_steps=12), found)


@pytest.mark.parametrize(
    ("name", "method"),
    [("stable", "deepcache"), ("stable", "fora"), ("flux", "fbcache"), ("sd3", "fora")],
)
def test_other_sites_leave_helpers_running(name, method, build, left_running):
    controlled = build(name)
    diffcache.wrap(controlled.pipe, method, mask=MASK)
    with controlled.counted() as runs, only_values(controlled.denoiser):
        found = controlled.generate()
    assert runs == [STEPS]
    assert diffcache.report(controlled.pipe).compute_fraction < 1
    assert torch.equal(left_running(controlled), found)


def blind(attachment: Any, *_: Any) -> None:
    """Settles that the parts cannot be bypassed."""
    attachment.blind = True


@pytest.mark.parametrize(
    ("name", "site", "settling"),
    [("flux", BlockStack(), Recording), ("stable", UNetBranch(), BranchAttachment)],
)
def test_sites_that_fall_back_to_whole_outputs_stop_helpers(
    name, site, settling, build, left_running, monkeypatch
):
    controlled = build(name)
    monkeypatch.setattr(settling, "settle" if settling is Recording else "_settle", blind)
    diffcache.wrap(controlled.pipe, "interval", site=site, mask=STEP_MASK)
    with controlled.counted() as runs:
        found = controlled.generate()
    report = diffcache.report(controlled.pipe)
    assert runs == [int(report.mask.any(1).sum())]
    assert runs[0] < STEPS
    assert torch.equal(left_running(controlled), found)


@pytest.mark.parametrize(("name", "method"), [("stable", "deepcache"), ("flux", "fora")])
def test_caches_that_outgrow_their_limit_stop_helpers(name, method, build, left_running):
    controlled = build(name)
    diffcache.wrap(controlled.pipe, method, mask=MASK, max_cache_bytes=9000)
    with controlled.counted() as runs:
        found = controlled.generate()
    report = diffcache.report(controlled.pipe)
    assert any("only whole outputs were kept" in note for note in report.notes)
    assert runs == [int(report.mask.any(1).sum())]
    assert runs[0] < STEPS
    assert torch.equal(left_running(controlled), found)


def test_a_draft_with_control_keeps_its_prefix(build):
    controlled = build("stable")
    plain = controlled.generate()
    diffcache.wrap(controlled.pipe, mask=MASK)
    with diffcache.request(keep_prefix=True) as run, controlled.counted() as runs:
        draft = controlled.generate()
    assert runs == [COMPUTED] and not torch.equal(draft, plain)
    with torch.random.fork_rng():
        assert torch.equal(run.refine().images, plain)
    assert run.report.prefix == STEP_MASK.index(False) * run.report.rows
