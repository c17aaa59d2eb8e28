"""HiCache: TaylorSeer's forecast with scaled Hermite polynomials in place of powers.

Basis and scale (0.5 for FLUX.1-dev, 0.3 for schnell) are published. The published site is every
attention and MLP; ours is the output. The cache holds three outputs a guidance branch, whatever the
depth.
"""

from diffcache.policies import Interval
from diffcache.predictors import Hermite
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .base import Method

METHOD = Method(
    site=Output(),
    policy=Interval(every=5, start=3),
    predictor=Hermite(order=2, scale=0.5),
    guards=Guards(protect=(3, 0), max_consecutive_skips=None),
    name="hicache",
    kind="predictive",
    summary="Computes one step in n and forecasts the output in scaled Hermite polynomials.",
    paper="""@misc{feng2025hicache,
  title  = {HiCache: Training-free Acceleration of Diffusion Models via Hermite Polynomial-based
            Feature Caching},
  author = {Feng, Liang and Zheng, Shikang and Liu, Jiacheng and Lin, Yuqi and Zhou, Qinming and
            Cai, Peiliang and Wang, Xinyu and Chen, Junjie and Zou, Chang and Ma, Yue and
            Zhang, Linfeng},
  year   = {2025},
  note   = {arXiv:2508.16984}
}""",
)
