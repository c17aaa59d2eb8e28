"""Every transformer and UNet class of the installed diffusers, built small and called by hand.

What each class needs is data, in `denoisers.json`: the arguments of its constructor and those of a
call. An argument is a number, a list, or a tensor written as its kind and its shape, where `B`
stands for the rows of the batch, `2B` for twice as many, and `=B` for rows that are all the same:

    normal B 4 8 8    Gaussian noise
    below16 B 7       random integers from 0 to 15
    1.0 B 7           a constant; 1 gives integers, true and false give booleans
    range 7           0 to 6
    time B            the step's timestep; steps B the same as integers, fraction B from 0 to 1
    complex 16 4      rotations
    {"row": [..]}     a tensor with the same values in every row
    {"values": [..]}  a tensor
    {"each": ..}      a list with one entry a row
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers.models.transformers
import diffusers.models.unets
import torch
from diffusers.models.controlnets import controlnet_xs
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

_PACKAGES = (diffusers.models.transformers, diffusers.models.unets)
_LONGEST_TIME = 1000


@cache
def _data() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text())


@cache
def classes() -> dict[str, type[ModelMixin]]:
    """The model classes that diffusers defines beside its transformers and UNets, by name."""
    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}")
        for package in _PACKAGES
        for info in pkgutil.iter_modules(package.__path__)
    ]
    found = {
        name: member
        for module in modules
        for name, member in vars(module).items()
        if inspect.isclass(member)
        and issubclass(member, ModelMixin)
        and member.__module__ == module.__name__
    }
    found["UNetControlNetXSModel"] = controlnet_xs.UNetControlNetXSModel
    return dict(sorted(found.items()))


def known() -> list[str]:
    """The classes that have an entry in `denoisers.json`."""
    return list(_data())


def rows(name: str) -> int:
    """Rows of a batch for class `name`: two, or one where its inputs are packed without rows."""
    return _data()[name].get("rows", 2)


def build(name: str, **options: Any) -> nn.Module:
    """A small model of class `name` with random weights, all of which matter to its output.

    Raises:
        KeyError: `denoisers.json` has no entry for the class.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = classes()[name](**_data()[name]["config"] | options).eval()
        # Gates and last layers often begin at zero, which would hide all that lies before them.
        for parameter in model.parameters():
            begun = parameter.nan_to_num(0.0, 0.0, 0.0).clamp(-2, 2)
            parameter.copy_(begun + 0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def caller(name: str, rows: int) -> Callable[[float, float], dict[str, Any]]:
    """Gives the arguments of calls of `rows` rows: `arguments(time, scale)`.

    They are the same objects at each call, as in a pipeline, but for the timestep and the sample,
    which comes first and is multiplied by `scale`.
    """
    written = _data()[name]["inputs"]
    generator = torch.Generator().manual_seed(0)
    timed = {key: value for key, value in written.items() if _is_time(value)}
    made = {
        key: _make(value, rows, generator) for key, value in written.items() if key not in timed
    }
    _, sample, *_ = inspect.signature(classes()[name].forward).parameters

    def arguments(time: float, scale: float = 1.0) -> dict[str, Any]:
        times = {key: _timed(value, rows, time) for key, value in timed.items()}
        return {**made, **times, sample: _scaled(made[sample], scale)}

    return arguments


def _is_time(written: Any) -> bool:
    return isinstance(written, str) and written.split()[0] in ("time", "steps", "fraction")


def _timed(written: str, rows: int, time: float) -> Tensor:
    kind, *dims = written.split()
    value = {"time": time, "steps": int(time), "fraction": time / _LONGEST_TIME}[kind]
    return torch.full(_shape(dims, rows), value)


def _scaled(sample: Any, scale: float) -> Any:
    if isinstance(sample, Tensor):
        return sample * scale if sample.is_floating_point() else sample
    return type(sample)(_scaled(part, scale) for part in sample)


def _shape(dims: list[str], rows: int) -> list[int]:
    return [int(d[:-1] or 1) * rows if d.endswith("B") else int(d) for d in dims]


def _make(written: Any, rows: int, generator: torch.Generator) -> Any:
    if isinstance(written, str):
        kind, *dims = written.split()
        if dims[:1] == ["=B"]:
            one = _tensor(kind, _shape(dims[1:], rows), generator)
            return one.expand(rows, *one.shape).clone()
        return _tensor(kind, _shape(dims, rows), generator)
    if not isinstance(written, dict):
        return written
    ((kind, value),) = written.items()
    if kind == "values":
        return torch.tensor(value)
    if kind == "row":
        return torch.tensor([value] * rows)
    if kind == "dict":
        return {key: _make(part, rows, generator) for key, part in value.items()}
    if kind == "each":
        return [_make(value, rows, generator) for _ in range(rows)]
    parts = [_make(part, rows, generator) for part in value]
    return tuple(parts) if kind == "tuple" else parts


def _tensor(kind: str, shape: list[int], generator: torch.Generator) -> Tensor:
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    if kind == "complex":
        return torch.polar(torch.ones(shape), torch.randn(shape, generator=generator))
    if kind == "range":
        return torch.arange(*shape)
    if kind.startswith("below"):
        return torch.randint(int(kind.removeprefix("below")), shape, generator=generator)
    return torch.full(shape, json.loads(kind))
