"""Compile the kernels for the CUDA architecture given as argument; print what came of each as JSON.

Needs no GPU. Runs in a process of its own, since with TRITON_INTERPRET=1 nothing compiles.
"""

import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from diffcache.kernels import combination_triton, difference_triton, tiling


class Target:
    """As much of a driver as compiling asks for."""

    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class CompileOnly:
    """Stands in for a kernel: a launch compiles it and keeps the PTX."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.ptx = None

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.ptx = self.kernel.warmup(*args, grid=grid, **options).asm["ptx"]

        return launch


def main():
    driver.set_active(Target())
    difference = difference_triton._difference_kernel = CompileOnly(
        difference_triton._difference_kernel
    )
    combination = combination_triton._combine_kernel = CompileOnly(
        combination_triton._combine_kernel
    )

    flat = [torch.empty(2, 4, 128, 128, dtype=torch.bfloat16) for _ in range(4)]
    mixed = [
        torch.empty(2, 4, 64, 64),
        torch.empty(2, 4, 64, 64, dtype=torch.float16),
        torch.empty(2, 4, 64, 130)[..., ::2][..., :64],
        torch.empty(2, 4, 64, 64).to(memory_format=torch.channels_last),
    ]
    small = [torch.empty(1, 3, 5)]
    shared = (1.0, -3.0, 3.0, -1.0)
    ptx = {}
    for name, tensors, weights, steps in (
        ("flat", flat, shared, True),
        ("flat per row", flat[:3], torch.empty(2, 3), False),
        ("mixed per row", mixed, torch.empty(2, 4), True),
        ("small", small, shared[:1], True),
    ):
        difference_triton.launch_difference(tensors, weights, steps)
        ptx[f"difference {name}"] = difference.ptx
        combination_triton.launch_combine(tensors, weights, torch.empty_like(tensors[0]))
        ptx[f"combine {name}"] = combination.ptx
    tiling.NARROW_EXTENT = 0
    difference_triton.launch_difference(mixed, shared, True)
    ptx["difference wide"] = difference.ptx
    combination_triton.launch_combine(flat * 2, shared * 2, torch.empty_like(flat[0]))
    ptx["combine wide"] = combination.ptx
    print(json.dumps(ptx))


if __name__ == "__main__":
    main()
