"""What a measurement was made on."""

from __future__ import annotations

import platform

import torch

from .version import __version__


def machine() -> dict[str, str]:
    """Hardware and versions, which a wall time means nothing without."""
    import diffusers

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "cuda device": cuda,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "diffcache": __version__,
    }
