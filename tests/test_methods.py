"""What every method of the catalogue says of itself."""

import importlib
import re

import pytest

import diffcache
from diffcache.methods import registry


@pytest.mark.parametrize("name", registry())
def test_file_and_docstring_tell_the_name_and_what_the_cache_holds(name):
    module = importlib.import_module(f"diffcache.methods.{name}")
    assert module.METHOD.name == name
    assert "cache holds" in " ".join(module.__doc__.split())


@pytest.mark.parametrize("name", sorted(registry().keys() - {"mask"}))
def test_citations_are_whole_entries(name):
    entry = diffcache.cite(name)
    assert re.match(r"@\w+\{\w+,\n", entry) and entry.endswith("}")
    assert entry.count("{") == entry.count("}")
    assert all(re.search(rf"\b{field}\s*=", entry) for field in ("title", "author", "year"))
