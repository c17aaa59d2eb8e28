"""Small host tensors on their way to a device, without waiting for it."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, which is on the host, on `device`.

    A copy from pageable memory would wait for everything that is queued on a CUDA device; one from
    pinned memory is queued behind it.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
