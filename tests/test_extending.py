"""The code blocks of docs/extending.md, run as they are written."""

import re
import sys
from pathlib import Path

import pytest

import diffcache
from diffcache.methods import registry

DOCUMENT = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```(python|text)\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)
FILE = re.compile(r"# diffcache/methods/(\w+)\.py\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose files are found as methods are."""
    package = sys.modules[registry.__module__]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"{package.__name__}.{path.stem}", None)
    registry.cache_clear()


def test_blocks_run_and_print_what_is_shown(folder, capsys):
    names: dict = {"__name__": "extending"}
    found = []
    for language, text in BLOCKS:
        if language == "text":
            assert capsys.readouterr().out == text
            continue
        if file := FILE.match(text):
            found.append(file[1])
            (folder / f"{file[1]}.py").write_text(text, encoding="utf-8")
            registry.cache_clear()
        else:
            exec(compile(text, DOCUMENT.name, "exec"), names)
    assert capsys.readouterr().out == ""
    assert set(found) <= set(diffcache.methods())
    assert found


def test_blocks_are_short():
    assert len(BLOCKS) > 8
    assert max(text.count("\n") for _, text in BLOCKS) < 40
