"""Methods against the plain pipeline, and against spending the same on fewer steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import metrics
from .api import check_pipeline, unwrap, wrapped
from .comparison import Comparison, Row
from .disabling import refuse_disabled
from .measuring import PLAIN, TOO_FAST, Contender, Measuring, too_fast
from .methods import Method, find
from .options import is_number
from .requesting import unrequested
from .sites import Guidance, Output
from .trial import Trial

LADDERED = "adaptive"
"""The method whose tolerance is recommended."""
GOOD_ENOUGH = 35.0
"""PSNR in dB from which on pictures are visibly the same."""

BESIDE = ("steps", "time", "noise")

# How rows are labelled that no method generated.
_PLAIN_ROWS = re.compile(rf"{PLAIN}(, .*)?|\d+ steps")


def compare(
    pipe: Any,
    prompts: Sequence[str | Mapping[str, Any]],
    methods: Any = ("adaptive",),
    seeds: Sequence[int] | None = None,
    *,
    batch_size: int = 4,
    minutes: float | None = None,
    beside: Sequence[str] | None = None,
    psnr: float | None = None,
    **call_kwargs: Any,
) -> Comparison:
    """Generates the same pictures plainly, with methods, and with as few steps as each computed.

    The last is what a method has to beat: the same scheduler at the same cost. A pipeline that is
    wrapped, or not, is so again afterwards, also after an exception.

    Args:
        pipe: a diffusers pipeline.
        prompts: one entry a picture: a string, or a mapping of the call's arguments that are that
            picture's own, such as `{"prompt": "a cat", "image": image}`. In a batch tensors are
            concatenated along their first axis, and everything else is put into a list.
        methods: each a name of `diffcache.methods()`, a `Method`, or a pair of either and a dict
            of options; or a mapping of labels to such, other than those of plain rows.
        seeds: one a picture, for a generator on the CPU; 0, 1, 2, … if None.
        batch_size: pictures a call.
        minutes: wall time to spend. The first batch's time tells how many prompts fit; settings,
            baselines and methods that do not are named in the notes. The first batch, and the
            first method on it, run in any case. With `minutes`, and "adaptive" without a setting
            among the methods, other tolerances are tried too and one is recommended.
        beside: what is measured beside the methods: "steps", as many plain steps as each
            computed; "time", as many as take its time; "noise", a run as legitimate as the plain
            one (pictures one by one, or in bf16 where they are so already), whose PSNR is a floor
            of noise that nothing needs to be better than. All with `minutes`, "steps" otherwise.
        psnr: what the 5th percentile shall be at least, in dB, with the recommended tolerance;
            35 if None.
        call_kwargs: what else each call is given, for example `num_inference_steps=28`.

    Returns:
        The rows of a table: it prints, has `.markdown()`, and writes files with `.save("out/")`.

    Raises:
        ValueError: no prompts, another number of seeds, an unknown method, option or argument, no
            minutes, no PSNR, or one where nothing is recommended; nothing has run then. Or an
            entry that gives several pictures, or one of another size.
        TypeError: `pipe` is not a pipeline.
    """
    contenders = _contenders(methods)
    if minutes is not None and not (is_number(minutes) and minutes > 0):
        raise ValueError(f"minutes={minutes!r} leaves no time; try minutes=10")
    if psnr is not None:
        metrics.check_asked(psnr, GOOD_ENOUGH)
        if minutes is None or not any(map(_is_laddered, contenders)):
            raise ValueError(
                f"psnr={psnr!r} is for the tolerance that is recommended where there are minutes, "
                "and 'adaptive' without a setting is among the methods; call compare(pipe, "
                f"prompts, minutes=10, psnr={psnr!r})"
            )
    if beside is None:
        beside = BESIDE if minutes is not None else BESIDE[:1]
    beside = beside if isinstance(beside, str) else tuple(beside)
    if isinstance(beside, str) or set(beside) - set(BESIDE):
        raise ValueError(f"beside={beside!r} is not of {BESIDE}; try beside=('steps', 'noise')")
    refuse_disabled("compare")
    check_pipeline(pipe, "diffcache.compare(pipe, prompts)")
    # Whatever is on the pipeline comes back at the end of this block.
    with unrequested(), wrapped(pipe):
        unwrap(pipe)
        trial = Trial(pipe, prompts, seeds, batch_size, call_kwargs)
        for contender in contenders:
            with wrapped(pipe, contender.method, **contender.options):
                pass
        return _compared(trial, contenders, beside, minutes, psnr or GOOD_ENOUGH)


def _compared(
    trial: Trial,
    contenders: list[Contender],
    beside: Sequence[str],
    minutes: float | None,
    psnr: float,
) -> Comparison:
    measuring = Measuring(trial, beside, minutes)
    measuring.plain(len(contenders))
    laddered = recommended = floor = None
    for contender in contenders:
        row = measuring.method(contender)
        if row is None:
            continue
        if not _is_whole(contender):
            measuring.notes.append(
                f"{contender.label}: skipped steps compute a part, which row-steps leave out"
            )
        if _is_laddered(contender):
            laddered = measuring.rows.index(row)
        measuring.baselines(row)
        if contender is contenders[0] and "noise" in beside:
            floor = measuring.floor()
            laddered = None if laddered is None else laddered + (floor is not None)
    if minutes is not None and laddered is not None and measuring.finite:
        default = find(LADDERED).options()["tolerance"]
        recommended = measuring.ladder(measuring.rows[laddered], LADDERED, default, psnr)
        if recommended is None:
            measuring.notes.append(
                f"no tolerance that was tried keeps the 5th percentile at {psnr:g} dB or more"
            )
    # The floor is run otherwise, in bf16 perhaps, and may well be faster.
    odd = unsteady([row for row in measuring.rows if row.label != floor])
    notes = measuring.notes + odd
    if trial.steps is None:
        notes.append("not compared with fewer steps: the calls are not given one number of steps")
    if measuring.left_out:
        labels = ", ".join(dict.fromkeys(measuring.left_out))
        notes.append(f"left out, as {minutes:g} minutes were over: {labels}")
    rows, setting = measuring.rows, trial.setting()
    return Comparison(rows, trial.names, trial.seeds, setting, notes, floor, recommended, not odd)


def _is_laddered(contender: Contender) -> bool:
    """Whether this is the method whose tolerance is recommended, as it comes."""
    return contender.method == LADDERED and not contender.options


def _is_whole(contender: Contender) -> bool:
    """Whether what the method skips is whole calls of the denoiser, or rows of them."""
    site = {name: value for name, value in contender.options.items() if name == "site"}
    return isinstance(find(contender.method).configured(**site).site, (Output, Guidance))


def _contenders(methods: Any) -> list[Contender]:
    if isinstance(methods, Mapping):
        found = [Contender(str(label), *_with_options(m)) for label, m in methods.items()]
    else:
        several = isinstance(methods, Iterable) and not isinstance(methods, str)
        found = [_contender(method) for method in (methods if several else [methods])]
    if not found:
        raise ValueError(
            f"methods={methods!r} is empty; call compare(pipe, prompts, methods=['adaptive'])"
        )
    names = [contender.label for contender in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"methods has two of {', '.join(map(repr, twice))}; call compare(pipe, prompts, "
            "methods={'one label': method, 'another': method})"
        )
    if taken := [name for name in names if _PLAIN_ROWS.fullmatch(name)]:
        raise ValueError(
            f"a row of the plain pipeline may be called {taken[0]!r}; call compare(pipe, prompts, "
            f"methods={{'my {taken[0]}': method}})"
        )
    return found


def _contender(entry: Any) -> Contender:
    method, options = _with_options(entry)
    name = method.name if isinstance(method, Method) else str(method)
    return Contender(" ".join([name, *(f"{k}={v}" for k, v in options.items())]), method, options)


def _with_options(entry: Any) -> tuple[str | Method, dict[str, Any]]:
    if isinstance(entry, (str, Method)):
        return entry, {}
    if isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[1], Mapping):
        return entry[0], dict(entry[1])
    raise ValueError(
        f"{entry!r} among methods is neither a name, a Method, nor a pair with options; call "
        "compare(pipe, prompts, methods=['adaptive', ('adaptive', {'tolerance': 0.04})])"
    )


def unsteady(rows: list[Row]) -> list[str]:
    """A note where rows took less time than their share of the plain row's work, the first one's.

    Then other programs slowed the plain run, and no time that is held against it says much.
    """
    plain, *others = rows
    fast = [row.label for row in others if too_fast(plain.seconds / row.seconds, row.compute)]
    if not fast:
        return []
    return [
        f"{', '.join(fast)}: {TOO_FAST}; take no time from this table, and compare again when "
        "nothing else runs"
    ]
