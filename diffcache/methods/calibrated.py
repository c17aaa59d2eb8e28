"""diffcache's own schedule: the steps that a calibration found best, for any share of the run.

`diffcache.calibrate(pipe, prompts)` records the predictions of a few full runs and plans, for every
number of computed steps, those that leave the least weighted error of the forecasts. The plans are
ours, after DPCache, LeMiCa and BudCache. Every sample computes the same steps, unless `veto` lets
the measured error of its own forecasts add some. The cache holds four outputs a guidance branch,
and seven guided predictions.
"""

from diffcache.policies import Scheduled
from diffcache.predictors import Kriging
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .adaptivediffusion import PAPER
from .base import Method

METHOD = Method(
    site=Output(),
    policy=Scheduled(),
    predictor=Kriging(),
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="calibrated",
    kind="by timestep",
    summary="Computes the steps that a calibration found best for a share of the run.",
    paper=PAPER,
)
