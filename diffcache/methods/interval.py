"""Compute every n-th step and forecast between: the strongest fixed schedule, and the simplest.

The forecast in the scheduler's coordinate and the guards are ours. The cache holds two outputs a
guidance branch.
"""

from diffcache.policies import Interval
from diffcache.predictors import Newton
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .base import Method

METHOD = Method(
    site=Output(),
    policy=Interval(every=3),
    predictor=Newton(order=1),
    guards=Guards(protect=(3, 1), max_consecutive_skips=None),
    name="interval",
    kind="predictive",
    summary="Computes one step in every n and forecasts the output between.",
    paper="""@inproceedings{liu2025taylorseer,
  title     = {From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers},
  author    = {Liu, Jiacheng and Zou, Chang and Lyu, Yuanhuiyi and Chen, Junjie and Zhang, Linfeng},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2025},
  note      = {arXiv:2503.06923}
}""",
)
