"""Which implementation runs: the Triton kernel or its torch twin."""

import functools
import importlib.util

import torch

# The first release whose kernels take tuples, by which a launch passes any number of tensors.
OLDEST_TRITON = (3, 3)


@functools.cache
def has_triton() -> bool:
    """Whether the `triton` package can be imported; answers without importing it."""
    return importlib.util.find_spec("triton") is not None


def uses_triton(device: torch.device) -> bool:
    """Whether tensors on `device` go to the Triton kernels, given a triton of at least 3.3.

    Only CUDA tensors do. CPU tensors keep the torch twin even under `TRITON_INTERPRET=1`: the
    interpreter is a way to check a kernel, and a caller who wants it calls the launcher itself.
    """
    return device.type == "cuda" and has_triton() and _triton_version() >= OLDEST_TRITON


@functools.cache
def _triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(part) for part in triton.__version__.split(".")[:2])
