"""What only a launch has: programs that share a row, wide offsets, counters, streams."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffcache import kernels
from diffcache.kernels import tiling

COEFFICIENTS = (1.0, -3.0, 3.0, -1.0)


def shape_id(shape):
    return "x".join(map(str, shape))


def assert_close(result, naive, tensors, coefficients):
    expected, magnitude = naive.difference(tensors, coefficients)
    for name, values in result._asdict().items():
        error = abs(values.cpu().double().numpy() - expected[name])
        assert (error <= 5e-7 * magnitude[name]).all(), name


@pytest.fixture
def small_tiles(monkeypatch):
    tile = tiling.Tiling(elements=2**40, block=16, warps=1, programs=3)
    monkeypatch.setattr("diffcache.kernels.difference_triton.REDUCTION_TILINGS", (tile,))
    tile = tile._replace(programs=2**31)
    monkeypatch.setattr("diffcache.kernels.combination_triton.ELEMENTWISE_TILINGS", (tile,))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("shape", [(2, 16), (2, 17), (3, 3, 11), (3, 5, 27)], ids=shape_id)
def test_programs_share_a_row(triton_engine, small_tiles, operand, naive, shape, layout):
    tensors = [operand(shape, layout, device=triton_engine.device) for _ in range(4)]
    for _ in range(2):
        result = kernels.latent_difference(tensors, COEFFICIENTS, steps=True)
        assert_close(result, naive, tensors, COEFFICIENTS)
    table = operand((shape[0], 4))
    expected, magnitude = naive.combine(tensors, table)
    combined = kernels.combine(tensors, table).cpu().double().numpy()
    assert (abs(combined - expected) <= 5e-7 * magnitude).all()


def test_large_row_with_the_real_table(triton_engine, operand, naive):
    elements = tiling.REDUCTION_TILINGS[2].programs * tiling.REDUCTION_TILINGS[2].block + 5
    tensors = [operand((1, elements), device=triton_engine.device) for _ in range(2)]
    result = kernels.latent_difference(tensors, (1.0, -1.0), steps=True)
    assert_close(result, naive, tensors, (1.0, -1.0))


def test_counters_return_to_zero(triton_engine, small_tiles, operand):
    from diffcache.kernels import difference_triton

    for rows in (3, 70, 2):
        tensors = [operand((rows, 17), device=triton_engine.device)]
        kernels.latent_difference(tensors, [1.0])
        (counters,) = [
            counters
            for (device, _), counters in difference_triton._arrivals.items()
            if device == tensors[0].device
        ]
        assert counters.numel() >= rows
        assert not counters.any()


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_wide_offsets_change_nothing(triton_engine, small_tiles, operand, monkeypatch, layout):
    tensors = [operand((2, 5, 41), layout, device=triton_engine.device) for _ in range(3)]

    def run():
        sums = kernels.latent_difference(tensors, COEFFICIENTS[:3], steps=True)
        return torch.stack(sums), kernels.combine(tensors, COEFFICIENTS[:3])

    narrow = run()
    monkeypatch.setattr(tiling, "NARROW_EXTENT", 0)
    wide = run()
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


def test_offsets_beyond_32_bits(triton_engine, tmp_path):
    if triton_engine.device.type == "cpu":
        # A sparse file: only the touched pages exist.
        pool = torch.from_file(str(tmp_path / "pool"), True, 2**31 + 8, dtype=torch.float16)
    else:
        pool = torch.empty(2**31 + 8, dtype=torch.float16, device=triton_engine.device)
    tensor = pool.as_strided((1, 3, 5), (0, 2**30, 1))
    tensor.copy_(torch.arange(15.0).view(1, 3, 5))
    assert kernels.latent_difference([tensor], [1.0]).abs_reference.tolist() == [105.0]
    assert kernels.combine([tensor], [2.0]).flatten().tolist() == [2.0 * x for x in range(15)]


class NewStorages(TorchDispatchMode):
    """Collects the bytes of every storage that appears in an operation's result."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            if storage.data_ptr() not in self.known:
                # Kept, so that no later allocation takes the same address.
                self.alive[storage.data_ptr()] = storage
        return result

    def sizes(self):
        return [storage.nbytes() for storage in self.alive.values()]


@pytest.mark.parametrize("shape", [(2, 2, 33, 65)], ids=shape_id)
def test_nothing_of_the_tensors_size_is_allocated(triton_engine, operand, shape):
    layouts = ["contiguous", "channels_last", "sliced", "expanded"]
    tensors = [operand(shape, layout, device=triton_engine.device) for layout in layouts]
    with NewStorages(tensors) as storages:
        kernels.latent_difference(tensors, COEFFICIENTS, steps=True)
    assert 0 < sum(storages.sizes()) < tensors[0].nbytes / 20
    with NewStorages(tensors) as storages:
        kernels.combine(tensors, COEFFICIENTS)
    assert sum(storages.sizes()) == tensors[0].nbytes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_do_not_share_counters(operand):
    tensors = [operand((8, 300_000), device="cuda") for _ in range(4)]
    expected = torch.stack(kernels.latent_difference(tensors, COEFFICIENTS, steps=True))
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    results = []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                result = kernels.latent_difference(tensors, COEFFICIENTS, steps=True)
                results.append(torch.stack(result))
    torch.cuda.synchronize()
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_replays(operand):
    tensors = [operand((2, 50_000), device="cuda") for _ in range(4)]
    kernels.latent_difference(tensors, COEFFICIENTS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.latent_difference(tensors, COEFFICIENTS)
    for _ in range(3):
        tensors[0].normal_()
        graph.replay()
        expected = kernels.latent_difference(tensors, COEFFICIENTS)
        assert torch.equal(torch.stack(captured[:4]), torch.stack(expected[:4]))
