"""What entries of prompts ask for, each for its own picture."""

from typing import Any

import pytest

import diffcache
from diffcache import tiny

PROMPTS = tiny.prompts[:2]


@pytest.fixture(scope="module")
def trained() -> Any:
    pipe = tiny.pipeline("dit")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare(pipe: Any, entries: list[dict[str, Any]], **options: Any) -> Any:
    return diffcache.compare(pipe, entries, ["interval"], batch_size=1, **options)


def test_an_entry_of_two_prompts_is_refused(trained: Any) -> None:
    with pytest.raises(ValueError, match=r"1 of the prompts gave 2 pictures; .*'a cat', 'a dog'"):
        compare(trained, [{"prompt": list(PROMPTS)}], num_inference_steps=4)


def test_pictures_of_different_sizes_are_refused(trained: Any) -> None:
    entries = [{"prompt": PROMPTS[0], "width": 32}, {"prompt": PROMPTS[1], "width": 64}]
    with pytest.raises(
        ValueError, match=r"got \(32, 32, 3\) and \(32, 64, 3\); compare each size by itself"
    ):
        compare(trained, entries, height=32, num_inference_steps=4)
