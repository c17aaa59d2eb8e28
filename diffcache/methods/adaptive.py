"""diffcache's own method: plans by the measured error of its forecast.

The cache holds four outputs a guidance branch, and five guided predictions.
"""

from diffcache.policies import ErrorBudget
from diffcache.predictors import Kriging
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .adaptivediffusion import PAPER
from .base import Method

METHOD = Method(
    site=Output(),
    policy=ErrorBudget(tolerance=0.08),
    predictor=Kriging(),
    guards=Guards(protect=(1, 0), max_consecutive_skips=8),
    name="adaptive",
    kind="by timestep",
    summary="Plans the run by the measured error of its forecast, a third-order difference, for "
    "each sample on its own.",
    paper=PAPER,
)
