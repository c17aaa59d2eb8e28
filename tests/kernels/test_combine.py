"""`combine`: twin and kernel against float64, over shapes, layouts, dtypes and forms of weights."""

import numpy as np
import pytest
import torch

from diffcache import kernels

WEIGHTS = (1.7, -1.5, 0.75, -0.3, 1.1, -0.01, 3.0, 0.2)

SHAPES = [(1, 1), (3,), (8, 3), (2, 17, 5), (5, 3, 2, 1, 7), (1, 2, 33, 65)]
# Relative error of one rounding to the dtype; all else is fp32, at least.
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
ROUNDING[torch.float64] = 2**-53
SUMMATION = 8 * 2**-24
LAYOUTS = [
    "channels_last",
    "sliced",
    "offset",
    "transposed",
    "batch_inside",
    "expanded",
    "batch_expanded",
]


def shape_id(shape):
    return "x".join(map(str, shape))


def dtype_id(dtype):
    return str(dtype).removeprefix("torch.")


def assert_close(result, expected, magnitude, engine):
    rounding = ROUNDING[result.dtype]
    if result.dtype == torch.bfloat16 and engine.truncates_bf16:
        rounding *= 2
    error = np.abs(result.cpu().double().numpy() - expected)
    # fp16 is spaced 2**-24 near zero, where a relative bound asks too much.
    allowed = rounding * np.abs(expected) + SUMMATION * magnitude + 2**-25
    assert (error <= allowed).all(), f"error up to {(error / allowed).max()} of what is allowed"


@pytest.mark.parametrize("dtype", ROUNDING, ids=dtype_id)
@pytest.mark.parametrize("terms", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_equals_the_definition(engine, operand, naive, shape, terms, dtype):
    tensors = [operand(shape, dtype=dtype, device=engine.device) for _ in range(terms)]
    result = kernels.combine(tensors, WEIGHTS[:terms])
    assert result.dtype == dtype
    assert result.shape == shape
    assert_close(result, *naive.combine(tensors, WEIGHTS[:terms]), engine)


@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 6, 7, 8])
def test_weights_per_row(engine, operand, naive, rows, terms):
    tensors = [operand((rows, 3, 7), device=engine.device) for _ in range(terms)]
    table = operand((rows, terms))
    result = kernels.combine(tensors, table)
    assert_close(result, *naive.combine(tensors, table), engine)
    assert torch.equal(kernels.combine(tensors, table.to(engine.device)), result)


@pytest.mark.parametrize("dtype", ROUNDING, ids=dtype_id)
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per-row"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4, 9, 13)], ids=shape_id)
def test_equals_the_definition_in_any_layout(engine, operand, naive, shape, layout, per_row, dtype):
    tensors = [operand(shape, layout, dtype, engine.device) for _ in range(3)]
    weights = operand((3, 3)) if per_row else WEIGHTS[:3]
    result = kernels.combine(tensors, weights)
    assert result.stride() == torch.empty_like(tensors[0]).stride()
    assert_close(result, *naive.combine(tensors, weights), engine)


