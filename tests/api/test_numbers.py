"""Numbers of numpy and torch where options and arguments are numbers."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import diffcache
from diffcache import tiny
from diffcache.methods import find
from diffcache.options import frozen, is_count, is_number
from diffcache.policies import ErrorBudget


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int8(1), 1, 0.5])
def test_numbers(value: Any) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, np.ones(1), 1j])
def test_what_is_no_number(value: Any) -> None:
    assert not is_number(value) and not is_count(value)


def test_counts() -> None:
    assert is_count(np.int64(2), 2) and is_count(np.uint8(0))
    assert not is_count(np.int64(2), 3) and not is_count(2.0) and not is_count(np.float32(2))


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.float32(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (np.array([0.25, 0.5]), (0.25, 0.5)),
        (torch.tensor([[True], [False]]), ((True,), (False,))),
        ([np.float64(0.5), None], (0.5, None)),
        ((np.int64(1), 0), (1, 0)),
        ("high", "high"),
    ],
)
def test_options_become_plain_numbers(given: Any, plain: Any) -> None:
    found = frozen(given)
    assert found == plain and type(found) is type(plain)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(plain))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("interval", {"every": np.int64(3), "order": np.int64(1), "start": np.int32(2)}),
        ("adaptive", {"tolerance": np.float32(0.125), "compute_rows": np.array([1, 2])}),
        ("adaptive", {"compute": torch.tensor(0.5), "protect": (np.int64(2), 1)}),
        ("magcache", {"ratios": np.array([1.0, 0.5]), "max_skips": np.int64(2)}),
    ],
)
def test_methods_take_numpy_and_are_still_hashed(method: str, options: dict[str, Any]) -> None:
    plain = find(method).configured(**{name: frozen(value) for name, value in options.items()})
    found = find(method).configured(**options)
    assert found == plain and hash(found) == hash(plain)
    json.dumps({name: found.options()[name] for name in options})


def test_a_policy_takes_them_by_itself() -> None:
    policy = ErrorBudget(compute_rows=np.int64(2), compute=np.float32(0.5))
    assert policy.row_counts(4) == (0, 2, 4)


@pytest.fixture(scope="module")
def trained() -> Any:
    pipe = tiny.pipeline("dit")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_an_array_is_a_tolerance_for_each_sample(trained: Any, make: Any) -> None:
    diffcache.wrap(trained)
    reports = []
    for tolerance in (make([0.5, 0.0]), [0.5, 0.0]):
        with diffcache.request(tolerance=tolerance) as run:
            seeds = [torch.Generator().manual_seed(i) for i in range(2)]
            trained(list(tiny.prompts[:2]), num_inference_steps=12, generator=seeds)
        reports.append(run.report)
    diffcache.unwrap(trained)
    assert torch.equal(reports[0].mask, reports[1].mask)
    assert reports[0].mask[:, 1].all() and not reports[0].mask[:, 0].all()


def test_compare_and_tune_take_them(trained: Any, tmp_path: Any) -> None:
    call = {"num_inference_steps": np.int64(12), "batch_size": np.int64(2)}
    found = diffcache.compare(
        trained, ["a"], minutes=np.float32(0.001), psnr=np.float32(30), seeds=np.int64(3), **call
    )
    assert found.seeds == [3] and type(found.setting["steps"]) is int
    found.save(tmp_path)
    tuned = diffcache.tune(trained, ["a"], psnr=np.float32(10), seeds=np.array([3]), **call)
    tuned.save(tmp_path / "tuned.json")


@pytest.mark.parametrize("seeds", [[1.5], "1", [None], 2.5])
def test_seeds_are_whole_numbers(trained: Any, seeds: Any) -> None:
    with pytest.raises(ValueError, match=r"are not whole numbers; .*seeds=range\(1\)"):
        diffcache.compare(trained, ["a"], seeds=seeds)
