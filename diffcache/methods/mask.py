"""Play back given decisions.

The cache holds what the predictor reads, by default four outputs a guidance branch, and five guided
predictions.
"""

from diffcache.policies import Mask
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from . import adaptive
from .base import Method

METHOD = Method(
    site=Output(),
    policy=Mask(mask=((True,),)),
    predictor=adaptive.METHOD.predictor,
    guards=Guards.none(),
    name="mask",
    kind="static",
    summary="Computes the steps of a given mask; diffcache.wrap(pipe, mask=report.mask).",
    paper="",
)
