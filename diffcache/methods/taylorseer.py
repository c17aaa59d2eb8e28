"""TaylorSeer, the light form: Taylor's series of the last projection, every other block skipped.

Interval, warm-up and order are the defaults of diffusers, whose first computed step after the
warm-up is the second one (`phase=1`; 4 gives that of the released code). The last projection's
output is the denoiser's own. The cache holds two outputs a guidance branch; the published form with
a series for each attention and MLP holds two of each.
"""

from diffcache.policies import Interval
from diffcache.predictors import Taylor
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from . import interval
from .base import Method

METHOD = Method(
    site=Output(),
    policy=Interval(every=5, start=3, phase=1),
    predictor=Taylor(order=1),
    # As released: nothing but the interval decides.
    guards=Guards(protect=(0, 0), max_consecutive_skips=None),
    name="taylorseer",
    kind="predictive",
    summary="Computes one step in n and forecasts the output by its Taylor series.",
    paper=interval.METHOD.paper,
)
