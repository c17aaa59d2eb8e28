"""Spectrum: a ridge fit of Chebyshev polynomials to what was computed, in growing windows.

Degree, ridge, window, growth (0.75, or 3 to skip more) and five steps of warm-up are published, and
give the published 14 and 10 calls in 50 steps. The published site is the last block's output; ours
is the denoiser's. The cache holds eight outputs a guidance branch, where the released code keeps
all of them.
"""

from diffcache.policies import GrowingInterval
from diffcache.predictors import ChebyshevRidge
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .base import Method

METHOD = Method(
    site=Output(),
    policy=GrowingInterval(window=2.0, growth=0.75, start=5),
    predictor=ChebyshevRidge(degree=4, ridge=0.1),
    guards=Guards(protect=(5, 0), max_consecutive_skips=None),
    name="spectrum",
    kind="predictive",
    summary="Forecasts the output by a ridge fit of Chebyshev polynomials, in growing windows.",
    paper="""@inproceedings{han2026spectrum,
  title     = {Adaptive Spectral Feature Forecasting for Diffusion Sampling Acceleration},
  author    = {Han, Jiaqi and Shi, Juntong and Li, Puheng and Ye, Haotian and Guo, Qiushan and
               Ermon, Stefano},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2026},
  note      = {arXiv:2603.01623}
}""",
)
