"""Options for the generations of a `with` block, their reports, and their drafts made exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from .disabling import disabled, no_report
from .methods import Method
from .refining import Draft
from .runtime.report import Report

requests: ContextVar[Request | None] = ContextVar("diffcache_request", default=None)


@contextmanager
def unrequested() -> Iterator[None]:
    """A block whose generations no open request has a say in, or is told of."""
    token = requests.set(None)
    try:
        yield
    finally:
        requests.reset(token)


class Request:
    """Options of the generations inside a `with diffcache.request(...)`, and their reports.

    Attributes:
        options: what overrides the method's own options.
        outer: the request that this one is inside of: its options hold where these say nothing,
            and of generations inside of this one it is not told.
        keep_prefix: whether pipelines' generations are kept as drafts, to be refined.
        reports: one `Report` a generation, refined ones included, in order.
    """

    def __init__(
        self, options: dict[str, Any], keep_prefix: bool = False, outer: Request | None = None
    ) -> None:
        self.options = options
        self.outer = outer
        self.keep_prefix = keep_prefix
        self.reports: list[Report] = []
        self._loops: dict[Any, Callable[[], None]] = {}
        self._drafts: dict[int, Draft] = {}

    @property
    def report(self) -> Report:
        """The newest report."""
        if not self.reports and disabled():
            return no_report()
        if not self.reports:
            raise RuntimeError(
                "no generation has run inside this request; call the wrapped pipeline inside the "
                "with block, then read .report"
            )
        return self.reports[-1]

    def configured(self, method: Method) -> Method:
        """The method with these options, and with the outer ones where these say nothing."""
        if self.outer is not None:
            method = self.outer.configured(method)
        return method.configured(**self.options)

    def began(self, loop: Any, end: Callable[[], None]) -> None:
        """Takes in that a generation of `loop` has begun, which `end` ends, if nothing did."""
        self._loops[loop] = end

    def ended(self, loop: Any) -> None:
        """Takes in that no generation of `loop` is open any more."""
        self._loops.pop(loop, None)

    def close(self) -> None:
        """Ends the generations of loops that stopped before their last step."""
        with ExitStack() as ends:
            for end in self._loops.values():
                ends.callback(end)
            self._loops = {}

    def finished(self, report: Report, draft: Draft | None = None) -> None:
        """Takes in a generation's account and, where it was kept, its draft."""
        if draft is not None:
            self._drafts[len(self.reports)] = draft
        self.reports.append(report)

    def refine(self, generation: int | None = None) -> Any:
        """The exact output of a draft: what the plain pipeline gives for the same call.

        The pipeline is called again with the draft's arguments and the random states that the
        draft began in, callbacks included. Denoiser calls before the draft's first skip are
        answered from what it kept, as long as they are given the same to the bit; the others are
        computed in full. Where weights, adapters or settings of torch have changed since,
        everything is computed. `report` says how many row-steps were saved, and where the output
        may not be the draft's. Random states are left as they were.

        Args:
            generation: which of `reports`; the newest draft if None.

        Returns:
            What the pipeline's call returns.

        Raises:
            RuntimeError: nothing was kept to refine, or the pipeline is gone.
        """
        if not self.reports and disabled():
            raise RuntimeError(
                "DIFFCACHE_DISABLE=1: nothing was wrapped, so what the pipeline gave is exact, and "
                "there is no draft to refine; unset it to draft"
            )
        if not self.reports:
            raise RuntimeError(
                "no generation has run inside this request; call the wrapped pipeline inside of "
                "`with diffcache.request(keep_prefix=True) as run:`, then run.refine()"
            )
        if not self.keep_prefix:
            raise RuntimeError(
                "this request keeps nothing to refine; open it as "
                "`with diffcache.request(keep_prefix=True) as run:`"
            )
        if not self._drafts:
            raise RuntimeError(
                "a bare denoiser's loop is your own, and only a pipeline's call can be made again; "
                "call run.refine() for diffcache.wrap(pipe), or run the loop again after "
                "diffcache.unwrap(model); where a pipeline's was not kept, run.report.notes say why"
            )
        number = max(self._drafts) if generation is None else generation
        if number not in self._drafts:
            raise RuntimeError(
                f"generation {number!r} is no draft; drafts are "
                f"{', '.join(map(str, self._drafts))}, as in run.refine({max(self._drafts)})"
            )
        output, report = self._drafts[number].refined()
        self.finished(report)
        return output
