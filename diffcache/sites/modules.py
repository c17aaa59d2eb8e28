"""Single modules by role: a skip keeps the blocks and bypasses attention and MLPs inside them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from diffcache.policies import ForecastError, LatentChange, ModuleChange, NoEvidence
from diffcache.runtime.names import Names
from diffcache.runtime.rows import as_index, blocks_of, merge, rows_first, tensor_leaves
from diffcache.runtime.turn import Turn

from . import ports
from .base import ELSEWHERE, Attachment, Site
from .discovery import plain_module
from .gathering import call_rows
from .offloading import Offloading
from .output import Output, OutputAttachment
from .recording import describe

ROLES = ("self", "cross", "temporal", "mlp")

_ATTENTION = re.compile(r"Attention(\dd)?$")
_MLP = re.compile(r"FeedForward|M(LP|lp)$|^GLUMB")
# Flux's single blocks have their MLP in pieces; the name of its first layer gives it away.
_MLP_NAME = re.compile(r"^(ff|ffn|mlp|feed_forward|proj_mlp)$")
_TEMPORAL = re.compile(r"motion_module|temporal|temp_attention")


@dataclass(frozen=True)
class Modules(Site):
    """Skips the attention and MLP modules inside a denoiser's blocks and forecasts their outputs.

    Modules are found by the names of their classes, and their roles by how they are called: "cross"
    is attention called with encoder hidden states of another sequence that gives the sample's
    sequence only, "temporal" is attention within the temporal or motion parts of a video model,
    "self" is all other attention, the joint attention of MMDiT and Flux with it, and "mlp" is a
    feed-forward network. A module that is called several times in a forward, or whose output is not
    of tensors with a batch axis, is left alone and computed.

    The policy may decide by role: its `groups` are then roles, and `[samples, roles]` its mask. One
    that reads `ModuleChange` decides on each module.

    Kept are the outputs of all those modules: tokens × width × modules × the predictor's anchors,
    for each guidance branch.

    Args:
        roles: the roles to skip; modules of others are computed.

    Raises:
        ValueError: a role is unknown, or none is given.
    """

    roles: tuple[str, ...] = ROLES
    provides = frozenset({NoEvidence, ForecastError, LatentChange, ModuleChange})

    def __post_init__(self) -> None:
        several = isinstance(self.roles, (list, tuple)) and self.roles
        if not several or any(role not in ROLES for role in self.roles):
            raise ValueError(f"roles={self.roles!r}: use one or more of {', '.join(ROLES)}")

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.roles)

    def check(self, denoiser: nn.Module) -> None:
        if not modules_of(denoiser):
            raise ValueError(
                f"{type(plain_module(denoiser)).__name__} has no attention or MLP module for the "
                f"module site; {ELSEWHERE}"
            )

    def attach(self, denoiser: nn.Module, handlers: dict[int, Callable]) -> Attachment:
        return _ModulesAttachment(self, denoiser, handlers)


def modules_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The attention and MLP modules of a denoiser, by path.

    Of nested attention modules the innermost counts, of nested MLPs the outermost.
    """
    found: dict[str, nn.Module] = {}
    for path, module in plain_module(denoiser).named_modules():
        parents = [other for other in found if path.startswith(f"{other}.")]
        if _is_mlp(path, module):
            if not any(_is_mlp(other, found[other]) for other in parents):
                found[path] = module
        elif _ATTENTION.search(type(module).__name__):
            for outer in parents:
                found.pop(outer)
            found[path] = module
    return found


def _is_mlp(path: str, module: nn.Module) -> bool:
    by_name = _MLP_NAME.match(path.rpartition(".")[2]) and not isinstance(module, nn.ModuleList)
    return bool(by_name or _MLP.search(type(module).__name__))


