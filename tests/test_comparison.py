"""Tables, files and pictures of a comparison."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffcache
from diffcache.comparing import unsteady
from diffcache.comparison import Comparison, Row
from diffcache.measuring import Scale
from diffcache.metrics import mean_error_psnr, psnr, ssim
from diffcache.plots import COMPUTED, SKIPPED, Panel, draw, panel

SEEDS = [7, 3, 5]
SETTING = {
    "pipeline": "SomePipeline",
    "scheduler": "SomeScheduler",
    "steps": 10,
    "batch_size": 4,
    "device": "cpu",
    "dtype": "float32",
    "call": {"num_inference_steps": 10},
}


def row(label: str, plain: np.ndarray, noise: float, steps: float, **more: Any) -> Row:
    deviations = noise * np.array([1, 3, 2])[:, None, None, None]
    rng = np.random.default_rng(len(label))
    pictures = np.clip(plain + deviations * rng.standard_normal(plain.shape), 0, 1)
    return Row(
        label,
        steps,
        row_steps=2 * steps,
        compute=steps / 10,
        seconds=steps / 5,
        pictures=pictures,
        psnr=psnr(plain, pictures),
        mean_error_psnr=mean_error_psnr(plain, pictures),
        ssim=ssim(plain, pictures),
        **more,
    )


@pytest.fixture
def found() -> Comparison:
    rng = np.random.default_rng(0)
    plain = rng.random((3, 16, 16, 3))
    mask = rng.random((10, 3)) < 0.5
    report = diffcache.Report("some", steps=10, calls=8, mask=torch.from_numpy(mask))
    rows = [
        Row("plain", 10, 20, 1.0, 2.0, plain),
        row("every/2", plain, 0.01, 5.5, mask=mask, reports=[report], fewer="6 steps"),
        row("6 steps", plain, 0.05, 6),
    ]
    return Comparison(rows, ["a cat", "a dog", "a fish"], SEEDS, SETTING, ["every/2: a note"])


def test_rows_are_found_by_label(found: Comparison) -> None:
    assert found["every/2"] is found.rows[1]
    assert found.methods == [found.rows[1]]
    assert found.plain is found.rows[0] and found.plain.worst() == []
    assert found["6 steps"].worst(2) == [1, 2]
    with pytest.raises(KeyError, match="no row 'x'; rows are 'plain', 'every/2', '6 steps'"):
        found["x"]


def test_the_table_is_aligned(found: Comparison) -> None:
    lines = str(found).splitlines()
    assert lines[0] == "SomePipeline, SomeScheduler, 3 pictures in batches of 4, cpu float32"
    assert set(lines[2]) == {"─"}
    table = [lines[1], *lines[3:6]]
    assert [line[:9].rstrip() for line in table] == ["run", "plain", "every/2", "6 steps"]
    assert {len(line) for line in table} == {len(lines[2])}
    ends = [table[0].index("compute") + 7, table[1].index("100%") + 4, table[2].index("55%") + 3]
    assert len(set(ends)) == 1
    method = found["every/2"]
    expected = ["5.5", "11", "55%", "1.1", "1.82×", f"{method.psnr.mean():.1f}"]
    expected += [f"{np.percentile(method.psnr, 5):.1f}", f"{method.mean_error_psnr:.1f}"]
    expected += [f"{method.ssim.mean():.4f}", f"{method.psnr.min():.1f}", "(#1)"]
    assert table[2].split()[1:] == expected
    assert lines[6] == (
        "PSNR in dB, of which a picture counts for 60 at most; mean error: PSNR of the squared "
        "error averaged over pictures"
    )
    assert lines[7].startswith(f"every/2, worst: #1 {method.psnr[1]:.1f} dB, seed 3, 'a dog'; #2 ")
    gained = method.psnr.mean() - found["6 steps"].psnr.mean()
    assert lines[8] == f"every/2: {gained:+.1f} dB over 6 steps, at equal row-steps"
    assert lines[9:] == ["note: every/2: a note"]


def test_markdown_has_the_same_cells(found: Comparison) -> None:
    rows = [line for line in found.markdown().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    assert [len(line) for line in cells] == [11] * 5
    printed = [str(found).splitlines()[i] for i in (1, 3, 4, 5)]
    for line, same in zip([cells[0], *cells[2:]], printed, strict=True):
        assert " ".join(line).split() == same.split()


def test_saved_files_say_how_they_came_about(found: Comparison, tmp_path: Path) -> None:
    files = found.save(tmp_path / "new" / "folder")
    names = ["comparison.md", "comparison.json", "method-1-every-2.png"]
    assert [path.name for path in files] == names
    assert files[0].read_text(encoding="utf-8").startswith(found.markdown())
    saved = json.loads(files[1].read_text(encoding="utf-8"))
    assert saved["machine"]["torch"] == torch.__version__
    assert saved["machine"]["diffcache"] == diffcache.__version__
    assert saved["date"] in files[0].read_text(encoding="utf-8")
    assert saved["setting"] == SETTING
    assert saved["prompts"] == found.prompts and saved["seeds"] == SEEDS
    plain, method, fewer = saved["rows"]
    assert plain["psnr"] is None and plain["calls"] is None and fewer["timelines"] is None
    assert method["psnr"] == found["every/2"].psnr.tolist()
    assert method["calls"] == 8
    (report,) = found["every/2"].reports
    assert method["timelines"] == [report.timeline(i) for i in range(3)]
    with Image.open(files[2]) as image:
        assert len(image.getcolors(2**24)) > 100


def test_a_picture_of_nan_is_the_worst_and_is_saved(found: Comparison, tmp_path: Path) -> None:
    found["every/2"].psnr[2] = np.nan
    found["every/2"].pictures[2] = np.nan
    assert found["every/2"].worst(2) == [2, 1]
    saved = json.loads(found.save(tmp_path)[1].read_text(encoding="utf-8"))
    assert saved["rows"][1]["psnr"][2] is None
    assert "nan (#2)" in str(found)


def test_tables_are_saved_without_matplotlib(
    found: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'diffcache\[demo\]'"):
        found.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.md", "comparison.json"}


def test_a_panel_names_what_was_saved_and_what_else_would_have(found: Comparison) -> None:
    shown = panel(found, found["every/2"], [0, 2])
    better, fewer = (found[label].psnr.mean() for label in ("every/2", "6 steps"))
    assert "5.5 of 10 steps computed, 45% saved  ·  45% of the time saved" in shown.subtitle
    assert f"{better:.1f} dB PSNR on average, 6 steps give {fewer:.1f} dB" in shown.subtitle
    assert shown.prompts == ["a cat", "a fish"]
    computed = found["every/2"].mask[:, 2].sum()
    assert shown.remarks[1] == f"{computed} of 10 steps  ·  {found['every/2'].psnr[2]:.1f} dB"
    np.testing.assert_array_equal(shown.reference, found.plain.pictures[[0, 2]])
    found["every/2"].psnr[0] = 60.0
    assert panel(found, found["every/2"], [0]).remarks[0].endswith("steps  ·  ≥ 60 dB")
    assert panel(found, found["every/2"]).prompts == ["a dog", "a fish", "a cat"]


@pytest.mark.parametrize(("difference", "amplified"), [(0.019, 50), (0.11, 5), (0, 100), (0.9, 1)])
def test_differences_are_amplified_as_far_as_they_fit(difference: float, amplified: int) -> None:
    grey = np.full((1, 8, 8, 3), 0.05)
    assert Panel("", "", [], [], grey + difference, grey, None).amplification == amplified


def test_a_panel_draws_its_timeline_and_its_difference(tmp_path: Path) -> None:
    mask = np.zeros((10, 1), bool)
    mask[:3] = True
    grey = np.full((1, 8, 8, 3), 0.5)
    green = grey.copy()
    green[..., 1] += 0.019
    # Which matplotlib would read as mathematics.
    words = "cash $$ money", "$_$ one", ["$5 # $6"], ["$^_^$"]
    draw([Panel(*words, green, grey, mask)], tmp_path / "panel.png")
    with Image.open(tmp_path / "panel.png") as image:
        counts = {colour: n for n, colour in image.convert("RGB").getcolors(2**24)}
    computed, skipped = (counts[tuple(bytes.fromhex(c[1:]))] for c in (COMPUTED, SKIPPED))
    assert computed / skipped == pytest.approx(3 / 7, rel=0.1)
    brightened = sum(n for (r, g, b), n in counts.items() if r == b == 0 and g in (242, 243))
    without = sum(n for (r, g, b), n in counts.items() if r == g == b and r in (127, 128))
    assert brightened == pytest.approx(without, rel=0.1)


def test_times_that_cannot_be_are_pointed_out():
    plain = np.full((3, 8, 8, 3), 0.5)
    rows = [
        Row("plain", 10, 20, 1.0, 2.0, plain),
        row("half", plain, 0.1, 5),
        row("few", plain, 0.1, 2),
    ]
    # Half of the steps in half of the time, a fifth in a fifth.
    assert unsteady(rows) == [] == unsteady(rows[:1])
    (note,) = unsteady([rows[0], rows[1], replace(rows[2], seconds=0.2)])
    assert note.startswith("few: faster than the share")
    # As was seen on a busy machine: 3.94 times the speed at .367 of the work.
    assert unsteady([rows[0], replace(rows[2], seconds=0.28)])
    # A cache that costs more than it saves is no fault of the machine.
    assert unsteady([rows[0], replace(rows[1], seconds=9.0)]) == []


def test_where_times_tell_nothing_only_the_table_has_them(found: Comparison) -> None:
    best = {"tolerance": 0.1, "psnr": 41.0, "psnr_p5": 36.0, "compute": 0.5, "speed_up": 2.19}
    method = replace(found.rows[1], as_fast="6 steps")
    rows = [found.rows[0], method, found.rows[2]]
    steady = replace(found, rows=rows, recommended=best)
    busy = replace(steady, timed=False)
    for said in ("dB over 6 steps, at equal time", "50% of the compute, 2.19×)"):
        assert said in str(steady) and said not in str(busy)
    assert "at equal row-steps" in str(busy) and "50% of the compute)" in str(busy)
    said = {1.3: "at equal time", 1.5: "which took 0.80 of its time", 0.8: "which took 1.50 of"}
    for seconds, words in said.items():
        slower = replace(steady, rows=[rows[0], replace(method, seconds=seconds), rows[2]])
        assert f"dB over 6 steps, {words}" in str(slower)
    assert (steady.as_dict()["timed"], busy.as_dict()["timed"]) == (True, False)
    assert "of the time saved" in panel(steady, method).subtitle
    assert "time" not in panel(busy, method).subtitle


def test_what_knows_no_bounds_is_still_compared(found: Comparison) -> None:
    plain = np.array([[-4.0, 4.0], [0.0, np.nan]])
    scaled = Scale(plain).of(SimpleNamespace(pictures=10 * plain))
    assert scaled[0].tolist() == [-1.0, 2.0] and scaled[1, 0] == 0.5 and np.isnan(scaled[1, 1])
    assert (psnr(Scale(plain).of(SimpleNamespace(pictures=plain))[:1], scaled[:1]) < 1).all()
