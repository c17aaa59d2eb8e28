"""Every method of the catalogue on a pipeline of every family: a new file is tested by being there.

Where a method applies is kept in `applicability.json`, which may grow and may not shrink:
`DIFFCACHE_APPLICABILITY=write` adds what is missing there.
"""

import json
import os
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diffcache
from diffcache.methods import find, registry
from diffcache.sites import Modules
from diffcache.sites.discovery import denoisers
from diffcache.sites.modules import modules_of

# What models warn of at such sizes, in fp32, or on a CPU is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

TABLE = Path(__file__).with_name("applicability.json")
RANKS = {"refused": 0, "computed": 1, "skips": 2}
STEPS = 12
LONG = {"size": 2, "steps": 50}
ENOUGH = 0.8

# Knobs of policies beyond which nothing is computed for its own sake: random weights change from
# step to step by more than any published threshold.
KNOBS = ("threshold", "tolerance", "base", "floor", "alpha", "gamma")


def fitting(name: str) -> dict[str, Any]:
    """What tiny models need: fewer blocks at the start, and decisions to play back."""
    options = find(name).options()
    needed = {"head": 1} if options.get("head", 0) > 1 else {}
    return needed | ({"mask": [True, False] * STEPS} if "mask" in options else {})


def loose(name: str) -> dict[str, Any]:
    """Options with which the method skips whatever its weights are."""
    policy = find(name).policy
    knobs = {knob.name: 1e9 for knob in fields(policy) if knob.name in KNOBS}
    return {**fitting(name), **knobs, "protect": (2, 1), "force": True}


def recorded() -> dict[str, dict[str, str]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def check(name: str, pipeline: str, found: str) -> None:
    """Compares with the table, or writes what it lacks."""
    table = recorded()
    row = table.setdefault(name, {})
    known = row.get(pipeline)
    assert RANKS[found] >= RANKS.get(known, 0), f"{name} on {pipeline}: {known} has become {found}"
    if os.environ.get("DIFFCACHE_APPLICABILITY") == "write":
        row[pipeline] = found
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    else:
        assert known == found, "run DIFFCACHE_APPLICABILITY=write pytest tests/registry"


@pytest.mark.parametrize("name", registry())
def test_method_on_pipeline(subject, name):
    plain, kind = subject.plain, type(subject.pipe)
    try:
        subject.wrap(name, **loose(name) | {"protect": (STEPS, 0)})
    except ValueError as refusal:
        assert type(subject.pipe) is kind
        assert re.search(r"\b(use|call|pass) ", str(refusal))
        return check(name, subject.name, "refused")
    assert torch.equal(subject.generate(), plain)
    assert diffcache.report(subject.pipe).compute_fraction == 1

    subject.wrap(name, **loose(name))
    first = subject.generate()
    report = diffcache.report(subject.pipe)
    assert first.isfinite().all()
    assert report.method == name
    if report.compute_fraction < 1:
        found = "skips"
        assert not torch.equal(first, plain)
    else:
        found = "computed"
        assert report.notes
    other = subject.generate(size=1)
    assert other.isfinite().all()
    assert other.shape != first.shape
    assert torch.equal(subject.generate(), first)

    diffcache.unwrap(subject.pipe)
    assert type(subject.pipe) is kind
    assert torch.equal(subject.generate(), plain)
    check(name, subject.name, found)


def test_table_is_of_this_catalogue(subject):
    assert sorted(recorded()) == sorted(registry())
    assert all(subject.name in row for row in recorded().values())


class Workload:
    """Counts multiplications in linear layers and convolutions of a trained pipeline's denoiser.

    `whole` is what a plain generation takes: of the model, and of its attention modules and MLPs.
    """

    def __init__(self, subject: Any) -> None:
        self.subject = subject
        self.done: Counter[str] = Counter()
        (model,) = denoisers(subject.pipe).values()
        self._watch("model", model)
        for module in modules_of(model).values():
            self._watch("attention" if "Attention" in type(module).__name__ else "mlp", module)
        subject.generate(**LONG)
        self.whole = self.done

    def _watch(self, part: str, module: nn.Module) -> None:
        def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
            self.done[part] += output.numel() * layer.weight[0].numel()

        for layer in module.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.register_forward_hook(count)

    def share(self, name: str) -> float:
        """What a generation computes of all that the method's site could bypass."""
        self.subject.wrap(name, LONG, **fitting(name))
        self.done = Counter()
        self.subject.generate(**LONG)
        diffcache.unwrap(self.subject.pipe)
        parts = {"model"}
        if isinstance(site := find(name).site, Modules):
            parts = {"mlp" if role == "mlp" else "attention" for role in site.roles}
        return sum(self.done[part] for part in parts) / sum(self.whole[part] for part in parts)


@pytest.fixture(scope="module")
def workloads(subjects):
    found = [Workload(subjects(name)) for name in ("unet", "dit")]
    assert {part for workload in found for part in workload.whole} == {"model", "attention", "mlp"}
    return found


@pytest.mark.parametrize("name", registry())
def test_skips_a_fifth_of_the_work_on_a_trained_pipeline(workloads, name):
    """As published: only what keeps a method from tiny models is changed."""
    shares = {}
    for workload in workloads:
        try:
            shares[workload.subject.name] = workload.share(name)
        except ValueError:
            continue
    assert min(shares.values()) <= ENOUGH, shares