@dataclass
class _Spot:
    """What is known of a module: what it is at first sight, and its role once it was called."""

    path: str
    module: nn.Module
    names: Names
    role: str | None = None
    alone: bool = False

    def see(self, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Takes the role from a call and its output."""
        if _is_mlp(self.path, self.module):
            self.role = "mlp"
        elif _TEMPORAL.search(self.path):
            self.role = "temporal"
        else:
            bound = self.names(args, kwargs)
            other = bound.get("encoder_hidden_states")
            crosses = isinstance(other, Tensor) and other is not bound.get(self.names.first)
            self.role = "cross" if crosses and len(tensor_leaves(output)) == 1 else "self"


class _ModulesAttachment(Attachment):
    def __init__(self, site: Modules, denoiser: nn.Module, handlers: dict) -> None:
        self.key = id(denoiser)
        self.roles = site.roles
        self.fallback = OutputAttachment(denoiser)
        self.turn: Turn | None = None
        self.blind = False
        self.called: set[str] = set()
        self.spots = [
            _Spot(path, module, Names(module.forward))
            for path, module in modules_of(denoiser).items()
        ]
        served = [(spot.module, partial(self._serve, spot)) for spot in self.spots]
        self.ports = ports.attach(denoiser, served, handlers)
        self.offloading = Offloading(spot.module for spot in self.spots)

    def detach(self) -> None:
        ports.detach(self.ports, [spot.module for spot in self.spots])

    def run(self, turn: Turn) -> Any:
        # A graph for each set of modules that change would be no end of graphs.
        by_module = turn.run.method.policy.evidence is ModuleChange
        if self.blind or (self.ports is not None and by_module):
            return self._without_modules(turn)
        if not any(turn.can_forecast(spot.path) for spot in self.spots):
            turn.compute_all()
        elif self.ports is not None:
            return self._run_compiled(turn)
        self.turn = turn
        self.called.clear()
        try:
            with self.ports.opened() if self.ports is not None else nullcontext():
                output = turn.invoke(turn.args, turn.kwargs)
        finally:
            self.turn = None
            self.offloading.restore()
        played = {spot.role for spot in self.spots if spot.role in self.roles and not spot.alone}
        if turn.run.method.policy.groups:
            turn.run.decisions.present |= played
        if not played:
            self.blind = True
        elif alone := sum(spot.alone for spot in self.spots):
            turn.run.note(
                f"{alone} of {len(self.spots)} modules run several times a call, or without a "
                "batch axis, and stay computed"
            )
        return output

    def _run_compiled(self, turn: Turn) -> Any:
        """Serves a call whose modules are inside of compiled regions."""
        with self.ports.set_for(turn):
            played = [
                (port, spot)
                for port, spot in zip(self.ports.all, self.spots, strict=True)
                if spot.role in self.roles and not spot.alone
            ]
            for port, spot in played:
                mask = turn.mask_of(spot.path, spot.role)
                port.keep = all(mask) or not turn.can_forecast(spot.path)
                if not port.keep:
                    port.stand_in = turn.lane.memory[spot.path].fill(turn.forecast(spot.path))
            output = turn.invoke(turn.args, turn.kwargs)
            for port, spot in played:
                if port.output is not None:
                    values = [rows_first(leaf, turn.rows) for leaf in tensor_leaves(port.output)]
                    turn.remember(spot.path, values, [True] * turn.rows, spot.role)
        return output

    def _without_modules(self, turn: Turn) -> Any:
        """Serves a denoiser whose modules' calls do not pass our gates, or not one by one."""
        policy = turn.run.method.policy
        if self.ports is not None and policy.evidence is ModuleChange:
            turn.compute_all()
            turn.run.note(
                "computed in full: decisions by module would take a compiled graph for each set of "
                "modules that comes up"
            )
        elif policy.groups or policy.evidence not in Output.provides:
            turn.compute_all()
            turn.run.note("computed in full: no module of the roles to skip could be observed")
        else:
            turn.run.note(
                "no module of the roles to skip could be observed, so whole outputs are forecast"
            )
        return self.fallback.run(turn)

    def _serve(self, spot: _Spot, plain: Callable, args: tuple, kwargs: dict) -> Any:
        turn = self.turn
        if turn is None:
            return plain(*args, **kwargs)
        turn.in_model = False
        output = self._play(turn, spot, plain, args, kwargs)
        turn.in_model = turn.full
        return output

    def _play(self, turn: Turn, spot: _Spot, plain: Callable, args: tuple, kwargs: dict) -> Any:
        """What stands for a call of the module."""
        # A module that is called again would mix the values of several places.
        if spot.path in self.called and not spot.alone:
            spot.alone = True
            turn.lane.drop(spot.path)
        self.called.add(spot.path)
        if spot.alone or (spot.role is not None and spot.role not in self.roles):
            return turn.compute(plain, *args, **kwargs)
        mask = turn.mask if spot.role is None else turn.mask_of(spot.path, spot.role)
        if all(mask) or spot.role is None or not turn.can_forecast(spot.path):
            output = turn.compute(plain, *args, **kwargs)
            self._keep(turn, spot, args, kwargs, output)
            return output
        values = turn.forecast(spot.path)
        if any(mask):
            index = as_index(mask)
            computed = call_rows(plain, args, kwargs, turn.rows, index)
            for part, whole in zip(tensor_leaves(computed), values, strict=True):
                merge(rows_first(part, len(index)), whole, index)
            turn.remember(spot.path, values, mask, spot.role)
        else:
            self.offloading.pass_over(spot.module)
        return turn.lane.memory[spot.path].fill(values)

    def _keep(self, turn: Turn, spot: _Spot, args: tuple, kwargs: dict, output: Any) -> None:
        """Remembers a full output, or leaves the module alone if its rows cannot be told apart."""
        entry, leaves = tensor_leaves((args, kwargs))[0], tensor_leaves(output)
        if not leaves or not all(blocks_of(leaf, turn.rows) for leaf in (entry, *leaves)):
            spot.alone = True
            return
        if spot.role is None:
            spot.see(args, kwargs, output)
        if spot.role in self.roles:
            turn.lane.memory[spot.path] = describe(output)
            values = [rows_first(leaf, turn.rows) for leaf in leaves]
            turn.remember(spot.path, values, [True] * turn.rows, spot.role)
