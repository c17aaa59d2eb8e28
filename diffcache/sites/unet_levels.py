"""Which modules of a UNet lie below a branch."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import nn

from .discovery import plain_module


@dataclass(frozen=True)
class Below:
    """What a branch bypasses.

    Attributes:
        modules: all modules that are bypassed.
        last: ids of those that may be the last one to be called; it gives the deep feature.
    """

    modules: tuple[nn.Module, ...]
    last: frozenset[int]


def below(denoiser: nn.Module, depth: int, inner: int) -> Below:
    """What lies below `depth` whole levels and the `inner` outermost layers of the next one.

    Layers of a level that cannot be told apart count as the whole level.
    """
    unet = plain_module(denoiser)
    downs, ups = list(unet.down_blocks), list(unet.up_blocks)[::-1]
    # Of a longer way down the first blocks stand above all levels.
    downs = downs[len(downs) - len(ups) :]
    if inner and not _layered(downs[depth], ups[depth]):
        depth, inner = depth + 1, 0
    deep = [*downs[depth:], getattr(unet, "mid_block", None), *reversed(ups[depth:])]
    if not inner:
        return _chain([block for block in deep if block is not None], [])
    # Layer k from the top takes the skip of layer k - 1 on the way down; the topmost one's skip
    # is what enters the level.
    down, up = downs[depth], ups[depth]
    deep = [block for block in deep if block is not down and block is not up and block is not None]
    way_down = [down] if inner == 1 else _layers(down, inner - 1)
    tail: list[nn.Module] = []
    for name, child in up.named_children():
        if isinstance(child, nn.ModuleList) and "upsampler" not in name:
            tail += [layer for layer in child[: max(0, len(child) - inner)] if layer is not None]
    return _chain([*way_down, *deep], tail)


def _chain(deep: list[nn.Module], tail: list[nn.Module]) -> Below:
    modules = (*deep, *tail)
    last = tail or deep[-1:]
    return Below(modules, frozenset(map(id, last)))


def _layers(block: nn.Module, start: int) -> list[nn.Module]:
    """The layers of a block from `start` on, and whatever it ends with to change resolution."""
    found: list[nn.Module] = []
    for name, child in block.named_children():
        if "downsampler" in name:
            found += list(child) if isinstance(child, nn.ModuleList) else [child]
        elif isinstance(child, nn.ModuleList):
            found += [layer for layer in child[start:] if layer is not None]
    return found


def _layered(down: nn.Module, up: nn.Module) -> bool:
    """Whether each layer on the way up takes one skip, and nothing else comes from below."""
    resnets = [getattr(block, "resnets", None) for block in (down, up)]
    if not all(isinstance(layers, nn.ModuleList) for layers in resnets):
        return False
    if "skip_sample" in inspect.signature(type(up).forward).parameters:
        return False
    return len(resnets[1]) == len(resnets[0]) + 1
