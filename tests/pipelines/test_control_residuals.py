"""What control adds to a denoiser is in the cache once, and nobody's writes are."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import diffcache
from diffcache.methods import Method
from diffcache.policies import Mask
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.runtime.rows import map_leaves
from diffcache.sites import BlockStack, Modules, Output, UNetBranch

from .controls import Controlled, builder

# FluxControlNetModel itself builds what diffusers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


@pytest.fixture
def build(make: Callable, bench: Callable) -> Callable[[str], Controlled]:
    return builder(make, bench)


def repeated(
    controlled: Controlled, site: Any, steps: str, spoil: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """A call of the middle computed plainly, and the same one made at each of `steps`.

    A step is all, one or none of the rows, by its first letter. With `spoil`, whoever is given an
    output writes into it.
    """
    denoiser, scheduler = controlled.denoiser, controlled.pipe.scheduler
    seen: list[tuple[tuple, dict[str, Any]]] = []

    def keep(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(map_leaves((args, kwargs), _cloned))

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    controlled.generate()
    handle.remove()
    args, kwargs = seen[len(seen) // 2]

    @torch.no_grad()
    def call(given: dict[str, Any]) -> Tensor:
        again = map_leaves((args, given), _cloned)
        return denoiser(*again[0], **again[1])[0]

    expected = call(kwargs)
    bare = {name: None for name in kwargs if re.search(r"residual|control.*s(ample|tate)s$", name)}
    assert not torch.allclose(call(kwargs | bare), expected, rtol=1e-2)
    rows = range(len(expected))
    kinds = {"a": [True for _ in rows], "o": [not row for row in rows], "n": [False for _ in rows]}
    mask = tuple(tuple(kinds[step]) for step in steps)
    method = Method(site, Mask(mask), Reuse(), Guards.none())
    found = []
    with diffcache.wrapped(denoiser, method, scheduler=scheduler):
        scheduler.set_timesteps(len(mask))
        for t in scheduler.timesteps:
            output = call(kwargs)
            found.append(output.clone())
            scheduler.step(output, t, torch.zeros_like(output))
            if spoil:
                output.zero_()
        assert diffcache.report(denoiser).compute_fraction < 1
    return expected, found


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


UNET_SITES = {
    "output": Output(),
    "branch": UNetBranch(),
    "whole level": UNetBranch(depth=1, inner=0),
    "modules": Modules(),
}
DIT_SITES = {
    "output": Output(),
    "residual": Output(residual=True),
    "stack": BlockStack(),
    "one head block": BlockStack(head=1),
    "modules": Modules(),
}
RESIDUAL_CASES = [
    *(("stable", site) for site in UNET_SITES),
    *((name, site) for name in ("flux", "sd3") for site in DIT_SITES),
]


@pytest.mark.parametrize(("name", "site"), RESIDUAL_CASES)
def test_control_residuals_are_not_counted_twice(name, site, build):
    """Where inputs repeat, a skip gives what a full pass does."""
    sites = UNET_SITES if name == "stable" else DIT_SITES
    expected, found = repeated(build(name), sites[site], "anon")
    for output in found:
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


WRITERS = [
    ("freeu", "output"),
    ("freeu", "branch"),
    ("freeu", "whole level"),
    ("t2i", "output"),
    ("t2i", "branch"),
    ("t2i", "whole level"),
    ("flux", "output"),
    ("flux", "stack"),
    ("flux", "modules"),
]


@pytest.mark.parametrize(("writer", "site"), WRITERS)
def test_in_place_writes_do_not_reach_the_cache(writer, site, build):
    """FreeU scales features in place, UNets add an adapter's in place, and callers do as well."""
    controlled = build("stable" if writer == "freeu" else writer)
    if writer == "freeu":
        controlled.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    handle: Any = nullcontext()
    if writer == "flux":

        def write(_: Any, args: tuple) -> None:
            args[0].mul_(0.9)

        handle = controlled.denoiser.norm_out.register_forward_pre_hook(write)
    sites = DIT_SITES if writer == "flux" else UNET_SITES
    with handle:
        expected, found = repeated(controlled, sites[site], "annnon", spoil=True)
    for output in found:
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)
