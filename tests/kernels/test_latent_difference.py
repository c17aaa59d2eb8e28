"""`latent_difference`: twin and kernel against float64, over shapes, layouts, dtypes and forms."""

import numpy as np
import pytest
import torch

from diffcache import kernels

COEFFICIENTS = (1.0, -3.0, 3.0, -1.0)
FIELDS = kernels.LatentDifference._fields

SHAPES = [(1, 1), (3,), (8, 3), (2, 17, 5), (5, 3, 2, 1, 7), (1, 2, 33, 65)]
# Half-precision inputs are exact in fp32, so all dtypes share the error of fp32 sums.
TOLERANCES = {torch.float32: 5e-7, torch.float16: 5e-7, torch.bfloat16: 5e-7}
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


def assert_close(result, expected, magnitude, tolerance):
    for name, values in result._asdict().items():
        if values is None:
            continue
        assert values.dtype == torch.float32
        assert values.shape == expected[name].shape
        error = np.abs(values.cpu().double().numpy() - expected[name])
        allowed = tolerance * magnitude[name] + 1e-30
        assert (error <= allowed).all(), f"{name}: {error} exceeds {allowed}"


@pytest.mark.parametrize("dtype", TOLERANCES, ids=dtype_id)
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_equals_the_definition(engine, operand, naive, shape, terms, dtype):
    tensors = [operand(shape, dtype=dtype, device=engine.device) for _ in range(terms)]
    result = kernels.latent_difference(tensors, COEFFICIENTS[:terms], steps=True)
    assert_close(result, *naive.difference(tensors, COEFFICIENTS[:terms]), TOLERANCES[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 4, 9, 13)], ids=shape_id)
def test_equals_the_definition_in_any_layout(engine, operand, naive, shape, layout):
    tensors = [operand(shape, layout, device=engine.device) for _ in range(4)]
    assert_close(
        kernels.latent_difference(tensors, COEFFICIENTS, steps=True),
        *naive.difference(tensors, COEFFICIENTS),
        TOLERANCES[torch.float32],
    )


@pytest.mark.parametrize(
    "layouts", [("contiguous", *LAYOUTS[:3]), LAYOUTS[:4], LAYOUTS[3:]], ids=" ".join
)
@pytest.mark.parametrize("shape", [(2, 3, 11, 6)], ids=shape_id)
def test_layouts_and_dtypes_may_differ(engine, operand, naive, shape, layouts):
    dtypes = [torch.bfloat16, torch.float32, torch.float16, torch.float64]
    tensors = [
        operand(shape, layout, dtype, engine.device)
        for layout, dtype in zip(layouts, dtypes, strict=True)
    ]
    assert_close(
        kernels.latent_difference(tensors, COEFFICIENTS, steps=True),
        *naive.difference(tensors, COEFFICIENTS),
        TOLERANCES[torch.float32],
    )


@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_coefficients_per_row(engine, operand, naive, rows, terms):
    tensors = [operand((rows, 3, 7), device=engine.device) for _ in range(terms)]
    table = operand((rows, terms), device=engine.device)
    result = kernels.latent_difference(tensors, table)
    assert_close(result, *naive.difference(tensors, table), TOLERANCES[torch.float32])
    for b in range(rows):
        alone = kernels.latent_difference([tensor[b : b + 1] for tensor in tensors], table[b])
        torch.testing.assert_close(result.abs_difference[b], alone.abs_difference[0])


@pytest.mark.parametrize(
    "form",
    [
        lambda c: list(map(int, c)),
        torch.tensor,
        lambda c: torch.tensor(c, dtype=torch.float64),
        lambda c: torch.tensor(c, dtype=torch.int64),
        lambda c: torch.tensor(c, dtype=torch.bfloat16).expand(3, 4),
        lambda c: torch.tensor([c] * 3).t().contiguous().t(),
        lambda c: torch.tensor(c).repeat_interleave(2)[::2],
        lambda c: [torch.tensor(x) for x in c],
    ],
    ids=["ints", "fp32", "fp64", "int64", "bf16-expanded", "column-major", "strided", "scalars"],
)
def test_coefficients_come_in_many_forms(engine, operand, form):
    tensors = [operand((3, 5, 7), device=engine.device) for _ in range(4)]
    expected = kernels.latent_difference(tensors, COEFFICIENTS)
    coefficients = form(COEFFICIENTS)
    torch.testing.assert_close(
        kernels.latent_difference(tensors, coefficients).sq_difference, expected.sq_difference
    )
    if isinstance(coefficients, torch.Tensor):
        there = kernels.latent_difference(tensors, coefficients.to(engine.device))
        torch.testing.assert_close(there.sq_difference, expected.sq_difference)


def test_third_order_statistic_vanishes_on_a_parabola(engine):
    time = torch.arange(4.0, device=engine.device)
    tensors = list((1 + 2 * time + 3 * time**2).view(4, 1, 1).expand(4, 2, 6).unbind(0))
    result = kernels.latent_difference(tensors, COEFFICIENTS, steps=True)
    assert result.abs_difference.tolist() == [0, 0]
    assert result.abs_step.tolist() == [30, 30]
    assert result.direction.tolist() == [6 * 5 * 11, 6 * 5 * 11]


