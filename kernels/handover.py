"""Standing aside for Hugging Face's `kernels`, whose name this folder has in a checkout."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def stand_aside() -> None:
    """Puts the installed top-level `kernels`, if there is one, in the place of this folder."""
    checkout = Path(__file__).resolve().parent.parent
    others = [entry for entry in sys.path if Path(entry or ".").resolve() != checkout]
    spec = PathFinder.find_spec("kernels", others)
    if spec is not None and spec.loader is not None:
        sys.modules["kernels"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["kernels"])
