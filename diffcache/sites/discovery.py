"""Finds denoisers in a pipeline, block lists in a denoiser, and caches of other libraries."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from typing import Any

from torch import nn

_HELPERS = ("ControlNet", "Adapter")
_CACHE_HOOKS = ("fbc_", "mag_cache", "taylorseer", "pyramid_attention", "faster_cache", "sea_cache")


def plain_module(module: nn.Module) -> nn.Module:
    """What `torch.compile` or a parallel wrapper wraps, or the module itself."""
    return getattr(module, "_orig_mod", module)


def is_denoiser(module: Any) -> bool:
    """Whether `module` predicts from a sample and a timestep, and is no helper of another one."""
    if not isinstance(module, nn.Module):
        return False
    plain = plain_module(module)
    if any(word in type(plain).__name__ for word in _HELPERS):
        return False
    parameters = inspect.signature(type(plain).forward).parameters
    return "timestep" in parameters or "timesteps" in parameters


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
    """The outermost `ModuleList`s of non-leaf blocks, in the order of definition.

    A list qualifies where each of its blocks has children of its own.
    """
    found: list[tuple[str, nn.ModuleList]] = []
    _collect(plain_module(denoiser), "", found)
    return found


def is_unet(denoiser: nn.Module) -> bool:
    """Whether the denoiser has skip connections from a way down to a way up."""
    plain = plain_module(denoiser)
    return hasattr(plain, "down_blocks") and hasattr(plain, "up_blocks")


def version(denoiser: nn.Module) -> Hashable:
    """Changes when weights are written in place, or adapters or attention processors change.

    Offloading, which moves and replaces parameters all the time, does not change it.
    """
    plain = plain_module(denoiser)
    written = sum(parameter._version for parameter in plain.parameters())
    return written, tuple(state for module in plain.modules() if (state := _adapted(module)))


def _adapted(module: nn.Module) -> tuple:
    """The adapters of a layer (peft's names) or the processor of an attention, if it has any."""
    found = vars(module)
    processor = found.get("processor")
    scales = found.get("scaling"), getattr(processor, "scale", None)
    active = found.get("_active_adapter"), found.get("_disable_adapters")
    if processor is None and scales[0] is None:
        return ()
    return id(processor), *map(str, scales), *map(str, active)


def _collect(module: nn.Module, prefix: str, found: list[tuple[str, nn.ModuleList]]) -> None:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.ModuleList):
            if len(child) and all(any(block.children()) for block in child):
                found.append((path, child))
        else:
            _collect(child, f"{path}.", found)
