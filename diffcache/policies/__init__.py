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
from .fixed import Interval, Mask
from .power_law import PowerLaw
from .released import ReleasedThirdOrder
from .third_order import ThirdOrder
from .threshold import Threshold

__all__ = [
    "ErrorBudget",
    "Evidence",
    "ForecastError",
    "Interval",
    "LatentChange",
    "Mask",
    "NoEvidence",
    "Policy",
    "PowerLaw",
    "ProbeChange",
    "ReleasedThirdOrder",
    "State",
    "Step",
    "ThirdOrder",
    "Threshold",
]
