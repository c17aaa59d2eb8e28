"""FasterCache, its guidance half: unconditional rows are the conditional ones plus a bias.

Published, with the values of diffusers' port: unconditional rows are computed every 5th step below
timestep 641; in between they are the conditional rows plus the difference seen last, whose low
frequencies grow by 1.1 a step between timesteps 99 and 901 and whose high ones do below 301. Ours:
the unconditional half is found by measurement, each sample skips on its own, and values without
image axes (packed tokens) keep the difference unweighted. Published but not done here: the other
half, which extrapolates attention outputs. Pipelines that call the denoiser once a branch are
computed in full. The cache holds one fp32 difference a sample, of the output's size.
"""

from diffcache.policies import Interval
from diffcache.predictors import FrequencySplit
from diffcache.runtime.guards import Guards
from diffcache.sites import Guidance

from .base import Method

METHOD = Method(
    site=Guidance(),
    policy=Interval(5, within=(-1, 641)),
    predictor=FrequencySplit(),
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="fastercache",
    kind="hybrid",
    summary="Forecasts the unconditional half of guided batches from the conditional one.",
    paper="""@inproceedings{lv2025fastercache,
  title     = {FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality},
  author    = {Lv, Zhengyao and Si, Chenyang and Song, Junhao and Yang, Zhenyu and Qiao, Yu and
               Liu, Ziwei and Wong, Kwan-Yee K.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2410.19355}
}""",
)
