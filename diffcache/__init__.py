"""diffcache: skip the denoiser work that can be predicted, in any diffusers pipeline."""

import importlib

from .api import cite, methods, report, request, unwrap, wrap, wrapped
from .calibrating import calibrate
from .calibration import Calibration
from .methods import Method
from .runtime.guards import Guards
from .runtime.report import Event, Report
from .version import __version__

__all__ = [
    "Calibration",
    "Event",
    "Guards",
    "Method",
    "Report",
    "Tuned",
    "__version__",
    "calibrate",
    "cite",
    "compare",
    "methods",
    "report",
    "request",
    "tune",
    "unwrap",
    "warmup",
    "wrap",
    "wrapped",
]


def __getattr__(name: str):
    # Comparing needs image libraries that wrapping does not.
    if name == "compare":
        from .comparing import compare

        return compare
    if name in ("tune", "Tuned"):
        from . import tuning

        return getattr(tuning, name)
    if name == "warmup":
        from .warming import warmup

        return warmup
    if name == "tiny":
        return importlib.import_module(".tiny", __name__)
    raise AttributeError(f"module 'diffcache' has no attribute {name!r}")
