"""Draft, then exact: what a generation computed before its first skip, kept and replayed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from .calibration import adapters_of, weights_of
from .fingerprints import fingerprint, has_state
from .runtime import clock
from .runtime.disguise import base_of
from .runtime.generation import current
from .runtime.promises import kept
from .runtime.report import Report
from .runtime.rows import leaves, map_leaves, tensor_leaves
from .sites import gate
from .sites.discovery import denoisers, foreign_cache, schedulers, version


class _Kept(NamedTuple):
    """A denoiser call that was computed in full: which, given what, its output and its rows."""

    denoiser: str
    given: list[Any]
    output: Any
    rows: int


class Draft:
    """A pipeline call, the random states it began in, and its exact prefix.

    The prefix are the denoiser's outputs up to the first call of which any row was skipped. The
    pipeline is held weakly; the call's arguments are held as long as the draft is.

    Args:
        pipe: the pipeline.
        call: its call.
        limit: bytes that the prefix may hold; None for no limit.
    """

    def __init__(self, pipe: Any, call: partial, limit: int | None = None) -> None:
        self.pipe = ref(pipe)
        self.limit = limit
        # Pipelines write into the dicts and lists that they are given.
        self.arguments = map_leaves((call.args[1:], call.keywords), lambda leaf: leaf)
        self.states = _RandomStates(self.arguments)
        self.circumstances = _circumstances(pipe)
        self.prefix: list[_Kept] = []
        self._growing = True

    @property
    def rows(self) -> int:
        """Row-steps in the prefix."""
        return sum(kept.rows for kept in self.prefix)

    @property
    def bytes(self) -> int:
        return sum(leaf.nbytes for kept in self.prefix for leaf in tensor_leaves(kept.output))

    def keeping(self, denoiser: str, report: Report, serve: Callable) -> Callable:
        """The handler `serve` of a denoiser, whose exact outputs are kept.

        `report` is the generation's account of rows, which tells whether a call was exact.
        """

        def watched(plain: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
            if not self._growing:
                return serve(plain, args, kwargs)
            given = fingerprint((args, kwargs))
            states, computed, total = _RandomStates(()), report.computed, report.total
            output = serve(plain, args, kwargs)
            rows = report.total - total
            # Not called, a denoiser that draws noise (dropout) would leave other noise to the rest.
            exact = report.computed - computed == rows and states == _RandomStates(())
            if exact:
                # What a call fills, as a dict of keys and values, its replay would not. And a
                # ControlNet's residuals, promised before, have been asked for by now.
                after = fingerprint(kept((args, kwargs)))
                exact = after is not None and given in (None, after)
                given = after
            self._growing = exact and not any(map(has_state, leaves(output)))
            if self._growing:
                self._keep(_Kept(denoiser, given, map_leaves(output, _cloned), rows))
            return output

        return watched

    def _keep(self, kept: _Kept) -> None:
        self.prefix.append(kept)
        if self.limit is not None and self.bytes > self.limit:
            self.prefix.pop()
            self._growing = False

    def refined(self) -> tuple[Any, Report]:
        """Calls the pipeline again, in full but for the prefix: its output, and the account.

        Random states are afterwards what they were before.

        Raises:
            RuntimeError: the pipeline is gone.
        """
        pipe = self.pipe()
        if pipe is None:
            raise RuntimeError(
                "the pipeline of this draft is gone; keep a reference to it until run.refine()"
            )
        now = _circumstances(pipe)
        changed = [name for name, value in self.circumstances.items() if now[name] != value]
        replay = _Replay([] if changed else self.prefix)
        if changed:
            replay.report.note(
                f"{', '.join(changed)} changed since the draft, so everything was computed, "
                "as the pipeline is now"
            )
        args, kwargs = map_leaves(self.arguments, lambda leaf: leaf)
        replay.report.prefix_bytes = self.bytes
        before = _RandomStates(self.arguments)
        with ExitStack() as stack:
            stack.callback(before.restore)
            for scheduler in schedulers(pipe):
                clock.watch(scheduler)
                stack.callback(clock.unwatch, scheduler)
            for name, module in denoisers(pipe).items():
                replay.attach(stack, name, module)
            token = current.set(replay)
            stack.callback(current.reset, token)
            self.states.restore()
            output = base_of(pipe).__call__(pipe, *args, **kwargs)
        return output, replay.finish()


class _Replay:
    """Stands where a generation does; answers the first denoiser calls from a prefix.

    A call is answered only where it is given the same, to the bit, as the draft's was.
    """

    def __init__(self, prefix: list[_Kept]) -> None:
        self.handlers: dict[int, Callable] = {}
        self.report = Report("refine")
        self._prefix = iter(prefix)
        self._masks: list[list[bool]] = []
        self._step: list[bool] = []
        self._step_rows = 0
        self._started = time.perf_counter()

    def attach(self, stack: ExitStack, name: str, module: nn.Module) -> None:
        if (other := foreign_cache(module)) is not None:
            self.report.note(f"not exact: another cache is active: {other}")
            return
        gate.open_gate(module)
        stack.callback(gate.close_gate, module)
        self.handlers[id(module)] = partial(self._serve, name)

    def _serve(self, denoiser: str, plain: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        report, kept = self.report, next(self._prefix, None)
        if kept is not None and (kept.denoiser, kept.given) != (
            denoiser,
            fingerprint((args, kwargs)),
        ):
            self._prefix = iter(())
            kept = None
            report.note(
                "a denoiser call was given other values than in the draft (was an argument "
                "written to, or does a callback remember?), so it and all after it were computed; "
                "this is what the pipeline gives now, perhaps of another picture than the draft's"
            )
        sample = next(iter(tensor_leaves((args, kwargs))), None)
        rows = sample.shape[0] if sample is not None and sample.ndim else 1
        self._step.append(kept is None)
        self._step_rows += rows
        report.total += rows
        if kept is not None:
            report.prefix += rows
            return map_leaves(kept.output, _cloned)
        report.calls += 1
        report.computed += rows
        return plain(*args, **kwargs)

    def timesteps_set(self, scheduler: Any, kind: str) -> None:
        """A new timetable changes nothing here."""

    def scheduler_steps(self, scheduler: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """Nothing is corrected here."""
        return {}

    def scheduler_stepped(
        self, scheduler: Any, kind: str, arguments: dict[str, Any], latents: Any
    ) -> None:
        """Closes the books of a step."""
        self.report.steps += 1
        self.report.rows = max(self.report.rows, self._step_rows)
        self._masks.append([any(self._step)] * len(latents))
        self._step, self._step_rows = [], 0

    def finish(self) -> Report:
        self.report.seconds = time.perf_counter() - self._started
        if self._masks and all(len(mask) == len(self._masks[0]) for mask in self._masks):
            self.report.mask = torch.tensor(self._masks)
        return self.report


class _RandomStates:
    """The states of torch's own generators, and of those among a call's arguments."""

    def __init__(self, arguments: Any) -> None:
        own = [leaf for leaf in leaves(arguments) if isinstance(leaf, torch.Generator)]
        self._own = [(generator, generator.get_state()) for generator in own]
        self._cpu = torch.get_rng_state()
        # A device that nobody has used yet has no state, and asking for it would start it.
        started = [device for device in (torch.cuda, torch.xpu) if device.is_initialized()]
        self._devices = [(device, device.get_rng_state_all()) for device in started]
        if torch.backends.mps.is_available():
            self._devices.append((torch.mps, [torch.mps.get_rng_state()]))

    def __eq__(self, other: Any) -> bool:
        mine, others = self._tensors, other._tensors
        return len(mine) == len(others) and all(map(torch.equal, mine, others))

    __hash__ = None

    @property
    def _tensors(self) -> list[Tensor]:
        own = [state for _, state in self._own]
        return [self._cpu, *own, *(state for _, states in self._devices for state in states)]

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        for generator, state in self._own:
            generator.set_state(state)
        for device, states in self._devices:
            if device is torch.mps:
                device.set_rng_state(*states)
            else:
                device.set_rng_state_all(states)


def _circumstances(pipe: Any) -> dict[str, Any]:
    """What the denoisers' outputs depend on beside their arguments, by name."""
    modules = list(denoisers(pipe).values())
    autocast = {
        device: torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        for device in ("cpu", "cuda")
    }
    return {
        "denoisers": [ref(module) for module in modules],
        "weights or attention processors": (weights_of(modules), [version(m) for m in modules]),
        "adapters": adapters_of(modules),
        "hooks or training mode": [
            (each.training, *each._forward_pre_hooks, *each._forward_hooks)
            for module in modules
            for each in module.modules()
        ],
        "settings of torch": (
            autocast,
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
        ),
    }


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
