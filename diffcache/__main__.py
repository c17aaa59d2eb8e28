"""The command line: python -m diffcache demo | methods | cite NAME."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from . import cite, methods
from .options import meant
from .version import __version__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffcache",
        description="Skip the denoiser work that can be predicted, in any diffusers pipeline.",
        epilog="In Python: import diffcache; pipe = diffcache.wrap(pipe)",
    )
    parser.add_argument("--version", action="version", version=f"diffcache {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="compare a method with plain tiny pipelines, drawn")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder (default: out)")
    demo.add_argument("--steps", type=_count, default=50, help="plain steps (default: 50)")
    demo.add_argument("--prompts", type=_count, default=8, help="pictures a pipeline (default: 8)")
    demo.add_argument(
        "--method", type=_method, default="adaptive", help="what to compare (default: adaptive)"
    )
    commands.add_parser("methods", help="list the methods")
    paper = commands.add_parser("cite", help="print the BibTeX of a method's paper")
    paper.add_argument("method", type=_method, metavar="NAME")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count of one or more")
    return int(text)


def _method(text: str) -> str:
    if text not in methods():
        raise argparse.ArgumentTypeError(
            f"there is no method {text!r}; the methods are {', '.join(methods())}"
            + meant([text], methods())
        )
    return text


def _print_methods() -> None:
    width = max(map(len, methods()))
    for name, summary in methods().items():
        indent = " " * (width + 2)
        print(
            textwrap.fill(
                summary, 100, initial_indent=name.ljust(width + 2), subsequent_indent=indent
            )
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command: 0 if it did, 1 if it failed, SystemExit(2) for a line it does not know."""
    options = _parser().parse_args(arguments)
    if options.command == "methods":
        _print_methods()
    elif options.command == "cite":
        print(cite(options.method) or f"{options.method} is from no paper: nothing to cite")
    else:
        from .demo import demo

        try:
            path = demo(options.out, options.steps, options.prompts, options.method)
        except (ImportError, OSError, ValueError) as error:
            print(f"diffcache demo: {error}", file=sys.stderr)
            return 1
        print(f"with · without · difference · timeline: {path.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
