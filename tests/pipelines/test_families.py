"""Every site on pipelines of every kind of task: real classes, tiny random components."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch

import diffcache
from diffcache.sites import BlockStack

UNETS = ["freeu", "pag", "img2img", "inpaint", "inpaint of nine channels", "animatediff", "svd"]
TRANSFORMERS = [
    "sd3",
    "skip-layer guidance",
    "flux img2img",
    "flux kontext",
    "qwen edit",
    "wan",
    "wan of two transformers",
    "wan of a timestep a token",
    "wan image-to-video",
    "stable audio",
]

# Methods of each site, with options that make them never skip.
ANYWHERE = {"adaptive": {"tolerance": 0.0}, "fora": {"every": 1}, "pab": {"mask": [True]}}
ON_UNETS = {"deepcache": {"every": 1}}
ON_STACKS = {"fbcache": {"threshold": 0.0}, "interval": {"every": 1, "site": BlockStack()}}

# One method of each site.
PLACED = [
    *((name, method) for name in UNETS for method in ("adaptive", "deepcache", "fora")),
    *((name, method) for name in TRANSFORMERS for method in ("adaptive", "fbcache", "fora")),
]
DECIDING = [
    *((name, "adaptive", {"tolerance": 1e3}) for name in (*UNETS, *TRANSFORMERS)),
    *((name, "fbcache", {"threshold": 1e3}) for name in TRANSFORMERS),
]

HALF = [step % 2 == 0 for step in range(10)]
MIXED = [[step % 2 == 0, step % 3 == 0] for step in range(10)]


class Call(NamedTuple):
    """A denoiser call that was really made: its timestep, guidance branch and rows."""

    timestep: float
    branch: tuple
    rows: int


@contextmanager
def calls_of(family: Any) -> Iterator[list[Call]]:
    """Writes down the calls of the family's denoisers."""
    seen: list[Call] = []

    def note(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        _, sample, *_ = bound.values()
        text = bound["encoder_hidden_states"].double().sum().item()
        branch = (id(module), text, str(bound.get("skip_layers")))
        seen.append(Call(bound["timestep"].flatten()[0].item(), branch, len(sample)))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True) for module in family.denoisers
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@contextmanager
def runs_inside(family: Any, method: str) -> Iterator[list[torch.nn.Module]]:
    """Writes down when a layer runs that the method bypasses."""
    seen: list[torch.nn.Module] = []
    hooks = [
        _inside(module, method).register_forward_hook(lambda layer, *_: seen.append(layer))
        for module in family.denoisers
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def _inside(denoiser: torch.nn.Module, method: str) -> torch.nn.Module:
    layers = list(denoiser.named_modules())
    if method == "fora":
        return next(layer for path, layer in layers if path.endswith(".to_q"))
    deep = getattr(denoiser, "mid_block", None)
    if deep is None:
        *_, deep = (layer for layer in denoiser.children() if type(layer) is torch.nn.ModuleList)
        deep = deep[-1]
    return next(layer for layer in deep.modules() if not any(layer.children()))


def computed(calls: list[Call], mask: list[bool]) -> list[Call]:
    """Those of a plain pipeline's calls that the mask computes; a branch's first call always is."""
    timesteps = list(dict.fromkeys(call.timestep for call in calls))
    known: set[tuple] = set()
    kept = []
    for call in calls:
        if mask[timesteps.index(call.timestep)] or call.branch not in known:
            kept.append(call)
        known.add(call.branch)
    return kept


@pytest.mark.parametrize("name", [*UNETS, *TRANSFORMERS])
def test_never_skipping_is_bit_identical_and_unwrapping_is_plain(family, name):
    made = family(name)
    plain = made.generate()
    for method, options in (ANYWHERE | (ON_UNETS if made.is_unet else ON_STACKS)).items():
        diffcache.wrap(made.pipe, method, **options)
        assert torch.equal(made.generate(), plain), method
        report = diffcache.report(made.pipe)
        assert report.compute_fraction == 1.0 and "nothing was skipped" in report.notes
    for method, options in (ON_STACKS if made.is_unet else ON_UNETS).items():
        with pytest.raises(ValueError, match=r"diffcache\.wrap\(pipe, 'adaptive'\)"):
            diffcache.wrap(made.pipe, method, **options)
    diffcache.unwrap(made.pipe)
    assert torch.equal(made.generate(), plain)


@pytest.mark.parametrize("name, method", PLACED)
def test_every_second_step(family, name, method):
    made = family(name)
    with calls_of(made) as plain_calls, runs_inside(made, method) as plain_inside:
        plain = made.generate()
    wanted = computed(plain_calls, HALF)
    diffcache.wrap(made.pipe, method, mask=HALF)
    with calls_of(made) as calls, runs_inside(made, method) as inside:
        latents = made.generate()

    report = diffcache.report(made.pipe)
    assert latents.isfinite().all() and not torch.equal(latents, plain)
    assert calls == (wanted if method == "adaptive" else plain_calls)
    assert report.calls == len(calls)
    assert len(inside) * len(plain_calls) == len(plain_inside) * len(wanted)
    assert report.total == sum(call.rows for call in plain_calls)
    assert report.computed == sum(call.rows for call in wanted)
    expected = HALF[: len({call.timestep for call in plain_calls})]
    # The second of two transformers has nothing to go by at its first step.
    extra = {5} if "two" in name else set()
    assert report.mask.tolist() == [[row or i in extra] * 2 for i, row in enumerate(expected)]
    assert torch.equal(made.generate(), latents)


@pytest.mark.parametrize("name, method", PLACED)
def test_samples_of_a_batch_keep_their_own_mask(family, name, method):
    made = family(name)
    diffcache.wrap(made.pipe, method, mask=MIXED)
    together = made.generate()
    alone = []
    for sample in range(2):
        diffcache.wrap(made.pipe, method, mask=[row[sample] for row in MIXED])
        alone.append(made.generate())
    for sample in range(2):
        torch.testing.assert_close(together[sample], alone[sample][sample], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(together[sample], alone[1 - sample][sample], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, method, options", DECIDING)
def test_methods_decide_for_themselves(family, name, method, options):
    made = family(name)
    diffcache.wrap(made.pipe, method, **options)
    with calls_of(made) as calls:
        latents = made.generate()
    report = diffcache.report(made.pipe)
    assert latents.isfinite().all() and report.calls == len(calls)
    assert report.compute_fraction < 0.6
    assert torch.equal(made.generate(), latents)
