"""Which earlier call a call continues."""

from typing import Any

import pytest
import torch

from diffcache.runtime.lanes import Lanes

PLACE = ("denoiser", 0)


def text(value: float) -> torch.Tensor:
    return torch.full((2, 3), value)


def call(embeds: torch.Tensor, step: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.full((2, 4), float(step)),
        "timestep": torch.tensor(step),
        "encoder_hidden_states": embeds,
        **more,
    }


@pytest.fixture
def lanes() -> Lanes:
    return Lanes(2)


def test_same_tensors_continue(lanes):
    cond, uncond = text(1), text(2)
    first = [lanes.find(PLACE, call(x)) for x in (cond, uncond)]
    for step in range(1, 4):
        lanes.next_step()
        assert [lanes.find(PLACE, call(x, step)) for x in (cond, uncond)] == first
    assert lanes.count == 2


def test_conditioning_rebuilt_each_step_continues(lanes):
    first = [lanes.find(PLACE, call(text(value))) for value in (1, 2)]
    for step in range(1, 4):
        lanes.next_step()
        assert [lanes.find(PLACE, call(text(value), step)) for value in (1, 2)] == first


@pytest.mark.parametrize("rebuilt", [False, True], ids=["same tensors", "equal tensors"])
def test_swapped_branches_are_not_mixed(lanes, rebuilt):
    tensors = [text(1), text(2)]
    cond, uncond = (lanes.find(PLACE, call(x)) for x in tensors)
    lanes.next_step()
    again = [x.clone() if rebuilt else x for x in tensors]
    assert lanes.find(PLACE, call(again[1], 1)) is uncond
    assert lanes.find(PLACE, call(again[0], 1)) is cond


def test_equal_calls_of_a_step_are_told_apart_by_order(lanes):
    first = [lanes.find(PLACE, call(text(1))) for _ in range(2)]
    assert first[0] is not first[1]
    lanes.next_step()
    assert [lanes.find(PLACE, call(text(1), 1)) for _ in range(2)] == first


@pytest.mark.parametrize(
    "more",
    [
        {"skip_layers": [1, 2]},
        {"joint_attention_kwargs": {"scale": 0.5}},
        {"guidance": torch.tensor([3.0, 3.0])},
        {"pooled_projections": torch.ones(2, 2)},
        {"return_dict": True},
    ],
    ids=lambda more: next(iter(more)),
)
def test_another_argument_is_another_lane(lanes, more):
    cond = text(1)
    plain, other = lanes.find(PLACE, call(cond)), lanes.find(PLACE, call(cond, **more))
    assert plain is not other
    lanes.next_step()
    assert lanes.find(PLACE, call(cond, 1, **more)) is other
    assert lanes.find(PLACE, call(cond, 1)) is plain


@pytest.mark.parametrize(
    "more",
    [
        {"down_block_additional_residuals": [torch.zeros(2)]},
        {"controlnet_block_samples": [torch.zeros(2)]},
        {"image_rotary_emb": torch.zeros(2)},
        {"txt_ids": torch.zeros(2)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_steps_change_does_not_tell_lanes_apart(lanes, more):
    cond = text(1)
    first = lanes.find(PLACE, call(cond, **more))
    lanes.next_step()
    changed = {
        name: [x + 1 for x in value] if isinstance(value, list) else value + 1
        for name, value in more.items()
    }
    assert lanes.find(PLACE, call(cond, 1, **changed)) is first


def test_other_place_is_another_lane(lanes):
    cond = text(1)
    assert lanes.find(PLACE, call(cond)) is not lanes.find(("denoiser", 1), call(cond))


def test_lane_unused_for_long_is_dropped(lanes):
    lanes.find(PLACE, call(text(1)))
    for _ in range(5):
        lanes.next_step()
        assert lanes.count == 1
    lanes.next_step()
    assert lanes.count == 0


def test_lane_used_every_other_step_stays(lanes):
    cond = text(1)
    first = lanes.find(PLACE, call(cond))
    for step in range(1, 20):
        lanes.next_step()
        if step % 2 == 0:
            assert lanes.find(PLACE, call(cond, step)) is first


def test_calls_of_one_kind_that_come_and_go_leave_nothing_to_each_other(lanes):
    def step(number: int, calls: int) -> str | None:
        for index in range(calls):
            lane = lanes.find(PLACE, call(text(1), number))
            lane.memory["from"] = (number, index)
        other = lanes.find(PLACE, call(text(2), number))
        other.memory["from"] = (number, "other")
        said = lanes.next_step()
        held = [lane.memory.get("from") for known in lanes._known.values() for lane in known]
        kept.append({each for each in held if each is not None})
        return said

    kept: list[set] = []
    said = [step(number, calls) for number, calls in enumerate([1, 1, 2, 2, 1, 1, 2])]
    assert [text is not None for text in said] == [False, False, True, False, True, False, True]
    assert "more or fewer" in said[2]
    # The branch of another prompt keeps what it has.
    assert kept[:4] == [
        {(0, 0), (0, "other")},
        {(1, 0), (1, "other")},
        {(2, "other")},
        {(3, 0), (3, 1), (3, "other")},
    ]


def test_a_call_every_second_step_is_mixed_up_with_none(lanes):
    for step in range(6):
        if step % 2 == 0:
            lanes.find(PLACE, call(text(1), step))
        assert lanes.next_step() is None
