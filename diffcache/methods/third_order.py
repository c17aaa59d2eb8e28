"""The raw third-order threshold rule, for each sample on its own, with our guards.

Rule and threshold are published; the decision for each sample and the guards are ours. Latents in
half precision differ by their rounding, so that little or nothing is skipped. The cache holds one
output a guidance branch, and four latents in fp32.
"""

from diffcache.policies import ThirdOrder
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .adaptivediffusion import PAPER
from .base import Method

METHOD = Method(
    site=Output(),
    policy=ThirdOrder(threshold=0.01, statistic="tensor"),
    predictor=Reuse(),
    guards=Guards(protect=(4, 1), max_consecutive_skips=4),
    name="third_order",
    kind="by timestep",
    summary="Skips while the third-order difference of the latents is under a threshold.",
    paper=PAPER,
)
