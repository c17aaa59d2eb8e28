"""When to compute: pure strategies over numbers, usable without hooks or diffusers."""

from .accumulated import Accumulated, AccumulatedPrediction, AccumulatedProbe
from .base import (
    Decision,
    DraftError,
    Evidence,
    ForecastError,
    Grid,
    LatentChange,
    ModuleChange,
    NoEvidence,
    Policy,
    PredictedChange,
    ProbeChange,
    State,
    Step,
)
from .budget import ErrorBudget
from .by_role import ByRole
from .drafted import Drafted
from .fixed import Gated, GrowingInterval, Interval, Mask
from .lag_errors import LagErrors
from .magnitude import MagnitudeRatios
from .module_threshold import ModuleThreshold
from .power_law import PowerLaw
from .released import ReleasedThirdOrder
from .statistics import Statistics
from .third_order import ThirdOrder
from .threshold import Threshold

__all__ = [
    "Accumulated",
    "AccumulatedPrediction",
    "AccumulatedProbe",
    "ByRole",
    "Decision",
    "DraftError",
    "Drafted",
    "ErrorBudget",
    "Evidence",
    "ForecastError",
    "Gated",
    "Grid",
    "GrowingInterval",
    "Interval",
    "LagErrors",
    "LatentChange",
    "MagnitudeRatios",
    "Mask",
    "ModuleChange",
    "ModuleThreshold",
    "NoEvidence",
    "Policy",
    "PowerLaw",
    "PredictedChange",
    "ProbeChange",
    "ReleasedThirdOrder",
    "State",
    "Statistics",
    "Step",
    "ThirdOrder",
    "Threshold",
]
