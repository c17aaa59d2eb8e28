"""What the kernels refuse, and that the message names what was passed and what would do."""

import pytest
import torch

from diffcache import kernels

X = torch.ones(2, 3)


@pytest.fixture(params=["latent_difference", "combine"])
def function(request):
    return getattr(kernels, request.param)


@pytest.mark.parametrize(
    ("tensors", "weights", "error", "parts"),
    [
        ([], [], ValueError, ["K=0", "1 to"]),
        (X, [1.0, 1.0], TypeError, ["Tensor", "list or tuple"]),
        ([X, None], [1.0, 1.0], TypeError, ["tensors[1]", "NoneType"]),
        ([X, X.long()], [1.0, 1.0], TypeError, ["tensors[1]", "torch.int64", "torch.bfloat16"]),
        ([X.bool()], [1.0], TypeError, ["torch.bool", "torch.float32"]),
        ([torch.tensor(1.0)], [1.0], ValueError, ["0-d", "[B, ...]"]),
        ([X, X[:1]], [1.0, 1.0], ValueError, ["tensors[1]", "[1, 3]", "[2, 3]"]),
        ([X, X.to("meta")], [1.0, 1.0], ValueError, ["tensors[1]", "meta", "cpu"]),
        ([X, X], [1.0], ValueError, ["1 entries", "K=2"]),
        ([X, X], [1.0, "x"], TypeError, ["real numbers", "tensor [B, K]"]),
        ([X], [[1.0]], TypeError, ["real numbers", "tensor [B, K]"]),
        ([X], 1.0, TypeError, ["float", "sequence of K floats"]),
        ([X], "1", TypeError, ["str", "sequence of K floats"]),
        ([X, X], torch.ones(3), ValueError, ["[3]", "[2]", "[2, 2]"]),
        ([X, X, X], torch.ones(3, 3), ValueError, ["[3, 3]", "[2, 3]"]),
        ([X], torch.ones(2, 1, 1), ValueError, ["[2, 1, 1]", "[2, 1]"]),
        ([X], torch.ones(1, dtype=torch.bool), TypeError, ["torch.bool", "real"]),
        ([X], torch.ones(1, dtype=torch.complex64), TypeError, ["torch.complex64", "real"]),
        ([X], torch.ones(1, device="meta"), ValueError, ["meta", "cpu"]),
    ],
)
def test_refuses(function, tensors, weights, error, parts):
    with pytest.raises(error) as caught:
        function(tensors, weights)
    message = str(caught.value)
    assert message.startswith(function.__name__)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(("name", "limit"), [("latent_difference", 4), ("combine", 8)])
def test_refuses_too_many(name, limit):
    function = getattr(kernels, name)
    function([X] * limit, [1.0] * limit)
    with pytest.raises(ValueError, match=f"K={limit + 1} tensors; pass 1 to {limit}"):
        function([X] * (limit + 1), [1.0] * (limit + 1))


@pytest.mark.parametrize(
    ("out", "error", "parts"),
    [
        ([], TypeError, ["list", "torch.Tensor"]),
        (X.long(), TypeError, ["torch.int64", "torch.float32"]),
        (X[:1], ValueError, ["[1, 3]", "[2, 3]"]),
        (X.to("meta"), ValueError, ["meta", "cpu"]),
        (X[:1].expand(2, 3), ValueError, ["(0, 1)", "expanded"]),
        (torch.ones(2, 3, requires_grad=True), ValueError, ["requires grad"]),
    ],
)
def test_refuses_out(out, error, parts):
    with pytest.raises(error) as caught:
        kernels.combine([X], [1.0], out=out)
    for part in ["combine: out", *parts]:
        assert part in str(caught.value)


def test_an_out_that_requires_grad_is_filled_under_no_grad():
    out = torch.zeros(2, 3, requires_grad=True)
    with torch.no_grad():
        kernels.combine([X], [2.0], out=out)
    assert out.tolist() == [[2.0] * 3] * 2


def test_coefficients_are_called_by_their_name():
    with pytest.raises(ValueError, match="coefficients has 1 entries"):
        kernels.latent_difference([X, X], [1.0])
