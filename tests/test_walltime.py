"""The bench of wall time: what it times, and what it makes of it."""

import json

import pytest


def _row(family, setting, compute, psnr):
    return {
        "cell": "dit-flow-28",
        "family": family,
        "setting": setting,
        "compute": compute,
        "psnr": psnr,
        "psnr_p5": psnr - 5,
    }


FAMILIES = {
    "full": [_row("full", 28, 1.0, 60)],
    "fewer steps": [_row("fewer steps", 14, 0.5, 35)],
    "adaptive": [_row("adaptive", 0.03, 0.55, 60), _row("adaptive", 0.06, 0.48, 58)],
    "taylorseer": [_row("taylorseer", "every=3", 0.4, 40)],
    "spectrum": [_row("spectrum", 0.25, 0.46, 47)],
    "easycache": [_row("easycache", 0.05, 0.5, 45)],
    "cache-dit DBCache": [_row("cache-dit DBCache", 0.32, 0.49, 39)],
    "diffusers TaylorSeer": [_row("diffusers TaylorSeer", 3, 0.7, 48)],
}


def test_the_best_of_each_kind_and_all_peers_are_timed_at_half_the_compute(of):
    assert of("walltime").settings(FAMILIES) == {
        "adaptive": 0.06,
        "fewer steps": 14,
        "spectrum": 0.25,
        "easycache": 0.05,
        "cache-dit DBCache": 0.32,
    }


class _Clock:
    """A process whose machine gets slower from call to call, alike for all."""

    def __init__(self, cost):
        self.cost, self.calls, self.asked = cost, 0, []

    def ask(self, cell, candidate, pairs, count):
        if self.cost is None:
            return {"refused": "TypeError: no such option"}
        self.calls += 1
        self.asked.append((candidate.family, candidate.batch, len(pairs)))
        return {"seconds": [self.cost[candidate.family] * (100 + self.calls)] * len(pairs)}


def _turns(of, cost):
    walltime, c = of("walltime"), of("candidates")
    cell = of("cells").Cell("dit", "flow", 28)
    process = _Clock(cost)
    turns = walltime.Turns(cell, {"plain": process}, [{}, {}])
    full, half = c.Candidate(c.FULL, 28, 28), c.Candidate(c.FEWER, 14, 14)
    return turns, process, full, half


def test_each_is_timed_between_two_full_runs_one_picture_at_a_time(of):
    turns, process, full, half = _turns(of, {"full": 0.02, "fewer steps": 0.01})
    turns.round(full, [half, half])
    assert turns.ratios["fewer steps"] == pytest.approx([0.5, 0.5])
    assert {batch for _, batch, _ in process.asked} == {1}
    assert [family for family, _, pairs in process.asked if pairs == 2] == [
        "full",
        "fewer steps",
        "full",
        "fewer steps",
        "full",
    ]
    (row,) = turns.rows({"fewer steps": 14})
    assert (row["cell"], row["setting"], row["of_full_p50"]) == ("dit-flow-28", 14, 0.5)


def test_what_a_library_refuses_is_said(of):
    turns, _, full, half = _turns(of, None)
    with pytest.raises(RuntimeError, match="full in dit-flow-28: TypeError: no such option"):
        turns.round(full, [half])


def test_the_table_shows_seconds_beside_compute_and_fidelity(of, tmp_path):
    shared = {"cpu": "a CPU", "threads": 1, "gpu": None, "torch": "2", "diffusers": "0"}
    shared |= {"date": "2026-11-22", "cell": "dit-flow-28"}
    rows = [
        {**shared, "family": "adaptive", "setting": 0.06, "of_full_p50": 0.9},
        {**shared, "family": "adaptive", "setting": 0.06, "of_full_p50": 0.5},
        {**shared, "family": "fewer steps", "setting": 14, "of_full_p50": 0.52},
    ]
    rows = [{**row, "of_full_p20": 0.4, "of_full_p80": 0.95} for row in rows]
    path = tmp_path / "walltime.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    *words, table = of("walltime_report").section(path, {"dit-flow-28": FAMILIES})
    assert not any("best now" in each for each in words)
    lines = table.splitlines()[2:]
    assert lines[0].endswith("| 0.06 | 0.48 | 0.40 / 0.50 / 0.95 | 58.0 / 53.0 |")
    assert lines[1].startswith("| dit-flow-28 | fewer steps | 14 | 0.50 |")
    assert len(lines) == 2
    path.write_text(json.dumps({**rows[0], "setting": 0.03}))
    *_, words, _ = of("walltime_report").section(path, {"dit-flow-28": FAMILIES})
    assert words == "Measured since, and best now: adaptive on dit-flow-28 (0.06)."
