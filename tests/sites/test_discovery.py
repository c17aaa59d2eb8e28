"""Denoisers and their lists of blocks, by structure."""

import pytest
from torch import nn

from diffcache.sites.discovery import block_lists, is_denoiser


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.feed_forward(self.attention(x))


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)


class Part(nn.Module):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x, timestep):
        return x


def blocks(kind: type[nn.Module] = Block) -> nn.ModuleList:
    return nn.ModuleList([kind() for _ in range(2)])


def names(**children: nn.Module) -> list[str]:
    return [name for name, _ in block_lists(Part(**children))]


def test_lists_of_a_helper_are_no_part_of_the_stack():
    assert names(refiner=Part(blocks=blocks()), single=blocks(), dual=blocks()) == [
        "single",
        "dual",
    ]


def test_stack_inside_of_a_part_is_found_where_there_is_no_other():
    assert names(embedder=Projection(), trunk=Part(blocks=blocks())) == ["trunk.blocks"]


def test_module_dict_holds_lists_of_its_owner():
    modes = nn.ModuleDict({"image": blocks(), "text": blocks()})
    assert names(modes=modes, single=blocks()) == ["modes.image", "modes.text", "single"]


@pytest.mark.parametrize(
    "other",
    [blocks(Projection), nn.ModuleList([blocks(), blocks()]), nn.ModuleList()],
    ids=["projections", "lists that are never called", "empty"],
)
def test_lists_that_are_no_stacks(other):
    assert names(other=other, layers=blocks()) == ["layers"]


@pytest.mark.parametrize("argument", ["timestep", "timesteps", "t", "timestep_ratio", "noise_time"])
def test_denoiser_takes_a_time(argument):
    scope: dict = {}
    exec(f"def forward(self, x, {argument}): return x", scope)
    assert is_denoiser(type("Model", (nn.Module,), {"forward": scope["forward"]})())


def test_helpers_are_told_by_name_and_by_what_they_lack():
    helper = type("ControlNetModel", (Part,), {})
    assert not is_denoiser(helper(down_blocks=blocks()))
    assert is_denoiser(helper(down_blocks=blocks(), up_blocks=blocks()))


def test_what_takes_no_time_is_no_denoiser():
    assert not is_denoiser(Block())
    assert not is_denoiser("unet")
