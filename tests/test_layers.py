"""House rules that can be read off the source: layers, lazy imports, sizes and names of files."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lowest first. A module belongs to the layer that names it or a package it lies in; only the root
# package is named for its __init__ alone, so that no new module gets a layer without being placed.
LAYERS = {
    "kernels": ["diffcache.kernels", "diffcache.version"],
    "strategy": ["diffcache.options", "diffcache.policies", "diffcache.predictors"],
    "runtime": ["diffcache.runtime"],
    "sites": ["diffcache.sites"],
    "methods": ["diffcache.methods"],
    "api": [
        "diffcache",
        "diffcache.__main__",
        "diffcache.api",
        "diffcache.arguments",
        "diffcache.assurance",
        "diffcache.calibrating",
        "diffcache.calibration",
        "diffcache.callbacks",
        "diffcache.comparing",
        "diffcache.comparison",
        "diffcache.demo",
        "diffcache.disabling",
        "diffcache.looping",
        "diffcache.machine",
        "diffcache.measuring",
        "diffcache.metrics",
        "diffcache.plots",
        "diffcache.fingerprints",
        "diffcache.refining",
        "diffcache.requesting",
        "diffcache.saved",
        "diffcache.tiny",
        "diffcache.trial",
        "diffcache.tuned",
        "diffcache.tuning",
        "diffcache.warming",
        "diffcache.wrapping",
    ],
}
RANKS = {name: rank for rank, names in enumerate(LAYERS.values()) for name in names}

# Usable by an engine that has never heard of pipelines.
PURE = {"kernels", "strategy"}
PIPELINE_LIBRARIES = {"accelerate", "diffusers", "peft", "transformers"}

LONGEST = 300


class Module(NamedTuple):
    source: str
    is_package: bool = False


def read_modules() -> dict[str, Module]:
    modules = {}
    for package, folder in (("diffcache", "diffcache"), ("diffcache.kernels", "kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join([package, *(parts[:-1] if is_package else parts)])
            modules[name] = Module(path.read_text(encoding="utf-8"), is_package)
    return modules


def layer_of(name: str) -> int | None:
    while "." in name and name not in RANKS:
        name = name.rpartition(".")[0]
        if name == "diffcache":
            return None
    return RANKS.get(name)


def imports(name: str, module: Module, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything imported, lazily or for annotations too."""
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: None if module.is_package else -1]
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node.lineno, submodule if submodule in known else base


def violations(modules: dict[str, Module]) -> list[str]:
    found = []
    known = set(modules)
    names = list(LAYERS)
    for name, module in modules.items():
        own = layer_of(name)
        if own is None:
            found.append(f"{name} has no layer: place it in LAYERS")
            continue
        for line, target in sorted(set(imports(name, module, known))):
            top = target.partition(".")[0]
            if top == "diffcache":
                other = layer_of(target)
                if other is None or other > own:
                    layer = "no layer" if other is None else names[other]
                    found.append(f"{name}:{line} ({names[own]}) imports {target} ({layer})")
            elif top in PIPELINE_LIBRARIES and names[own] in PURE:
                found.append(f"{name}:{line} ({names[own]}) imports {target}")
    return found


def test_layers_import_only_downward() -> None:
    modules = read_modules()
    assert {layer_of(name) for name in modules} == set(range(len(LAYERS)))
    assert violations(modules) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("diffcache.kernels.stats", "from diffcache.policies.base import Policy"),
        ("diffcache.kernels.stats", "from ..policies.base import Policy"),
        ("diffcache.kernels.stats", "from ..policies import base"),
        ("diffcache.kernels.stats", "from .. import policies"),
        ("diffcache.policies.base", "import diffcache.runtime"),
        ("diffcache.policies.base", "def late():\n    from diffcache.runtime import engine"),
        ("diffcache.policies.base", "if TYPE_CHECKING:\n    import diffusers.schedulers"),
        ("diffcache.predictors.base", "from diffusers import DiffusionPipeline"),
        ("diffcache.runtime.engine", "from ..sites import output"),
        ("diffcache.runtime.engine", "import diffcache"),
        ("diffcache.sites", "from ..methods import adaptive"),
        ("diffcache.methods.adaptive", "from diffcache import wrap"),
        ("diffcache.methods.adaptive", "from diffcache.api import wrap"),
        ("diffcache.methods.adaptive", "from diffcache.novel import thing"),
        ("diffcache.novel", "import torch"),
        ("diffcache.novel.deep", "import torch"),
    ],
)
def test_violation_is_detected(name: str, source: str) -> None:
    packages = ["", ".kernels", ".policies", ".predictors", ".runtime", ".sites", ".methods"]
    modules = {f"diffcache{package}": Module("", is_package=True) for package in packages}
    modules["diffcache.policies.base"] = modules["diffcache.runtime.engine"] = Module("")
    assert violations(modules) == []
    is_package = modules.get(name, Module("")).is_package
    (found,) = violations(modules | {name: Module(source, is_package)})
    assert name in found


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("diffcache.kernels.stats", "import torch\nfrom .naive import stats"),
        ("diffcache.policies.base", "from diffcache.kernels.stats import third_order"),
        ("diffcache.predictors.base", "from ..policies import base"),
        ("diffcache.runtime.engine", "import diffusers\nfrom ..kernels import stats"),
        ("diffcache.methods", "from . import adaptive\nfrom ..sites.output import Output"),
        ("diffcache.demo", "import diffcache\nfrom .api import wrap"),
    ],
)
def test_downward_import_passes(name: str, source: str) -> None:
    assert violations({name: Module(source, is_package=name == "diffcache.methods")}) == []


# Import statements are watched instead of sys.modules: torch._dynamo loads Triton wherever it is
# installed, and diffusers loads torch._dynamo.
WATCH = """
import builtins, sys

LAZY = {"matplotlib", "triton"}
EXCUSED = LAZY | {"accelerate", "diffusers", "peft", "torch", "transformers"}
plain_import = builtins.__import__


def watched_import(name, globals=None, *rest, **options):
    importer = (globals or {}).get("__name__", "")
    if name.partition(".")[0] in LAZY and importer.partition(".")[0] not in EXCUSED:
        sys.exit(f"{name} is imported by {importer}")
    return plain_import(name, globals, *rest, **options)


builtins.__import__ = watched_import
"""


def run_watched(statement: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", WATCH + statement]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_import_is_lazy() -> None:
    result = run_watched("import diffcache\ndiffcache.tiny.pipeline")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "statement",
    ["import triton", "from matplotlib import pyplot", "import torch._dynamo, triton.language"],
)
def test_eager_import_is_detected(statement: str) -> None:
    result = run_watched(f"try:\n    {statement}\nexcept ImportError:\n    pass")
    assert result.returncode == 1
    assert "is imported by __main__" in result.stderr


def python_files() -> list[Path]:
    folders = ("diffcache", "kernels", "tests", "bench")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_files_stay_small_and_named_for_what_they_hold() -> None:
    files = python_files()
    assert Path(__file__).resolve() in files
    lengths = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}
    assert [str(path) for path in files if path.name == "utils.py"] == []


def test_golden_tests_are_never_skipped() -> None:
    """What a method is compared with is pinned, so that there is nothing to skip for."""
    golden = sorted((ROOT / "tests" / "golden").glob("*.py"))
    assert len(golden) > 10
    words = re.compile(r"\b(skip|skipif|importorskip|xfail)\(")
    assert [path.name for path in golden if words.search(path.read_text(encoding="utf-8"))] == []
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for peer in ("cache-dit", "deepcache", "diffusers"):
        assert re.search(rf"^{peer}==\d", pinned, re.M)
