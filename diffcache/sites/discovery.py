"""Finds denoisers in a pipeline, block lists in a denoiser, and caches of other libraries."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from torch import nn

from diffcache.runtime.disguise import base_of

_HELPERS = ("ControlNet", "Adapter")
_TIME = re.compile(r"timestep|^t$|_time$")
_PROCESSOR = re.compile(r"(Attn|Store)Processor")
_FREEU = ("s1", "s2", "b1", "b2")
_CACHE_HOOKS = ("fbc_", "mag_cache", "taylorseer", "pyramid_attention", "faster_cache", "sea_cache")


def plain_module(module: nn.Module) -> nn.Module:
    """What `torch.compile` or a parallel wrapper wraps, or the module itself."""
    return getattr(module, "_orig_mod", module)


def is_denoiser(module: Any) -> bool:
    """Whether `module` predicts from a sample and a timestep, and is no helper of another one."""
    if not isinstance(module, nn.Module):
        return False
    plain = plain_module(module)
    return is_told_time(plain) and not helps_another(plain)


def is_told_time(plain: nn.Module) -> bool:
    """Whether the module takes a timestep."""
    return any(_TIME.search(name) for name in inspect.signature(type(plain).forward).parameters)


def helps_another(plain: nn.Module) -> bool:
    """Whether the module, by name, computes what is added inside of a denoiser."""
    # A UNet with a ControlNet inside of it goes all the way, and is the denoiser itself.
    return any(word in type(plain).__name__ for word in _HELPERS) and not is_unet(plain)


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The denoisers among a pipeline's components, by name."""
    return {name: module for name, module in pipe.components.items() if is_denoiser(module)}


def schedulers(pipe: Any) -> list[Any]:
    """The schedulers among a pipeline's components."""
    return [
        component
        for component in pipe.components.values()
        if hasattr(component, "step") and hasattr(component, "set_timesteps")
    ]


def sharded(denoiser: nn.Module) -> bool:
    """Whether context parallelism shards the sequence over processes inside of the denoiser."""
    config = getattr(plain_module(denoiser), "_parallel_config", None)
    return getattr(config, "context_parallel_config", None) is not None


def foreign_cache(module: nn.Module) -> str | None:
    """The name of another cache that is active on `module`, or None."""
    plain = plain_module(module)
    if getattr(plain, "is_cache_enabled", False):
        return f"diffusers' {type(plain._cache_config).__name__}; call disable_cache() first"
    if hasattr(plain, "_is_cached") or hasattr(plain, "_context_manager"):
        return "cache-dit; call cache_dit.disable_cache(pipe) first"
    for _, child in plain.named_modules():
        registry = child.__dict__.get("_diffusers_hook")
        names = list(getattr(registry, "hooks", {}))
        if found := [n for n in names if any(word in n for word in _CACHE_HOOKS)]:
            return f"diffusers' hook {found[0]!r}; remove it from the model first"
        forward = child.__dict__.get("forward")
        if "deepcache" in str(getattr(forward, "__module__", "")).lower():
            return "DeepCache; call helper.disable() first"
    return None


def block_lists(denoiser: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The shallowest `ModuleList`s of non-leaf blocks, in the order of definition.

    A list qualifies where each of its blocks is called itself and has more than one layer; banks
    of projections are no stack. Nor are lists inside of a part of the denoiser that lies beside a
    stack, as in an embedder of text.
    """
    level = [("", plain_module(denoiser))]
    found: list[tuple[str, nn.ModuleList]] = []
    while level and not found:
        level, parents = [], level
        for prefix, parent in parents:
            for name, child in _children(parent, prefix):
                if not isinstance(child, nn.ModuleList):
                    level.append((f"{name}.", child))
                elif len(child) and all(map(_is_block, child)):
                    found.append((name, child))
    return found


def _children(parent: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in parent.named_children():
        if isinstance(child, nn.ModuleDict):
            yield from _children(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _is_block(module: nn.Module) -> bool:
    layers = [each for each in module.modules() if not any(each.children())]
    return is_called(module) and len(layers) > 1


def is_called(module: nn.Module) -> bool:
    """Whether the module is more than a container, of which only the parts can be called."""
    return type(plain_module(module)).forward is not nn.Module.forward


def is_unet(denoiser: nn.Module) -> bool:
    """Whether the denoiser has skip connections from a way down to a way up."""
    plain = plain_module(denoiser)
    return hasattr(plain, "down_blocks") and hasattr(plain, "up_blocks")


def version(denoiser: nn.Module) -> Hashable:
    """Changes with weights written in place, adapters, attention processors and FreeU's factors.

    Offloading, which moves and replaces parameters all the time, does not change it.
    """
    plain = plain_module(denoiser)
    # Tensors made in inference mode count no writes.
    written = sum(p._version for p in plain.parameters() if not p.is_inference())
    return written, tuple(state for module in plain.modules() if (state := _adapted(module)))


def glance(denoiser: nn.Module) -> Callable[[], Hashable]:
    """Gives, in a few microseconds, what changes where adapters or processors are switched.

    Who switches those of a denoiser switches all mostly, so that one layer of each kind tells.
    """
    plain = plain_module(denoiser)
    layers = [layer for layer in plain.modules() if vars(layer).keys() & {"processor", "scaling"}]
    told = [*{"scaling" in vars(layer): layer for layer in layers}.values()]
    # FreeU is of the way up, where it may come in later.
    told += plain.up_blocks[:1] if is_unet(plain) else ()
    return lambda: (*getattr(plain, "peft_config", ()), *map(_adapted, told))


def _adapted(module: nn.Module) -> tuple:
    """A layer's adapters (peft's names), an attention's processor, a block's FreeU, if any."""
    found = vars(module)
    if found.keys() >= set(_FREEU):
        return tuple(str(found[factor]) for factor in _FREEU)
    processor = found.get("processor")
    scales = found.get("scaling"), getattr(processor, "scale", None)
    # peft merges by writing past the counts of writes.
    names = "_active_adapter", "_disable_adapters", "merged_adapters"
    active = map(found.get, names)
    if processor is None and scales[0] is None:
        return ()
    return id(processor), *map(str, scales), *map(str, active)


def own_processors(pipe: Any) -> str:
    """Names of attention processors that the pipeline's own module defines; empty where none is.

    A pipeline that brings some reads attention maps from them, which a skipped call does not make.
    """
    home = base_of(pipe).__module__
    # A class may come from a file that nobody has entered among the modules.
    call = inspect.unwrap(base_of(pipe).__call__)
    names = vars(sys.modules[home]) if home in sys.modules else call.__globals__
    kinds = [kind for kind in names.values() if inspect.isclass(kind)]
    found = (kind.__name__ for kind in kinds if kind.__module__ == home)
    return ", ".join(name for name in found if _PROCESSOR.search(name))
