"""What the documents of speed make of saved results."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HERE = {
    "cpu": "x",
    "gpu": None,
    "threads": 1,
    "torch": "2",
    "diffusers": "0",
    "date": "2026-11-21",
}


def _quantiles(*names):
    return {f"{name}_p{q}": 1.25 for name in names for q in (20, 50, 80)}


def _lines(path, rows):
    path.write_text("\n".join(json.dumps(HERE | row) for row in rows))


def test_the_report_shows_the_newest_row_of_each(of, tmp_path):
    report, rows = of("speed_report"), of("rows")
    latest = {"model": "m", "site": "output", "library": "diffcache", "parameters": 1e8}
    latest |= {"dtype": "float32", **_quantiles("plain_s", "ideal_s", "seconds", "speedup")}
    refused = {"model": "m", "site": "output", "library": "peer", "refused": "TypeError: no"}
    runs = [latest | _quantiles("realised"), latest | {f"realised_p{q}": 0.5 for q in (20, 50, 80)}]
    _lines(tmp_path / "speedup.jsonl", [*runs, refused, runs[0] | {"gpu": "a GPU", "rounds": 7}])
    kept = {"model": "m", "method": "adaptive", "how": "cuda", "cache_mib": 3.0, "peak_mib": 4.0}
    idle = {"model": "m", "method": "fastercache", "how": "meta", "cache_mib": 0.0}
    peer = {"model": "m", "method": "peer", "how": "cuda", "peak_mib": 5.0}
    _lines(tmp_path / "memory.jsonl", [kept, idle, peer])
    found = {"cell": "c", "tolerance": 0.1, "lagged": True, "compute": 0.4, "host_reads": 0}
    _lines(tmp_path / "lagged.jsonl", [found | {"psnr": 50.0, "psnr_p5": 40.0}])
    kernel = {"kernel": "combine", "latents": "flux", "device": "cpu", "clock": "wall"}
    _lines(tmp_path / "kernels.jsonl", [kernel | _quantiles("ours_us", "eager_us")])
    text = report.document(rows.read(tmp_path))
    assert "| m (100 M, float32) | output | diffcache | 1.250 | 1.250 |" in text
    assert "| 0.500 / 0.500 / 0.500 | 3 |" in text and "turns: 3 on a CPU, 2 to 7 on a GPU" in text
    assert text.index("x, 1 thread,") < text.index("| 3 |") < text.index("a GPU, torch 2")
    assert "| 1.250 / 1.250 / 1.250 | 7 |" in text
    assert "- peer on m: TypeError: no" in text
    assert "| m | adaptive | cuda | 3.0 | 4.0 |" in text
    assert "| m | fastercache | meta | nothing |  |" in text
    assert "| m | peer | cuda |  | 5.0 |" in text
    _, waits = text.split("## Waiting for the device")
    assert waits.index("x, 1 thread, torch 2, diffusers 0, 2026-11-21.") < waits.index(
        "| c | 0.1 | lagged | 0.400 | 50.0 / 40.0 | 0 |"
    )
    assert "| combine | flux | cpu | wall | 1.2 / 1.2 / 1.2 |" in text


def test_documents_are_those_of_the_results(of):
    report, asked, rows = of("speed_report"), of("asked"), of("rows")
    results = rows.read(report.RESULTS)
    assert (report.DOCS / "speed.md").read_text() == report.document(results)
    assert asked.section(results) in (report.DOCS / "benchmarks.md").read_text()


def test_every_figure_is_found_where_there_are_rows_and_unmeasured_where_not(of, tmp_path):
    asked, rows = of("asked"), of("rows")
    nothing = rows.read(tmp_path)
    measured = [figure for figure in asked.FIGURES if figure.found is not None]
    assert all(asked.UNMEASURED in figure.row(nothing) for figure in measured)
    clocks = {"ours_us_p50": 1.0, "eager_us_p50": 2.9, "compiled_us_p50": 0.99, "launches": 1}
    kernel = {"kernel": "combine", "latents": "flux", "clock": "device", "gpu": "g"} | clocks
    of_large = {"kernel": "combine", "gb_s_p50": 8.0, "copy_gb_s_p50": 10.0}
    psnr = [{"cell": "c", "tolerance": 1, "lagged": x, "host_reads": 29, "psnr": x} for x in (0, 1)]
    added = {f"{name}_ms_p{share}": 0.2 for name in ("added", "call") for share in (50, 80)}
    libraries = [
        (n, b) for b in (4, 57) for n in ("adaptive", "stack", "skip", "cache-dit", "diffusers")
    ]
    sites = ("output", "block stack", "UNet branch")
    ours = {"model": "m", "library": "diffcache", "realised_p50": 0.94}
    kept = {"method": "adaptive", "how": "meta", "cache_mib": 3.0}
    peer = {"method": "cache-dit DBCache + TaylorSeer", "how": "meta", "cache_mib": 2.0}
    peaks = [
        {"model": "m", "method": n, "how": "cuda", "peak_mib": p}
        for n, p in (("adaptive", 99.0), ("plain", 9.0))
    ]
    results = {
        "kernels": [kernel],
        "bandwidth": [of_large],
        "lagged": psnr,
        "overhead": [{"library": n, "blocks": b} | added for n, b in libraries],
        "overhead_parts": [],
        "speedup": [ours | {"site": site, "gpu": gpu} for site in sites for gpu in (None, "g")],
        "batches": [{"site": "output", "gpu": None, "speed_p50": 0.89}],
        "memory": [
            row | {"model": model}
            for model in ("flux-1-dev", "wan-2.1-1.3b")
            for row in (kept, peer)
        ]
        + peaks,
        "on_cuda": [{"bench": bench, "end": "failed"} for bench in of("on_cuda").BENCHES],
    }
    states = {(f.what, f.command): f.row(results)[3] for f in measured}
    assert asked.UNMEASURED not in states.values()
    by_text = [(what, state) for (what, _), state in states.items()]
    well = {
        "one launch",
        "not slower",
        "a skipped call",
        "UNet branch: ≥ 0.93",
        "block stack: ≥ 0.93",
        "57 blocks",
    }
    for what, state in by_text:
        if "lagged evidence" in what:
            assert state == "shown"
        else:
            fine = any(part in what for part in well)
            assert (state == "holds") is fine, what
            assert fine or state.startswith("**missed** ([why](speed.md#")


@pytest.mark.parametrize(
    ("median", "most", "holds"), [(0.1, 0.2, True), (-0.2, 1.2, None), (0.7, 1.0, False)]
)
def test_a_median_within_its_bound_may_tell_nothing(of, median, most, holds):
    row = {"library": "stack", "blocks": 57, "added_ms_p50": median, "added_ms_p80": most}
    found = of("measured").overhead("stack", 57, "added_ms", 0.25)({"overhead": [row]})
    assert found.holds is holds
    assert ("too unsteady to tell: up to 1.200" in found.text) is (holds is None)


def test_tests_that_hold_figures_exist(of):
    """Each `pytest FILE -k WORDS` of the table picks a test."""
    for figure in of("asked").FIGURES:
        _, _, command = figure.command.rpartition("pytest ")
        file, _, options = command.partition(" ")
        if not file.endswith(".py") or " " in file:
            continue
        text = (ROOT / file).read_text()
        names = re.findall(r"^def (test_\w+)", text, re.M)
        word = options.partition("-k ")[2]
        assert names and any(word in name for name in names), figure.command


def test_a_section_is_replaced_in_place(of, tmp_path):
    asked, rows = of("asked"), of("rows")
    document, results = tmp_path / "benchmarks.md", rows.read(tmp_path)
    document.write_text("# Measurements\n\nAbout.\n\n## Others\n\nRows.\n")
    for _ in range(2):
        asked.put_into(document, results)
        text = document.read_text()
        assert text.count(asked.HEADING) == 1
        assert text.startswith("# Measurements\n\nAbout.\n\n## ")
        assert text.count("## Others\n\nRows.\n") == 1
