"""What stands in for a skipped value: linear combinations of values really computed."""

from .base import Predictor
from .chebyshev import ChebyshevRidge
from .corrections import Correction, Course, correction, followed, taken_back
from .frequency_split import FrequencySplit
from .kriging import Kriging
from .newton import Newton, Reuse, adams_bashforth
from .overshoot import damped, damping
from .taylor import Hermite, Taylor

__all__ = [
    "ChebyshevRidge",
    "Correction",
    "Course",
    "FrequencySplit",
    "Hermite",
    "Kriging",
    "Newton",
    "Predictor",
    "Reuse",
    "Taylor",
    "adams_bashforth",
    "correction",
    "damped",
    "damping",
    "followed",
    "taken_back",
]
