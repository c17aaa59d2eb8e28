"""Promises: tensors that are computed when, and only if, somebody needs their values."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcache.runtime.promises import Promise, kept, outline, promise

CPU = torch.device("cpu")


class Source:
    """A function of a tensor, and a count of its runs."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.runs = 0

    def __call__(self, x: Tensor, scales: list[float]) -> tuple[list[Tensor], None, Tensor]:
        self.runs += 1
        return [x * scale for scale in scales], None, x.sum((1, 2, 3))

    def promised(self, scales: list[float] | None = None) -> tuple[list[Promise], None, Promise]:
        scales = [2.0, 3.0] if scales is None else scales
        like = outline(([self.x, self.x], None, self.x.sum((1, 2, 3))))
        return promise(self, (self.x,), {"scales": scales}, like, CPU)


@pytest.fixture
def source() -> Source:
    return Source(torch.arange(96.0).reshape(2, 3, 4, 4))


def test_nothing_runs_until_kept_and_then_once(source):
    (twice, thrice), nothing, total = source.promised()
    assert nothing is None
    assert isinstance(twice, Tensor)
    assert (twice.shape, twice.dtype, twice.device) == (source.x.shape, source.x.dtype, CPU)
    assert total.shape == (2,)
    assert source.runs == 0
    found = kept({"a": [twice], "b": (thrice, 1)})
    assert type(found["a"][0]) is Tensor
    assert torch.equal(found["a"][0], source.x * 2)
    assert torch.equal(found["b"][0], source.x * 3)
    assert torch.equal(kept(total), source.x.sum((1, 2, 3)))
    assert source.runs == 1


def test_what_holds_no_promise_is_left_alone(source):
    tree = ({"a": [source.x]}, 1)
    assert kept(tree) is tree


def test_containers_may_be_emptied_meanwhile(source):
    scales = [2.0, 3.0]
    (twice, _), *_ = source.promised(scales)
    scales.clear()
    assert torch.equal(kept(twice), source.x * 2)


OPERATIONS: dict[str, Callable[[Tensor], Any]] = {
    "guess mode": lambda x: torch.cat([torch.zeros_like(x), x]),
    "halves": lambda x: x.chunk(2)[1],
    "rows": lambda x: x[torch.tensor([1])],
    "row": lambda x: x[0, ..., 1:],
    "arithmetic": lambda x: (x + 1) * torch.ones(4) / 2 - x,
    "another dtype": lambda x: x.to(torch.bfloat16),
    "another device": lambda x: x.to("cpu", torch.float64),
    "reshaped": lambda x: x.permute(0, 2, 3, 1).reshape(2, -1),
    "repeated": lambda x: x.repeat_interleave(2, 0).expand(4, 3, 4, 4),
    "clone": lambda x: x.detach().clone().contiguous(),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_operations_on_promises_are_promises(source, name, layout):
    source.x = source.x.to(memory_format=layout)
    (twice, _), *_ = source.promised()
    later = OPERATIONS[name](twice)
    assert isinstance(later, Promise)
    assert source.runs == 0
    expected = OPERATIONS[name](source.x * 2)
    assert (later.shape, later.dtype, later.device) == (expected.shape, expected.dtype, CPU)
    assert later.stride() == expected.stride()
    assert torch.equal(kept(later), expected)
    assert source.runs == 1


READERS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "truth": lambda x: bool(x.any()),
    "equal": lambda x: torch.equal(x, x + 0),
    "nonzero": lambda x: x.nonzero().tolist(),
    "mask": lambda x: x[x > 5].tolist(),
}


@pytest.mark.parametrize("name", READERS)
def test_values_that_are_needed_are_computed(source, name):
    (twice, _), *_ = source.promised()
    assert READERS[name](twice) == READERS[name](source.x * 2)
    assert source.runs == 1


def test_writes_in_place_are_seen_by_what_comes_after(source):
    (twice, thrice), *_ = source.promised()
    before, half = twice * 1, twice[:1]
    half += 1
    after = twice * 1
    expected = source.x * 2
    assert torch.equal(kept(before), expected)
    expected[:1] += 1
    assert torch.equal(kept(after), expected)
    assert torch.equal(kept(twice), expected)
    target = torch.zeros_like(source.x)
    target += thrice
    assert torch.equal(target, source.x * 3)
    assert source.runs == 1


def test_values_may_be_written_to(source):
    (twice, _), *_ = source.promised()
    before = torch.cat([twice, twice])
    kept(twice).zero_()
    assert torch.equal(kept(before), torch.cat([source.x * 2] * 2))


def test_random_numbers_are_drawn_in_order(source):
    (twice, _), *_ = source.promised()
    torch.manual_seed(0)
    noise, after = torch.randn_like(twice), torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(noise, torch.randn_like(source.x))
    assert torch.equal(after, torch.randn(3))


def test_errors_are_the_callers(source):
    (twice, _), *_ = source.promised()
    with pytest.raises(RuntimeError, match="must match"):
        twice + torch.ones(5)
