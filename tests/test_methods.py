"""What every method of the catalogue says of itself."""

import importlib
import re
from typing import get_args

import pytest

import diffcache
from diffcache.methods import Method, registry
from diffcache.methods.base import Kind


@pytest.mark.parametrize("name", registry())
def test_file_and_docstring_tell_the_name_and_what_the_cache_holds(name):
    module = importlib.import_module(f"diffcache.methods.{name}")
    assert module.METHOD.name == name
    assert " The cache holds " in " ".join(module.__doc__.split())
    assert module.METHOD.kind in get_args(Kind)


@pytest.mark.parametrize("name", sorted(registry().keys() - {"mask"}))
def test_citations_are_whole_entries(name):
    entry = diffcache.cite(name)
    assert re.match(r"@\w+\{\w+,\n", entry) and entry.endswith("}")
    assert entry.count("{") == entry.count("}")
    assert all(re.search(rf"\b{field}\s*=", entry) for field in ("title", "author", "year"))


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='dynamic' is no class of methods"):
        Method(kind="dynamic")


def test_catalogue_is_made_from_the_registry(bench):
    catalogue = bench("catalogue")
    assert catalogue.DOCUMENT.read_text() == catalogue.document(), "run python bench/catalogue.py"
