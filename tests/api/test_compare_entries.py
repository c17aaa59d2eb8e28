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


def test_steps_that_all_entries_ask_for_are_those_that_fewer_are_taken_of(trained: Any) -> None:
    found = compare(trained, [{"prompt": p, "num_inference_steps": 12} for p in PROMPTS])
    labels = [row.label for row in found.rows]
    assert found.plain.steps == found.setting["steps"] == 12
    assert labels == ["plain", "interval", f"{round(found['interval'].steps)} steps"]


@pytest.mark.parametrize(
    "own",
    [
        [{"num_inference_steps": 12}, {"num_inference_steps": 10}],
        [{"sigmas": [1.0, 0.8, 0.6, 0.4, 0.2]}] * 2,
    ],
    ids=["counts", "sigmas"],
)
def test_steps_of_their_own_have_no_fewer_steps(trained: Any, own: list[dict[str, Any]]) -> None:
    found = compare(trained, [{"prompt": p} | o for p, o in zip(PROMPTS, own, strict=True)])
    assert [row.label for row in found.rows] == ["plain", "interval"]
    assert any("not compared with fewer steps" in note for note in found.notes)


def test_steps_of_entries_have_to_be_counts(trained: Any) -> None:
    with pytest.raises(ValueError, match="num_inference_steps=0 is not a count"):
        compare(trained, [{"prompt": PROMPTS[0], "num_inference_steps": 0}])
