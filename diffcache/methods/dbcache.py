"""DBCache: First Block Cache with several blocks computed at either end.

Eight blocks at the start, none at the end, threshold and eight steps of warm-up are the published
defaults; cache-dit decides for each list of blocks on its own, this method once for all lists, for
each sample. Its calibrators are a keyword here: `predictor="taylorseer"`. The cache holds one
residual a list of blocks and guidance branch, and the probe; more by the predictor's anchors.
"""

from diffcache.policies import Threshold
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import BlockStack

from .base import Method

METHOD = Method(
    site=BlockStack(head=8, tail=0),
    policy=Threshold(threshold=0.08),
    predictor=Reuse(),
    guards=Guards(protect=(8, 0), max_consecutive_skips=None),
    name="dbcache",
    kind="by layer",
    summary="Reuses the residual of the middle blocks while that of the first ones is stable.",
    paper="""@misc{cachedit2025,
  title  = {cache-dit: A PyTorch-native and Flexible Inference Engine with Hybrid Cache
            Acceleration and Parallelism for DiTs},
  author = {{DefTruth} and {vipshop.com}},
  year   = {2025},
  url    = {https://github.com/vipshop/cache-dit}
}""",
)
