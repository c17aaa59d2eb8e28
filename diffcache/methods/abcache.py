"""AB-Cache: the next output as an Adams–Bashforth relation between the last computed ones.

The relation is published, on outputs of consecutive steps; reading it as the polynomial through
them, which serves uneven steps as well, and the interval are ours. The paper's own default order
could not be looked up: two outputs here. The cache holds two outputs a guidance branch.
"""

from diffcache.policies import Interval
from diffcache.predictors import adams_bashforth
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .base import Method

METHOD = Method(
    site=Output(),
    policy=Interval(every=3),
    predictor=adams_bashforth(2),
    guards=Guards(protect=(3, 1), max_consecutive_skips=None),
    name="abcache",
    kind="predictive",
    summary="Computes one step in n and continues the output by an Adams-Bashforth relation.",
    paper="""@misc{yu2025abcache,
  title  = {AB-Cache: Training-Free Acceleration of Diffusion Models via Adams-Bashforth Cached
            Feature Reuse},
  author = {Yu, Zichao and Zou, Zhen and Shao, Guojiang and Zhang, Chengwei and Xu, Shengze and
            Huang, Jie and Zhao, Feng and Cun, Xiaodong and Zhang, Wenyi},
  year   = {2025},
  note   = {arXiv:2504.10540}
}""",
)
