"""The command line and the demo on the tiny pipelines."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import diffcache
from diffcache.__main__ import main
from diffcache.demo import _quietly, demo
from diffcache.plots import COMPUTED, SKIPPED


def test_demo_prints_tables_and_draws_both_pipelines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    arguments = ["demo", "--out", str(out), "--steps", "12", "--prompts", "2"]
    assert main([*arguments, "--method", "interval"]) == 0
    captured = capsys.readouterr()
    for name in ("StableDiffusionPipeline, DDIM", "FluxPipeline, FlowMatch"):
        assert name in captured.out
    assert captured.out.count("\ninterval ") == 2
    assert "interval, batch 1 of 1: 100%" in captured.err
    assert captured.out.splitlines()[-1].endswith(str(out / "demo.png"))
    with Image.open(out / "demo.png") as image:
        width, height = image.size
        halves = [
            image.convert("RGB").crop((x, 0, x + width // 2, height)) for x in (0, width // 2)
        ]
    for half in halves:
        colours = {colour for _, colour in half.getcolors(2**24)}
        for colour in (COMPUTED, SKIPPED):
            assert tuple(bytes.fromhex(colour[1:])) in colours
        assert len(colours) > 100


def test_libraries_that_diffusers_looks_for_are_imported_quietly(caplog) -> None:
    def build(kind: str) -> str:
        logging.getLogger("torchao").warning("Failed to load")
        return kind

    assert _quietly(build, "dit") == "dit"
    assert not caplog.records
    logging.getLogger("torchao").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


def test_demo_without_matplotlib_fails_before_it_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "pip install 'diffcache[demo]'" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("method", "served"), [("fbcache", "dit"), ("smoothcache", None)])
def test_demo_says_what_a_method_cannot_serve(
    method: str, served: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--out", str(tmp_path), "--steps", "12", "--prompts", "1"]
    assert main([*arguments, "--method", method]) == (0 if served else 1)
    captured = capsys.readouterr()
    assert "\nunet: UNet2DConditionModel has no stack of" in captured.out or not served
    assert ("FluxPipeline" in captured.out) == Path(tmp_path, "demo.png").exists() == bool(served)
    assert served or captured.err.splitlines()[-1] == (
        "diffcache demo: 'smoothcache' serves neither tiny pipeline; 'adaptive' serves both"
    )


def test_demo_refuses_no_prompts() -> None:
    with pytest.raises(ValueError, match="prompts=0 is not a count; try prompts=8"):
        demo(prompts=0)


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    names = [line.split()[0] for line in listed.splitlines() if not line.startswith(" ")]
    assert names == list(diffcache.methods())
    flat = " ".join(listed.split())
    assert all(summary in flat for summary in diffcache.methods().values())
    assert max(map(len, listed.splitlines())) <= 100


def test_papers_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cite", "fbcache"]) == 0
    assert capsys.readouterr().out.strip() == diffcache.cite("fbcache")
    assert main(["cite", "mask"]) == 0
    assert "nothing to cite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["cite", "fbcach"], "no method 'fbcach'; the methods are abcache, adaptive, "),
        (["cite", "fbcach"], "did you mean 'fbcache'?"),
        (["cite"], "required: NAME"),
        (["demo", "--steps", "0"], "'0' is not a count"),
        (["demo", "--prompts", "many"], "'many' is not a count"),
        (["demo", "--method", "x"], "no method 'x'"),
    ],
)
def test_misuse_is_explained(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"diffcache {diffcache.__version__}\n"


def test_the_package_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "diffcache", "dmeo"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "invalid choice: 'dmeo'" in result.stderr and "'demo'" in result.stderr
