"""First Block Cache: skip the remaining blocks while the first one's residual hardly changes.

The threshold is diffusers'; deciding for each sample is ours. The cache holds one residual a list
of blocks and guidance branch, and the probe.
"""

from diffcache.policies import Threshold
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import BlockStack

from .base import Method

METHOD = Method(
    site=BlockStack(head=1),
    policy=Threshold(threshold=0.05),
    predictor=Reuse(),
    # As released: only the first step is sure to be computed, and skips have no cap.
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="fbcache",
    kind="by timestep",
    summary="Reuses the residual of the block stack while the first block's residual is stable.",
    paper="""@misc{paraattention2024,
  title  = {ParaAttention: Context parallel attention that accelerates DiT model inference with
            dynamic caching},
  author = {{chengzeyi}},
  year   = {2024},
  url    = {https://github.com/chengzeyi/ParaAttention}
}""",
)
