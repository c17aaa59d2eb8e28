"""What diffusers' group offloading does in a module's call, where the module is bypassed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import nn


class Offloading:
    """The groups that the calls of `modules` load and send back.

    A group is loaded when its first module is called, or ahead by the call before, and sent back
    when its last one returns. A bypassed first module leaves that to whichever of its group is
    called; a bypassed last one has the group sent back at once. Modules without groups cost
    nothing.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._hooked = {id(module): found for module in modules if (found := _hooked(module))}
        self._leaderless: list[tuple[Any, nn.Module]] = []

    def pass_over(self, module: nn.Module) -> None:
        """Takes in that `module` is bypassed, and sends back what was loaded for it."""
        for inner, group in self._hooked.get(id(module), ()):
            if inner is group.offload_leader and _is_loaded(group):
                group.offload_()
            if inner is group.onload_leader:
                # diffusers makes the first one called the leader of a group without any.
                group.onload_leader = None
                self._leaderless.append((group, inner))

    def restore(self) -> None:
        """Ends a call of the denoiser: groups are led as they were before it."""
        # The last one first: a group that lost its leader twice had the first one.
        while self._leaderless:
            group, leader = self._leaderless.pop()
            group.onload_leader = leader


def _hooked(module: nn.Module) -> list[tuple[nn.Module, Any]]:
    """The modules in `module` that group offloading hooks, each with its group."""
    registries = ((inner, inner.__dict__.get("_diffusers_hook")) for inner in module.modules())
    hooks = (
        (inner, registry.get_hook("group_offloading"))
        for inner, registry in registries
        if registry is not None
    )
    return [(inner, hook.group) for inner, hook in hooks if hook is not None]


def _is_loaded(group: Any) -> bool:
    inside = (module.parameters() for module in group.modules)
    first = next(chain(*inside, group.parameters, group.buffers), None)
    return first is not None and first.device != group.offload_device
