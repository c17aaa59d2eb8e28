"""Labels of what is compared."""

from typing import Any

import pytest

import diffcache
from diffcache import tiny


@pytest.fixture(scope="module")
def trained() -> Any:
    pipe = tiny.pipeline("dit")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("label", ["plain", "plain, one by one", "6 steps"])
def test_labels_of_plain_rows_are_refused(trained: Any, label: str) -> None:
    with pytest.raises(ValueError, match=f"may be called '{label}'; .*'my {label}': method"):
        diffcache.compare(trained, ["a cat"], {label: "adaptive"})


def test_so_is_a_method_of_such_a_name(trained: Any) -> None:
    with pytest.raises(ValueError, match="may be called 'plain'"):
        diffcache.compare(trained, ["a cat"], diffcache.Method(name="plain"))


def test_labels_that_print_alike_are_refused(trained: Any) -> None:
    with pytest.raises(ValueError, match="methods has two of '1'"):
        diffcache.compare(trained, ["a cat"], {1: "adaptive", "1": "interval"})


def test_methods_and_what_is_beside_them_may_be_generators(trained: Any) -> None:
    with pytest.raises(ValueError, match=r"empty; call compare\(pipe, prompts"):
        diffcache.compare(trained, ["a cat"], (name for name in ()))
    call = {"beside": (each for each in ("steps",)), "num_inference_steps": 12}
    found = diffcache.compare(trained, ["a cat"], (name for name in ("interval",)), **call)
    assert len(found.rows) == 3 and found["interval"].fewer is not None


def test_what_is_no_method_is_named(trained: Any) -> None:
    with pytest.raises(ValueError, match="5 among methods is neither a name, a Method"):
        diffcache.compare(trained, ["a cat"], 5)


def test_a_label_breaks_no_table(trained: Any) -> None:
    call = {"beside": (), "num_inference_steps": 12}
    found = diffcache.compare(trained, ["a cat"], {"a|b\nc": "interval"}, **call)
    table = [line for line in found.markdown().splitlines() if line.startswith("|")]
    assert len(table) == 4 and table[3].startswith(r"| a\|b c | ")
    assert str(found).splitlines()[4].startswith("a|b c  ")
