"""Writes docs/methods.md from the registry.

python bench/catalogue.py
python bench/catalogue.py --check    only compares the document with the registry
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from diffcache.methods import Method, registry
from diffcache.methods.base import Kind

DOCUMENT = Path(__file__).parent.parent / "docs" / "methods.md"

_ABOUT = """\
Made by `python bench/catalogue.py` from `diffcache/methods/`; never edited by hand. The classes are
those of the survey [arXiv 2510.19755](https://arxiv.org/abs/2510.19755). A method is a site (where
work is avoided), a policy (when), a predictor (what stands in for it) and guards (what may never be
skipped; those not listed are as in `diffcache.Guards()`). Options are given by name,
`diffcache.wrap(pipe, "interval", every=4)`, and a part of one method serves another,
`diffcache.wrap(pipe, "dbcache", predictor="spectrum")`. `diffcache.cite("interval")` prints the
BibTeX. `lagged=True` lets any but `speca` decide from evidence a step old, without waiting for the
device."""

_NOT_HERE = """\
## Not here

Methods that choose among tokens (ToCa, DuCa, ClusCa) need a finer granularity than a denoiser's
modules, which are computed or skipped whole for each sample. There is no site for that."""


def document() -> str:
    """The text of `docs/methods.md`."""
    parts = ["# Methods", _ABOUT, _overview()]
    for kind, methods in _kinds().items():
        parts.append(f"## {kind.capitalize()}")
        parts += [_section(method) for method in methods]
    return "\n\n".join([*parts, _NOT_HERE]) + "\n"


def _kinds() -> dict[str, list[Method]]:
    methods = registry().values()
    return {kind: [m for m in methods if m.kind == kind] for kind in get_args(Kind)}


def _overview() -> str:
    lines = ["| class | methods |", "|---|---|"]
    for kind, methods in _kinds().items():
        lines.append(f"| {kind} | {', '.join(f'[`{m.name}`](#{m.name})' for m in methods)} |")
    return "\n".join(lines)


def _section(method: Method) -> str:
    module = importlib.import_module(f"diffcache.methods.{method.name}")
    what, *rest = inspect.getdoc(module).split("\n\n")
    details, memory = " ".join(" ".join(rest).split()).split("The cache holds ")
    facts = {
        "Paper": _paper(method.paper),
        "Parts": f"{_part(method.site)} × {_part(method.policy)} × {_part(method.predictor)}",
        "Options": _options(method),
        "Calibration": _calibration(method),
        "Memory": memory,
    }
    listed = "\n".join(f"- {name}: {text}" for name, text in facts.items())
    about = [f"### {method.name}", " ".join(what.split()), *filter(None, [details.strip()])]
    return "\n\n".join([*map(_filled, about), listed])


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _paper(entry: str) -> str:
    if not entry:
        return "none."
    title = " ".join(_field(entry, "title").split())
    if number := re.search(r"arXiv:(\d{4}\.\d{5})", entry):
        return f"{title}, [arXiv {number[1]}](https://arxiv.org/abs/{number[1]})."
    return f"[{title}]({_field(entry, 'url')})."


def _field(entry: str, name: str) -> str:
    return re.search(rf"\b{name}\s*= {{(.*?)}},?\n", entry, re.S)[1]


def _part(part: Any) -> str:
    return f"`{type(part).__name__}`"


def _options(method: Method) -> str:
    plain = {option.name: option.default for option in fields(method.guards)} | {"lagged": False}
    shown = {
        name: value
        for name, value in method.options().items()
        if name not in plain or value != plain[name]
    }
    return ", ".join(f"`{name}={value!r}`" for name, value in shown.items()) + "."


def _calibration(method: Method) -> str:
    policy = method.policy
    if policy.measured is None:
        return "none."
    known = ", ".join(dict.fromkeys(constants.denoiser for constants in method.published))
    published = f"; published for {known} of the paper's size" if known else ""
    need = "must" if policy.measured_is_needed else "can"
    return f"`{policy.measured}` {need} be measured{published}."


def main() -> int:
    """Runs as the arguments say; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        DOCUMENT.write_text(document())
    current = DOCUMENT.read_text() == document()
    if not current:
        print("docs/methods.md is not what the registry gives; run python bench/catalogue.py")
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
