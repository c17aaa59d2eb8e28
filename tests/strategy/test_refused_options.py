"""Options that could only fail in a generation are refused when they are given."""

from math import inf, nan
from typing import Any

import pytest
import torch

from diffcache.methods import find
from diffcache.policies import Gated, Interval, Mask, PowerLaw
from diffcache.predictors import Kriging


@pytest.mark.parametrize(
    ("method", "name", "value", "advice"),
    [
        ("adaptive", "points", 2.0, "points=3"),
        ("adaptive", "points", True, "points=3"),
        ("adaptive", "length", "a", "length=0.6"),
        ("adaptive", "corrects", "no", "corrects=True"),
        ("adaptive", "damps", None, "damps=True"),
        ("adaptive", "compute", (0.5, 0.5), "compute=0.5"),
        ("interval", "order", 1.0, "order=1"),
        ("interval", "order", True, "order=1"),
        ("interval", "within", ("a", "b"), "within=(100, 800)"),
        ("taylorseer", "order", 2.0, "order=1"),
        ("hicache", "scale", "a", "scale=0.5"),
        ("hicache", "scale", nan, "scale=0.5"),
        ("spectrum", "degree", 4.0, "degree=4"),
        ("spectrum", "horizon", 0, "horizon=50"),
        ("spectrum", "ridge", None, "ridge=0.1"),
        ("spectrum", "blend", "a", "blend=0.5"),
        ("fastercache", "alpha_low", None, "alpha_low=1.1"),
        ("fastercache", "low", 5, "low=(99, 901)"),
        ("teacache", "polynomial", 5, "polynomial=(1.0, 0.0)"),
        ("teacache", "polynomial", ("a",), "polynomial=(1.0, 0.0)"),
        ("teacache", "polynomial", (), "polynomial=(1.0, 0.0)"),
        ("magcache", "ratios", (), "ratios=(1.0, 0.98, 0.97)"),
        ("magcache", "ratios", 1.0, "ratios=(1.0, 0.98, 0.97)"),
        ("smoothcache", "errors", (1,), "errors={'self': [[…], …]}"),
        ("smoothcache", "errors", {"self": [["a"]]}, "errors={'self': [[…], …]}"),
        ("smoothcache", "errors", 0.1, "errors={'self': [[…], …]}"),
        ("pab", "policies", None, "ByRole({'self': Interval(2)})"),
        ("pab", "policies", 5, "ByRole({'self': Interval(2)})"),
        ("easycache", "residual", "yes", "residual=True"),
        ("fora", "roles", 5, "self, cross, temporal, mlp"),
        ("fora", "roles", (("self",),), "self, cross, temporal, mlp"),
        ("mask", "mask", "abc", "mask=[True, False, True]"),
        ("mask", "mask", (None,), "mask=[True, False, True]"),
        ("mask", "mask", ((True,), (True, False)), "mask=[True, False, True]"),
    ],
)
def test_the_value_and_one_that_works_are_named(
    method: str, name: str, value: Any, advice: str
) -> None:
    with pytest.raises(ValueError) as caught:
        find(method).configured(**{name: value})
    assert f"{name}={value!r}" in str(caught.value) and advice in str(caught.value)


@pytest.mark.parametrize("options", [{"every": "5"}, {"center": 1.5}, {"power": inf}, {"power": 1}])
def test_a_power_law_is_of_numbers(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"^{name}={value!r} is not .*; try {name}=\d"):
        PowerLaw(**options)


def test_a_gate_is_a_step() -> None:
    with pytest.raises(ValueError, match="gate='late' is not a count of 0 or more; try gate=10"):
        Gated("late", Interval(2), Interval(3))


def test_a_mask_of_tensors_is_one() -> None:
    rows = [torch.tensor([True, False])] * 3
    assert find("mask").configured(mask=rows).policy == Mask([[True, False]] * 3)


def test_what_is_published_and_what_is_unbounded_stays_allowed() -> None:
    assert Kriging(length=inf).points == 3
    assert find("interval").configured(within=[100, 800], every=None).policy.within == (100, 800)
