"""Skip-layer guidance, whose extra branch leaves out blocks that a site counts on."""

import pytest
import torch

import diffcache
from diffcache.sites import recording

# Of four blocks: the head, the first bypassed one, the last, both ends, and all but the head.
LAYERS = [[0], [1], [3], [0, 3], [1, 3], [1, 2, 3]]
METHODS = {
    "fbcache": {"threshold": 1e3},
    "dbcache": {"head": 1, "tail": 1, "threshold": 1e3, "protect": (1, 0)},
    "speca": {"force": True, "base": 1e6},
    "interval": {"every": 2, "protect": (1, 1)},
}


@pytest.fixture
def guided(family, monkeypatch):
    """Makes the pipeline with these layers left out, and placeholders that show."""
    monkeypatch.setattr(
        recording,
        "placeholder",
        lambda meta: torch.full(meta[0], torch.nan, dtype=meta[1], device=meta[2]),
    )

    def build(layers):
        made = family("skip-layer guidance")
        made.call["skip_guidance_layers"] = layers
        return made

    return build


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_branch_that_leaves_out_blocks(guided, layers, method):
    made = guided(layers)
    diffcache.wrap(made.pipe, method, **METHODS[method])
    latents = made.generate()
    report = diffcache.report(made.pipe)
    assert latents.isfinite().all()
    # The other branches are skipped as if there were no such guidance.
    assert report.compute_fraction < 0.75
    assert not any("given up" in note for note in report.notes)
    assert torch.equal(made.generate(), latents)


@pytest.mark.parametrize("layers", LAYERS, ids=str)
def test_never_skipping_is_bit_identical(guided, layers):
    made = guided(layers)
    plain = made.generate()
    diffcache.wrap(made.pipe, "fbcache", threshold=0.0)
    assert torch.equal(made.generate(), plain)


def test_list_of_blocks_is_not_taken_for_one_of_rows(guided):
    """As many blocks are left out as the branch has rows, and samples are skipped apart."""
    made = guided([1, 2])
    diffcache.wrap(made.pipe, "adaptive", mask=[[True, step % 2 == 0] for step in range(10)])
    made.generate()
    report = diffcache.report(made.pipe)
    assert not any("couples" in note for note in report.notes)
    assert report.compute_fraction < 0.8
