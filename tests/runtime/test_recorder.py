"""What a calibration's recorder makes of the values it is shown."""

import gc

import pytest
import torch

from diffcache.runtime.lanes import Lane
from diffcache.runtime.recorder import Recorder


def test_changes_are_relative_to_the_value_a_lag_before():
    recorder, lane = Recorder(), Lane([], 1)
    values = [1.0, 2.0, 5.0, 4.0, 8.0]
    for step, value in enumerate(values):
        recorder.take(lane, "key", [torch.full((2, 3), value)], step)
    statistics = recorder.statistics()
    assert statistics.steps == 5
    for lag in (1, 2, 3):
        expected = [
            pytest.approx(abs(values[i] - values[i - lag]) / values[i - lag]) for i in range(lag, 5)
        ]
        assert list(statistics.change("key", lag)) == [None] * lag + expected
        errors = [
            pytest.approx(abs(values[i] - values[i - lag]) / values[i]) for i in range(lag, 5)
        ]
        assert list(statistics.errors["key"][lag - 1]) == [None] * lag + errors
    assert list(statistics.ratios["key"])[1:] == pytest.approx([2, 2.5, 0.8, 2], rel=1e-5)


def test_rows_lanes_and_runs_are_averaged_and_never_compared():
    recorder, lanes = Recorder(), [Lane([], 1), Lane([], 1)]
    for step in range(2):
        rows = torch.tensor([[1.0], [10.0]]) * (1 + step * torch.tensor([[1.0], [2.0]]))
        recorder.take(lanes[0], 0, [rows], step)
        recorder.take(lanes[1], 0, [rows * 100], step)
    assert recorder.statistics().change("0", 1) == (None, pytest.approx(1.5))


def test_keys_of_a_group_are_averaged():
    recorder, lane = Recorder(), Lane([], 1)
    for step in range(2):
        recorder.take(lane, "a", [torch.ones(1, 3) * (1 + step)], step, "both")
        recorder.take(lane, "b", [torch.ones(1, 3) * (1 + 2 * step)], step, "both")
    statistics = recorder.statistics()
    assert statistics.changes.keys() == {"both"}
    assert statistics.change("both", 1) == (None, pytest.approx(1.5))


def test_values_are_copied_and_let_go_with_their_lane():
    recorder, lane = Recorder(), Lane([], 1)
    value = torch.ones(1, 4)
    recorder.take(lane, "key", [value], 0)
    value.mul_(100)
    recorder.take(lane, "key", [torch.ones(1, 4)], 1)
    assert recorder.statistics().change("key", 1)[1] == 0
    del lane
    gc.collect()
    assert len(recorder._past) == 0


def test_a_key_that_was_not_recorded_is_named():
    with pytest.raises(ValueError, match="has no 'probe', only nothing; calibrate with"):
        Recorder().statistics().change("probe", 1)