@pytest.mark.parametrize("first", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layouts", [["contiguous", *LAYOUTS[:3]], LAYOUTS[3:]], ids=" ".join)
@pytest.mark.parametrize("shape", [(2, 3, 11, 6)], ids=shape_id)
def test_layouts_and_dtypes_may_differ(engine, operand, naive, shape, layouts, first):
    dtypes = [getattr(torch, first), torch.bfloat16, torch.float32, torch.float16]
    tensors = [
        operand(shape, layout, dtype, engine.device)
        for layout, dtype in zip(layouts, dtypes, strict=True)
    ]
    result = kernels.combine(tensors, WEIGHTS[:4])
    assert result.dtype == dtypes[0]
    assert_close(result, *naive.combine(tensors, WEIGHTS[:4]), engine)


@pytest.mark.parametrize("dtype", ROUNDING, ids=dtype_id)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3, 33, 65)], ids=shape_id)
def test_out_is_written_whole_and_its_surroundings_not(
    engine, operand, naive, shape, layout, dtype
):
    tensors = [operand(shape, device=engine.device) for _ in range(2)]
    out = operand(shape, layout, dtype, engine.device)
    buffer = out.as_strided((out.untyped_storage().nbytes() // out.element_size(),), (1,), 0)
    buffer.fill_(torch.nan)
    assert kernels.combine(tensors, (0.5, -2.0), out=out) is out
    assert_close(out, *naive.combine(tensors, (0.5, -2.0)), engine)
    assert buffer.isnan().sum() == buffer.numel() - out.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("weights", ["shared", "per-row"])
@pytest.mark.parametrize("shape", [(2, 3, 50)], ids=shape_id)
def test_half_precision_accumulates_in_single(engine, operand, naive, shape, weights, terms, dtype):
    tensors = [operand(shape, dtype=dtype, device=engine.device) for _ in range(terms)]
    weights = WEIGHTS[:terms] if weights == "shared" else operand((2, terms))
    out = torch.full(shape, torch.nan, device=engine.device)
    kernels.combine(tensors, weights, out=out)
    assert_close(out, *naive.combine(tensors, weights), engine)


@pytest.mark.parametrize("weights", ["shared", "per-row"])
def test_double_precision_is_kept(engine, operand, naive, weights):
    dtypes = [torch.float64, torch.float32, torch.float64]
    tensors = [operand((2, 3, 50), dtype=dtype, device=engine.device) for dtype in dtypes]
    weights = (1.5, -1.25, 0.75) if weights == "shared" else operand((2, 3))
    expected, magnitude = naive.combine(tensors, weights)
    error = np.abs(kernels.combine(tensors, weights).cpu().numpy() - expected)
    assert (error <= 8 * 2**-53 * magnitude).all()


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("weights", ["shared", "per-row"])
def test_out_may_be_an_input(engine, operand, position, weights):
    tensors = [operand((3, 4, 50), device=engine.device) for _ in range(3)]
    weights = WEIGHTS[:3] if weights == "shared" else operand((3, 3))
    expected = kernels.combine(tensors, weights)
    kernels.combine(tensors, weights, out=tensors[position])
    assert torch.equal(tensors[position], expected)


AWKWARD = [0.0, -0.0, 1e-45, -6e-8, 1.0, 65504.0, torch.inf, -torch.inf]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", ROUNDING, ids=dtype_id)
@pytest.mark.parametrize("form", ["alone", "with zeros", "per row"])
@pytest.mark.parametrize("shape", [(2, 8)], ids=shape_id)
def test_unit_weight_copies_every_bit(engine, operand, shape, form, dtype):
    source = torch.tensor([AWKWARD, AWKWARD[::-1]], dtype=dtype, device=engine.device)
    other = torch.full_like(source, torch.inf)
    tensors = [source] if form == "alone" else [other, source]
    weights = {
        "alone": [1.0],
        "with zeros": [0.0, 1.0],
        "per row": torch.tensor([[0.0, 1.0], [3.0, 0.0]]),
    }[form]
    result = kernels.combine(tensors, weights)
    copied = slice(0, 1) if form == "per row" else slice(None)
    width = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(result[copied].view(width), source[copied].view(width))
    assert result.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
    if form == "per row":
        assert (result[1] == torch.inf).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("weights", [[0.0, 0.0], "per row"])
def test_zero_weights_give_zero(engine, weights):
    poison = torch.full((2, 3), torch.nan, device=engine.device)
    if weights == "per row":
        weights = torch.tensor([[0.0, 0.0], [torch.inf, 0.0]])
    assert kernels.combine([poison, poison], weights)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_passes_through(engine, operand, value):
    tensors = [operand((2, 3), device=engine.device) for _ in range(2)]
    tensors[1][1, 2] = value
    result = kernels.combine(tensors, (1.0, -2.0))
    assert result.isfinite().tolist() == [[True] * 3, [True, True, False]]
    torch.testing.assert_close(
        result[1, 2], torch.tensor(-2 * value, device=engine.device), equal_nan=True
    )


@pytest.mark.parametrize(
    "form",
    [
        torch.tensor,
        lambda w: torch.tensor(w, dtype=torch.float64),
        lambda w: torch.tensor([w] * 3),
        lambda w: torch.tensor([w] * 3).t().contiguous().t(),
        lambda w: torch.tensor(w).repeat_interleave(2)[::2],
        lambda w: [np.float64(x) for x in w],
    ],
    ids=["fp32", "fp64", "per-row", "column-major", "strided", "numpy-scalars"],
)
def test_weights_come_in_many_forms(engine, operand, form):
    tensors = [operand((3, 5, 7), device=engine.device) for _ in range(3)]
    weights = form((2.0, -1.5, 0.75))
    expected = kernels.combine(tensors, (2.0, -1.5, 0.75))
    torch.testing.assert_close(kernels.combine(tensors, weights), expected)
    if isinstance(weights, torch.Tensor):
        torch.testing.assert_close(kernels.combine(tensors, weights.to(engine.device)), expected)


@pytest.mark.parametrize("weight", [1.0, 0.0, 2.0, "per row"])
@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (4, 0, 5), (0,)], ids=shape_id)
def test_nothing_combines_to_nothing(engine, operand, shape, weight):
    weights = operand((shape[0], 1)) if weight == "per row" else [weight]
    result = kernels.combine([operand(shape, device=engine.device)], weights)
    assert result.shape == shape


@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per-row"])
def test_same_input_same_bits_and_inputs_stay(engine, operand, per_row):
    tensors = [operand((2, 3, 500), device=engine.device).requires_grad_() for _ in range(4)]
    before = [tensor.detach().clone() for tensor in tensors]
    weights = operand((2, 4)).requires_grad_() if per_row else WEIGHTS[:4]
    result = kernels.combine(tensors, weights)
    assert torch.equal(kernels.combine(tensors, weights), result)
    assert not result.requires_grad
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))
