"""Values on their way from a denoiser's device to the host, and how often the host waited."""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class _Waits(threading.local):
    # Differences are taken over calls that no other task of the thread can interrupt.
    count = 0


waits = _Waits()
"""How often this thread has waited for a value, in `waits.count`; differences of it matter."""


def on_host(tensor: Tensor) -> Tensor:
    """`tensor` on the host, once the device has done all that is queued before it; counted.

    A tensor that is on the host already counts as well, so that a count on the CPU is that of the
    same generation on a GPU.
    """
    waits.count += 1
    return tensor.cpu()


def number(tensor: Tensor) -> float:
    """The value of a tensor of one element, once the device has got to it; counted."""
    waits.count += 1
    return float(tensor.item())


def numbers(tensor: Tensor) -> list:
    """The values of a tensor as nested lists, once the device has got to it; counted."""
    waits.count += 1
    return tensor.tolist()


class Reading:
    """A small tensor whose copy to the host is queued, to be read when it is no longer new."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._copied = tensor, None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.current_stream(tensor.device).record_event()

    def value(self) -> Tensor:
        """The tensor on the host.

        Should the host have got so far ahead that the copy is not there yet, it is waited for, so
        that decisions never hang on timing; what was queued after it keeps the device at work.
        """
        if self._copied is not None:
            self._copied.synchronize()
            return self._tensor
        return self._tensor if self._tensor.device.type == "cpu" else on_host(self._tensor)


class Reader:
    """Reads one kind of evidence: at once, or one time late where `lagged`.

    Attributes:
        found: what was read last, on the host; None where nothing was.
    """

    def __init__(self, lagged: bool) -> None:
        self.lagged = lagged
        self.found: Tensor | None = None
        self._last: Reading | None = None

    def read(self, tensor: Tensor) -> Tensor | None:
        """`tensor` on the host; where reading lags, what was given the time before, if anything."""
        if self.lagged:
            last, self._last = self._last, Reading(tensor)
            self.found = None if last is None else last.value()
        else:
            self.found = on_host(tensor)
        return self.found
