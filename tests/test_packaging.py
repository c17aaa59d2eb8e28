"""What is installed, from a wheel and from a checkout, and what diffusers then sees of it."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "diffcache", "kernels")

# Older than anything transformers takes: it would import names that the stand-in lacks.
HUGGING_FACE_VERSION = "0.0.1"


class Installed(NamedTuple):
    python: Path
    cwd: Path
    """Where to run: the checkout itself of an editable install, elsewhere for a wheel."""
    package: Path
    kernels: Path

    def run(self, code: str, *paths: Path) -> str:
        """Run `code` with the current directory first on sys.path and `paths` after it."""
        return execute([self.python, "-c", code], cwd=self.cwd, paths=paths)


def execute(command: list[str | Path], cwd: Path, paths: tuple[Path, ...] = ()) -> str:
    # Variables of the calling environment could put the real checkout on sys.path.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP"))}
    env |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def copy_checkout(target: Path) -> Path:
    """A build writes into its source tree, and a stale build folder leaks into the next wheel."""
    target.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target / name)
    return target


def make_venv(path: Path) -> Path:
    """A venv that borrows torch and the rest from the running one, but not its diffcache.

    Site folders named in a .pth are searched, while the .pth files inside them are not run: an
    editable diffcache there stays unseen.
    """
    venv.create(path, with_pip=False, symlinks=True)
    python = path / "bin" / "python"
    site = execute([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], path)
    borrowed = [entry for entry in sys.path if entry.endswith("-packages")]
    assert borrowed
    Path(site.strip(), "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


def pip(python: Path, *arguments: str | Path, cwd: Path) -> None:
    """Offline: the borrowed setuptools builds, and dependencies are there already."""
    execute([python, "-m", "pip", *arguments], cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_checkout(folder / "source")
    build = ["wheel", source, "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    pip(Path(sys.executable), *build, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    python = make_venv(folder / "venv")
    # The borrowed metadata of an editable install is no earlier version to be removed.
    pip(python, "install", "--no-deps", "--ignore-installed", wheel, cwd=folder)
    (package,) = folder.glob("venv/lib/python*/site-packages/diffcache")
    return Installed(python, folder, package, package / "kernels")


@pytest.fixture(scope="module")
def from_checkout(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("editable")
    checkout = copy_checkout(folder / "checkout")
    python = make_venv(folder / "venv")
    options = ["--no-deps", "--ignore-installed", "--no-build-isolation"]
    pip(python, "install", *options, "--editable", checkout, cwd=folder)
    return Installed(python, checkout, checkout / "diffcache", checkout / "kernels")


@pytest.fixture(params=["from_wheel", "from_checkout"])
def installed(request: pytest.FixtureRequest) -> Installed:
    return request.getfixturevalue(request.param)


@pytest.fixture
def hugging_face_kernels(tmp_path: Path) -> Path:
    """A stand-in for Hugging Face's `kernels`, which diffusers looks up by name and metadata."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("from .layer import get_kernel\n")
    (package / "layer.py").write_text("def get_kernel(name):\n    return name\n")
    info = tmp_path / f"kernels-{HUGGING_FACE_VERSION}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: kernels\nVersion: {HUGGING_FACE_VERSION}\n"
    (info / "METADATA").write_text(metadata)
    return tmp_path


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    suffixes = {".py", ".safetensors", ".json", ".txt"}
    expected = {"diffcache/py.typed"}
    for folder, target in (("diffcache", "diffcache"), ("kernels", "diffcache/kernels")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in suffixes and "__pycache__" not in path.parts:
                expected.add(f"{target}/{path.relative_to(ROOT / folder).as_posix()}")
    assert any(name.endswith(".safetensors") for name in expected)
    assert "diffcache/kernels/__init__.py" in expected
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_modules_come_from_where_they_were_installed(installed: Installed) -> None:
    code = "import diffcache as d, diffcache.kernels as k; print(d.__file__, k.__file__, sep='\\n')"
    package, kernels = map(Path, installed.run(code).splitlines())
    assert package == installed.package / "__init__.py"
    assert kernels == installed.kernels / "__init__.py"


def test_edits_show_in_an_editable_install(from_checkout: Installed) -> None:
    added = from_checkout.kernels / "added_later.py"
    added.write_text("answer = 42\n")
    code = "from diffcache.kernels.added_later import answer; print(answer)"
    elsewhere = from_checkout._replace(cwd=from_checkout.python.parent)
    assert from_checkout.run(code) == elsewhere.run(code) == "42\n"
    added.unlink()


def test_wheel_generates(from_wheel: Installed) -> None:
    code = """
import diffcache, diffcache.tiny
pipe = diffcache.wrap(diffcache.tiny.pipeline("unet"))
image = pipe("one red circle", num_inference_steps=12).images[0]
print(diffcache.__file__)
print(image.size)
print(diffcache.report(pipe))
"""
    file, size, report = from_wheel.run(code).split("\n", 2)
    assert Path(file).parent == from_wheel.package
    assert size.startswith("(")
    assert report.strip()


SEEN = """
import diffcache.kernels, diffusers
from diffusers.utils import is_kernels_available as diffusers_sees
from transformers.utils.import_utils import is_kernels_available as transformers_sees
import sys
print(diffusers_sees(), transformers_sees(), diffcache.kernels is sys.modules.get("kernels"))
try:
    from kernels import get_kernel
    from kernels.layer import get_kernel as same
    print(get_kernel.__code__.co_filename, get_kernel is same)
except ImportError:
    print(None)
"""


@pytest.mark.skipif(
    any(importlib.metadata.distributions(name="kernels")),
    reason="the running environment has Hugging Face's kernels",
)
def test_our_kernels_do_not_pass_for_hugging_face(installed: Installed) -> None:
    assert installed.run(SEEN).splitlines() == ["False False False", "None"]


def test_hugging_face_kernels_stay_visible(
    installed: Installed, hugging_face_kernels: Path
) -> None:
    seen, source = installed.run(SEEN, hugging_face_kernels).splitlines()
    assert seen.startswith("True ") and seen.endswith(" False")
    assert source == f"{hugging_face_kernels / 'kernels' / 'layer.py'} True"