def test_steps_are_filled_only_on_demand(engine, operand):
    tensors = [operand((2, 5), device=engine.device) for _ in range(4)]
    without = kernels.latent_difference(tensors, COEFFICIENTS)
    complete = kernels.latent_difference(tensors, COEFFICIENTS, steps=True)
    assert without[4:] == (None, None, None, None)
    torch.testing.assert_close(without[:4], complete[:4])


@pytest.mark.parametrize("steps", [False, True])
def test_absolute_sums_can_be_left_out(engine, operand, steps):
    tensors = [operand((3, 4, 17), device=engine.device) for _ in range(3)]
    lean = kernels.latent_difference(tensors, COEFFICIENTS[:3], steps=steps, absolute=False)
    complete = kernels.latent_difference(tensors, COEFFICIENTS[:3], steps=steps)
    assert lean.abs_difference is None and lean.abs_reference is None
    for ours, theirs in zip(lean[2:], complete[2:], strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize(("terms", "zero"), [(1, FIELDS[4:]), (2, FIELDS[6:])])
def test_steps_that_need_more_tensors_are_zero(engine, operand, terms, zero):
    tensors = [operand((2, 5), device=engine.device) for _ in range(terms)]
    result = kernels.latent_difference(tensors, COEFFICIENTS[:terms], steps=True)
    for name in FIELDS[4:]:
        assert (getattr(result, name) == 0).all() == (name in zero), name


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 0, 5), (0,)], ids=shape_id)
def test_nothing_sums_to_zero(engine, operand, shape, steps):
    tensors = [operand(shape, device=engine.device) for _ in range(3)]
    result = kernels.latent_difference(tensors, COEFFICIENTS[:3], steps=steps)
    for values in result[: 8 if steps else 4]:
        assert values.tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("shape", [(3, 7), (2, 2, 33, 65)], ids=shape_id)
def test_same_input_same_bits(engine, operand, shape):
    tensors = [operand(shape, device=engine.device) for _ in range(4)]
    others = [operand((5, 3000), device=engine.device) for _ in range(2)]
    first = kernels.latent_difference(tensors, COEFFICIENTS, steps=True)
    kernels.latent_difference(others, COEFFICIENTS[:2])
    for _ in range(3):
        again = kernels.latent_difference(tensors, COEFFICIENTS, steps=True)
        assert torch.equal(torch.stack(first), torch.stack(again))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("elements", [5, 1030])
def test_what_is_not_finite_shows_in_its_own_sample(engine, operand, elements, value):
    tensors = [operand((3, elements), device=engine.device) for _ in range(4)]
    tensors[0][1, elements - 1] = value
    result = kernels.latent_difference(tensors, COEFFICIENTS, steps=True)
    for name in ("abs_difference", "abs_reference", "sq_difference", "sq_reference", "abs_step"):
        sums = getattr(result, name)
        assert sums.isfinite().tolist() == [True, False, True], name
        assert sums[1].isnan() == np.isnan(value), name
    assert result.direction.isfinite().tolist() == [True, False, True]
    assert result.sq_previous_step.isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_infinite_coefficient_gives_infinity_and_not_nan(engine, operand):
    tensors = [operand((2, 5), device=engine.device) for _ in range(2)]
    result = kernels.latent_difference(tensors, (torch.inf, 1.0))
    assert result.abs_difference.tolist() == [torch.inf, torch.inf]


def test_inputs_stay_and_no_gradient_flows(engine, operand):
    tensors = [operand((2, 3, 5), device=engine.device).requires_grad_() for _ in range(3)]
    before = [tensor.detach().clone() for tensor in tensors]
    coefficients = operand((2, 3)).requires_grad_()
    result = kernels.latent_difference(tensors, coefficients, steps=True)
    assert not any(values.requires_grad for values in result)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


@pytest.mark.parametrize("terms", [1, 3, 5])
@pytest.mark.parametrize("shape", [(3,), (8, 3), (2, 17, 5)], ids=shape_id)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=dtype_id)
@pytest.mark.parametrize("per_row", [False, True, "on the CPU"])
def test_forecast_error(engine, terms, shape, dtype, per_row):
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(
        torch.randn(shape, generator=generator).to(engine.device, dtype) for _ in range(terms)
    )
    rows = torch.randn(shape[0], terms - 1, generator=generator)
    rows = rows if per_row else rows[:1].expand_as(rows)
    value, *anchors = (tensor.double().reshape(shape[0], -1).cpu() for tensor in tensors)
    forecast = sum(rows[:, k : k + 1].double() * anchors[k] for k in range(terms - 1))
    expected = torch.stack([(value - forecast).square().sum(1), value.square().sum(1)])
    there = rows if per_row == "on the CPU" else rows.to(engine.device)
    weights = there if per_row else tuple(rows[0].tolist())
    found = kernels.forecast_error(tensors[0], tensors[1:], weights)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-6)
