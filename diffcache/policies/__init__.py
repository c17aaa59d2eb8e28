"""When to compute: pure strategies over numbers, usable without hooks or diffusers."""

from .accumulated import Accumulated, AccumulatedPrediction, AccumulatedProbe
from .base import (
    DraftError,
    Evidence,
    ForecastError,
    LatentChange,
    NoEvidence,
    Policy,
    PredictedChange,
    ProbeChange,
    State,
    Step,
)
from .budget import ErrorBudget
from .drafted import Drafted
from .fixed import GrowingInterval, Interval, Mask
from .magnitude import MagnitudeRatios
from .power_law import PowerLaw
from .released import ReleasedThirdOrder
from .statistics import Statistics
from .third_order import ThirdOrder
from .threshold import Threshold

__all__ = [
    "Accumulated",
    "AccumulatedPrediction",
    "AccumulatedProbe",
    "DraftError",
    "Drafted",
    "ErrorBudget",
    "Evidence",
    "ForecastError",
    "GrowingInterval",
    "Interval",
    "LatentChange",
    "MagnitudeRatios",
    "Mask",
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
