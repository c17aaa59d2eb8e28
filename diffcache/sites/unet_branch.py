"""The deep part of a UNet: a skip runs the outermost layers and bridges everything below them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from diffcache.options import check_count
from diffcache.policies import ForecastError, LatentChange, NoEvidence
from diffcache.runtime.rows import blocks_of, rows_first, tensor_leaves
from diffcache.runtime.turn import Turn

from . import ports
from .base import ELSEWHERE, Attachment, Site
from .discovery import is_called, is_unet, plain_module
from .gathering import bridged, scattered
from .offloading import Offloading
from .output import OutputAttachment
from .recording import Described, describe
from .unet_levels import below


@dataclass(frozen=True)
class UNetBranch(Site):
    """Bypasses all of a UNet but its outermost levels.

    The last module that is bypassed gives the deep feature, cached or forecast; all others give
    placeholders, which only bypassed modules take in. Residuals that the parent adds between
    blocks (ControlNet, T2I-Adapter) are added to what is computed, and are part of the feature as
    it was computed.

    Args:
        depth: levels that are always computed whole, on the way down and up; blocks on the way
            down that have no counterpart on the way up are, too.
        inner: layers of the next level that are always computed: the last `inner` layers (resnet
            and attention) on the way up, with the first `inner - 1` on the way down, whose skips
            they take; the topmost takes what enters the level. More layers than the level has
            mean all of them. A level whose layers take no skip each counts as a whole. DeepCache's
            `cache_branch_id` b in a UNet of two layers a level is depth=b // 3, inner=b % 3 + 1.

    One tensor of the level's size is kept for each guidance branch and anchor of the predictor.
    """

    depth: int = 0
    inner: int = 1
    provides = frozenset({NoEvidence, ForecastError, LatentChange})

    def __post_init__(self) -> None:
        check_count("depth", self.depth, 0)
        check_count("inner", self.inner, 1)
        if self.depth + self.inner == 0:
            raise ValueError(
                "depth=0, inner=0: something has to stay computed; try depth=0, inner=1"
            )

    def check(self, denoiser: nn.Module) -> None:
        name = type(plain_module(denoiser)).__name__
        if not is_unet(denoiser):
            raise ValueError(f"{name} is no UNet, so it has no deep branch to bypass; {ELSEWHERE}")
        unet = plain_module(denoiser)
        levels = len(unet.up_blocks)
        if len(unet.down_blocks) < levels or self.depth >= levels:
            raise ValueError(
                f"UNetBranch(depth={self.depth}) does not fit {name}, which has "
                f"{len(unet.down_blocks)} levels on the way down and {levels} on the way up; "
                f"use depth <= {levels - 1}, or diffcache.wrap(pipe, 'adaptive')"
            )
        if not all(map(is_called, (*unet.down_blocks, *unet.up_blocks))):
            raise ValueError(
                f"{name} calls the layers of its levels one by one, so there is no level to "
                f"bypass; {ELSEWHERE}"
            )

    def attach(self, denoiser: nn.Module, handlers: dict[int, Callable]) -> Attachment:
        return _BranchAttachment(self, denoiser, handlers)


class _BranchAttachment(Attachment):
    def __init__(self, site: UNetBranch, denoiser: nn.Module, handlers: dict) -> None:
        self.key = id(denoiser)
        self.below = below(denoiser, site.depth, site.inner)
        self.fallback = OutputAttachment(denoiser)
        self.turn: Turn | None = None
        self.sink: int | None = None
        self.blind = False
        self.order: list[int] = []
        self.feature: list[Tensor] | None = None
        served = [(module, partial(self._serve, module)) for module in self.below.modules]
        self.ports = ports.attach(denoiser, served, handlers)
        self.offloading = Offloading(self.below.modules)

    def detach(self) -> None:
        ports.detach(self.ports, self.below.modules)

    def run(self, turn: Turn) -> Any:
        if self.blind:
            return self.fallback.run(turn)
        recording = self.sink is None
        if recording or not turn.can_forecast("deep"):
            turn.compute_all()
        elif self.ports is not None:
            return self._run_compiled(turn)
        self.turn = turn
        try:
            with self.ports.opened() if self.ports is not None else nullcontext():
                output = turn.invoke(turn.args, turn.kwargs)
            if recording:
                self._settle(turn)
        finally:
            self.turn = self.feature = None
            self.offloading.restore()
            self.order.clear()
        return output

    def _run_compiled(self, turn: Turn) -> Any:
        """Serves a call of a compiled denoiser, which bypasses all that lies below or nothing."""
        with self.ports.set_for(turn):
            for port in self.ports.all:
                key = id(port.module)
                port.keep = turn.full and key == self.sink
                if turn.none:
                    described, aliases = turn.lane.memory[("output", key)]
                    sink = key == self.sink
                    tensors = turn.forecast("deep") if sink else described.blank()
                    port.stand_in = _fill(described, aliases, tensors)
            output = turn.invoke(turn.args, turn.kwargs)
            for port in self.ports.all:
                if port.keep and port.output is not None:
                    self._keep(turn, tensor_leaves(port.output))
        return output

    def _settle(self, turn: Turn) -> None:
        """Finds the sink of the pass just recorded, and stores what it gave."""
        order = self.order
        known = order and len(set(order)) == len(order) and order[-1] in self.below.last
        if known and all(blocks_of(leaf, turn.rows) for leaf in self.feature):
            self.sink = order[-1]
            return self._keep(turn, self.feature)
        self.blind = True
        turn.run.note(
            "the UNet's deep branch cannot be told from its calls (compiled, or another "
            "structure), so its whole output is cached instead"
        )

    def _serve(self, module: nn.Module, plain: Callable, args: tuple, kwargs: dict) -> Any:
        turn = self.turn
        if turn is None:
            return plain(*args, **kwargs)
        turn.in_model = False
        output = self._play(turn, module, plain, args, kwargs)
        turn.in_model = turn.full
        return output

    def _play(
        self, turn: Turn, module: nn.Module, plain: Callable, args: tuple, kwargs: dict
    ) -> Any:
        key = id(module)
        if turn.full:
            output = turn.compute(plain, *args, **kwargs)
            turn.lane.memory[("output", key)] = (describe(output), _aliases(output))
            if self.sink is None:
                self.order.append(key)
                if key in self.below.last:
                    # Parents write in place into what a block returns (FreeU).
                    self.feature = [leaf.clone() for leaf in tensor_leaves(output)]
            elif key == self.sink:
                self._keep(turn, tensor_leaves(output))
            return output
        described, aliases = turn.lane.memory[("output", key)]
        if turn.none:
            self.offloading.pass_over(module)
            if key != self.sink:
                return described.fill(described.blank())
            return _fill(described, aliases, turn.forecast("deep"))
        whole = scattered(described, plain, args, kwargs, turn.rows, turn.index())
        if key == self.sink:
            forecast = turn.forecast("deep")
            self._keep(turn, whole)
            whole = bridged(turn.mask, whole, forecast)
        return _fill(described, aliases, whole)

    def _keep(self, turn: Turn, feature: list[Tensor]) -> None:
        turn.remember("deep", [rows_first(leaf, turn.rows) for leaf in feature])


def _aliases(output: Any) -> tuple[int, ...]:
    """For each tensor of an output, the first place where the same one stands."""
    first: dict[int, int] = {}
    return tuple(first.setdefault(id(leaf), i) for i, leaf in enumerate(tensor_leaves(output)))


def _fill(described: Described, aliases: tuple[int, ...], tensors: list[Tensor]) -> Any:
    """The output; a tensor that stood twice does so again, as parents write into it in place."""
    return described.fill([tensors[place] for place in aliases])
