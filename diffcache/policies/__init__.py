"""When to compute: pure strategies over numbers, usable without hooks or diffusers."""

from .base import (
    Evidence,
    ForecastError,
    LatentChange,
    NoEvidence,
    Policy,
    ProbeChange,
    State,
    Step,
)
from .budget import ErrorBudget
from .by_role import ByRole
from .fixed import Gated, Interval, Mask
from .lag_errors import LagErrors
from .released import ReleasedThirdOrder
from .third_order import ThirdOrder
from .threshold import Threshold

__all__ = [
    "ByRole",
    "ErrorBudget",
    "Evidence",
    "ForecastError",
    "Gated",
    "Interval",
    "LagErrors",
    "LatentChange",
    "Mask",
    "NoEvidence",
    "Policy",
    "ProbeChange",
    "ReleasedThirdOrder",
    "State",
    "Step",
    "ThirdOrder",
    "Threshold",
]
