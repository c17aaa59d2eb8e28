"""The site checks of `bench/coverage.py` on some classes, and that the saved table holds."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import diffcache
from diffcache.sites import guidance
from diffcache.sites.block_stack import _BlockStackAttachment as BlockStackAttachment
from diffcache.sites.unet_branch import _BranchAttachment as UNetBranchAttachment

# What models warn of at such sizes, in fp32, or on a CPU is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

SLOW = [
    "AuraFlowTransformer2DModel",
    "BriaFibo2Transformer2DModel",
    "Flux2Transformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "Kandinsky6Transformer3DModel",
    "LTX2VideoTransformer3DModel",
    "LuminaNextDiT2DModel",
    "QwenImageTransformer2DModel",
    "UNet2DConditionModel",
    "UNetMotionModel",
    "WanVACETransformer3DModel",
]


@pytest.fixture
def verdicts(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Checks every site on a class."""
    checks, denoisers = bench("coverage_checks"), bench("denoisers")
    monkeypatch.delenv("DIFFCACHE_STRICT")

    def run(name: str) -> dict[str, Any]:
        caller = partial(denoisers.caller, name)
        with torch.no_grad():
            subject = checks.Subject(denoisers.build(name), caller, denoisers.rows(name))
            return {column.name: checks.check(subject, column) for column in checks.COLUMNS}

    return run


@pytest.mark.parametrize(
    ("name", "output", "stack"),
    [
        # Frames, then tokens, are folded into the batch of its blocks.
        ("LatteTransformer3DModel", "ok", "ok"),
        # Two lists take turns, so that what enters the second may be a placeholder.
        ("WanAnimateTransformer3DModel", "ok", "ok"),
        # Lists of modules that are not called, in a helper of their own.
        ("ConsisIDTransformer3DModel", "ok", "ok"),
        # A bank of projections beside the blocks.
        ("BriaFiboTransformer2DModel", "ok", "ok"),
        # Rotations `[tokens, heads, channels]`, of an even length.
        ("MochiTransformer3DModel", "ok", "ok"),
        # Samples, texts and outputs are lists with a tensor a row; its time is called t.
        ("ZImageTransformer2DModel", "ok", "ok"),
        # Its blocks carry tokens first and rows second.
        ("ErnieImageTransformer2DModel", "ok", "batch as one"),
    ],
)
def test_structures(verdicts, name, output, stack):
    found = {site: verdict.status for site, verdict in verdicts(name).items()}
    assert found["output"] == output
    assert found["block stack"] == found["block stack, no head"] == stack
    assert found["guidance"] == "ok"


def test_a_lone_sample_needs_no_batch_axis(verdicts):
    """Cosmos 3 packs the tokens of a sample, and gives what it predicts without an axis of rows."""
    found = {site: verdict.status for site, verdict in verdicts("Cosmos3OmniTransformer").items()}
    assert found["output"] == found["block stack"] == found["block stack, no head"] == "ok"
    assert found["modules"] == "in part"


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_class_is_as_good_as_the_table_says(verdicts, bench, name):
    report = bench("coverage_report")
    saved = report.newest()[name]["sites"]
    for site, verdict in verdicts(name).items():
        assert report.RANKS[verdict.status] >= report.RANKS[saved[site]], (site, verdict)


def test_every_class_has_an_entry(bench):
    denoisers = bench("denoisers")
    assert sorted(denoisers.known()) == sorted(denoisers.classes())


def test_checks_notice_a_leak(verdicts, monkeypatch):
    plain = BlockStackAttachment._sink

    def leaking(self: Any, block: Any, role: Any, output: Any) -> Any:
        found = plain(self, block, role, output)
        held = self.turn.lane.memory[("output", id(block))]
        return held.fill(held.blank()) if output is None else found

    monkeypatch.setattr(BlockStackAttachment, "_sink", leaking)
    found = verdicts("PixArtTransformer2DModel")
    assert found["output"].status == "ok"
    assert found["block stack"].status == "failed"
    assert "a placeholder reaches the output" in found["block stack"].note


def test_checks_notice_whole_outputs(verdicts, monkeypatch):
    settle = UNetBranchAttachment._settle

    def lost(self: Any, turn: Any) -> None:
        self.order.clear()
        settle(self, turn)

    assert verdicts("StableCascadeUNet")["UNet branch"].status == "not applicable"
    monkeypatch.setattr(UNetBranchAttachment, "_settle", lost)
    found = verdicts("UNet2DModel")
    assert found["output"].status == "ok"
    assert found["UNet branch"].status == "whole output"
    assert "cannot be told from its calls" in found["UNet branch"].note


def test_checks_notice_branches_that_are_mixed_up(verdicts, monkeypatch):
    monkeypatch.setattr(guidance, "conditional_half", lambda *_: 0)
    found = verdicts("PixArtTransformer2DModel")["guidance"]
    assert found.status == "failed" and "conditional rows of step 2" in found.note


def test_table_is_made_from_the_results(bench):
    report = bench("coverage_report")
    assert report.DOCUMENT.read_text() == report.document()


def test_coverage_does_not_shrink(bench):
    assert bench("coverage_report").shrunk() == []


def test_no_model_is_known_by_its_class(bench):
    """Structure tells a model's parts; names are data of what was published, or of our own tiny."""
    names = re.compile(rf"\b({'|'.join(bench('denoisers').classes())})\b")
    package = Path(diffcache.__file__).parent
    found = [
        (path.name, line)
        for path in package.rglob("*.py")
        if path.parent.name != "tiny"
        for line in path.read_text(encoding="utf-8").splitlines()
        if names.search(line) and not line.strip().startswith('denoiser="')
    ]
    assert found == []
