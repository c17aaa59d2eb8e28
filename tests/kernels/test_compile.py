"""The kernels compile for real targets, which the interpreter's leniency would not show."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module", params=["80", "90"])
def ptx(request, tmp_path_factory):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script), request.param],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_atomics_are_integer_counters(ptx):
    for name, text in ptx.items():
        atomics = set(re.findall(r"\b(?:atom|red)\.global[.\w]*", text))
        shares_rows = name.startswith("difference") and "small" not in name
        assert atomics == ({"atom.global.gpu.acq_rel.add.u32"} if shares_rows else set()), name


def test_a_barrier_precedes_every_release(ptx):
    for name, text in ptx.items():
        for before in text.split("atom.global")[:-1]:
            stores = before.rindex("st.global")
            assert "bar.sync" in before[stores:], name


def test_flat_layouts_load_vectors_without_division(ptx):
    for name, text in ptx.items():
        loads = re.findall(r"ld\.global[.\w]*\.v[248]\.", text)
        divisions = len(re.findall(r"\b(?:div|rem)\.[us](?:32|64)", text))
        if "flat" in name:
            assert len(loads) >= 3, name
            assert divisions <= 1, name
        if "mixed" in name:
            assert divisions > 1, name
