"""Which implementation a call takes, and what importing the package brings in."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from diffcache import kernels
from diffcache.kernels import backend


def test_import_loads_no_triton():
    # torch itself must not have loaded it, or the check would say nothing about the package.
    program = (
        "import sys, torch; assert 'triton' not in sys.modules\n"
        "from diffcache import kernels; kernels.has_triton()\n"
        "x = torch.ones(2, 3)\n"
        "kernels.latent_difference([x], [1.0]); kernels.combine([x], [2.0])\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("found", [False, True])
def test_has_triton_asks_the_import_system(monkeypatch, found):
    backend.has_triton.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if found else None)
    assert kernels.has_triton() is found
    backend.has_triton.cache_clear()


@pytest.mark.parametrize(
    ("device", "installed", "version", "expected"),
    [
        ("cuda", True, (3, 3), True),
        ("cuda", True, (3, 10), True),
        ("cuda", True, (3, 2), False),
        ("cuda", False, None, False),
        ("cpu", True, (3, 9), False),
        ("mps", True, (3, 9), False),
    ],
)
def test_uses_triton(monkeypatch, device, installed, version, expected):
    monkeypatch.setattr(backend, "has_triton", lambda: installed)
    monkeypatch.setattr(backend, "_triton_version", lambda: version)
    assert backend.uses_triton(torch.device(device)) is expected


@pytest.mark.skipif(not kernels.has_triton(), reason="needs triton")
def test_version_is_the_installed_one():
    import triton

    assert triton.__version__.startswith("{}.{}.".format(*backend._triton_version()))


@pytest.mark.parametrize("name", ["latent_difference", "combine"])
def test_cpu_takes_the_twin_and_a_supported_device_the_kernel(monkeypatch, name):
    if not kernels.has_triton():
        pytest.skip("needs triton")
    module, launcher = {
        "latent_difference": ("difference", "launch_difference"),
        "combine": ("combination", "launch_combine"),
    }[name]
    launches = []

    def launch(tensors, weights, last):
        launches.append(weights)
        return torch.zeros(4, 2) if name == "latent_difference" else last

    monkeypatch.setattr(f"diffcache.kernels.{module}_triton.{launcher}", launch)
    x = torch.ones(2, 3)
    getattr(kernels, name)([x], [2.0])
    assert launches == []
    monkeypatch.setattr(f"diffcache.kernels.{module}.uses_triton", lambda device: True)
    getattr(kernels, name)([x], [2.0])
    assert launches == [(2.0,)]
