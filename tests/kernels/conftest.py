"""Engines that run each kernel, operands in awkward layouts, and float64 references."""

import importlib.util
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None
IMPORTED_EARLY = "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"

# Triton decides when it is imported whether its own library functions are interpreted.
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

needs_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device"),
]
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
needs_interpreter = pytest.mark.skipif(
    HAS_CUDA, reason="with a CUDA device triton compiles, and one process cannot do both"
)

TRITON_ENGINES = [
    pytest.param("cpu-triton", marks=[needs_triton, needs_interpreter]),
    pytest.param("cuda-triton", marks=[needs_triton, *needs_cuda]),
]
TORCH_ENGINES = ["cpu-torch", pytest.param("cuda-torch", marks=needs_cuda)]


@pytest.fixture(params=[*TORCH_ENGINES, *TRITON_ENGINES])
def engine(request, monkeypatch):
    """Make the public functions take one implementation; `engine.device` is where tensors go."""
    return _use(request.param, monkeypatch)


@pytest.fixture(params=TRITON_ENGINES)
def triton_engine(request, monkeypatch):
    """As `engine`, for what only the Triton kernels have."""
    return _use(request.param, monkeypatch)


def _use(name, monkeypatch):
    device, implementation = name.split("-")
    if name == "cpu-triton" and IMPORTED_EARLY:
        pytest.fail(
            "triton was imported before TRITON_INTERPRET=1 was set; diffusers imports it too, so "
            "set the variable before the first import of diffusers, or outside of pytest"
        )
    for module in ("difference", "combination"):
        monkeypatch.setattr(
            f"diffcache.kernels.{module}.uses_triton", lambda device: implementation == "triton"
        )
    return SimpleNamespace(
        name=name, device=torch.device(device), truncates_bf16=name == "cpu-triton"
    )


@pytest.fixture
def operand():
    """`operand(shape, layout, dtype, device)`: random values, a new draw for every call."""
    generator = torch.Generator().manual_seed(20240131)

    def make(shape, layout="contiguous", dtype=torch.float32, device="cpu"):
        values = torch.randn(shape, generator=generator).to(dtype).to(device)
        return LAYOUTS[layout](values)

    return make


def _sliced(values):
    buffer = values.new_full((*values.shape[:-1], 2 * values.shape[-1] + 1), torch.nan)
    buffer[..., 1::2] = values
    return buffer[..., 1::2]


def _offset(values):
    buffer = values.new_full((values.numel() + 1,), torch.nan)
    buffer[1:] = values.flatten()
    return buffer[1:].view(values.shape)


LAYOUTS = {
    "contiguous": lambda values: values,
    "channels_last": lambda values: values.contiguous(memory_format=torch.channels_last),
    "sliced": _sliced,
    "offset": _offset,
    "transposed": lambda values: values.transpose(1, -1).contiguous().transpose(1, -1),
    "batch_inside": lambda values: values.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda values: values[:, :1].expand_as(values),
    "batch_expanded": lambda values: values[:1].expand_as(values),
}


@pytest.fixture
def naive():
    """The definitions in float64, row by row, with the magnitude that rounding is relative to."""
    return SimpleNamespace(difference=_naive_difference, combine=_naive_combine)


def _arrays(tensors):
    return [tensor.detach().cpu().double().numpy() for tensor in tensors]


def _rows(weights, rows, terms):
    values = weights.cpu().numpy() if isinstance(weights, torch.Tensor) else weights
    return np.broadcast_to(np.asarray(values, dtype=np.float32).astype(float), (rows, terms))


def _naive_difference(tensors, coefficients):
    arrays = _arrays(tensors)
    rows, terms = len(arrays[0]), len(arrays)
    coefficients = _rows(coefficients, rows, terms)
    statistics = []
    magnitudes = []
    for b in range(rows):
        h = [array[b] for array in arrays]
        terms_of_d = [coefficients[b, k] * h[k] for k in range(terms)]
        difference = sum(terms_of_d)
        size = sum(np.abs(term) for term in terms_of_d)
        nothing = np.zeros_like(h[0])
        step = h[0] - h[1] if terms > 1 else nothing
        step_size = np.abs(h[0]) + np.abs(h[1]) if terms > 1 else nothing
        previous = h[1] - h[2] if terms > 2 else nothing
        previous_size = np.abs(h[1]) + np.abs(h[2]) if terms > 2 else nothing
        statistics.append(
            {
                "abs_difference": np.abs(difference).sum(),
                "abs_reference": np.abs(h[0]).sum(),
                "sq_difference": np.square(difference).sum(),
                "sq_reference": np.square(h[0]).sum(),
                "abs_step": np.abs(step).sum(),
                "sq_step": np.square(step).sum(),
                "sq_previous_step": np.square(previous).sum(),
                "direction": (step * previous).sum(),
            }
        )
        magnitudes.append(
            {
                "abs_difference": size.sum(),
                "abs_reference": np.abs(h[0]).sum(),
                "sq_difference": np.square(size).sum(),
                "sq_reference": np.square(h[0]).sum(),
                "abs_step": step_size.sum(),
                "sq_step": np.square(step_size).sum(),
                "sq_previous_step": np.square(previous_size).sum(),
                "direction": (step_size * previous_size).sum(),
            }
        )
    return tuple(
        {name: np.array([row[name] for row in table]) for name in table[0]}
        for table in (statistics, magnitudes)
    )


def _naive_combine(tensors, weights):
    arrays = _arrays(tensors)
    rows, terms = len(arrays[0]), len(arrays)
    weights = _rows(weights, rows, terms)
    total = np.zeros_like(arrays[0])
    magnitude = np.zeros_like(arrays[0])
    for b in range(rows):
        for k in range(terms):
            if weights[b, k] != 0:
                total[b] += weights[b, k] * arrays[k][b]
                magnitude[b] += np.abs(weights[b, k] * arrays[k][b])
    return total, magnitude
