"""EasyCache: the denoiser's output minus its input, repeated while the input has hardly moved.

Rule and thresholds (0.05 for Wan with ten steps of warm-up, 0.025 for HunyuanVideo with five) are
published. Reading the guided prediction, so that all guidance branches of a sample share one
decision, is ours. The cache holds one output a guidance branch, and four tensors of the latents'
size.
"""

from diffcache.policies import AccumulatedPrediction
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .base import Method

METHOD = Method(
    site=Output(residual=True),
    policy=AccumulatedPrediction(threshold=0.05),
    predictor=Reuse(),
    guards=Guards(protect=(10, 1), max_consecutive_skips=None),
    name="easycache",
    kind="by timestep",
    summary="Repeats output minus input while the output's predicted change adds up to little.",
    paper="""@misc{zhou2025easycache,
  title  = {Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive
            Caching},
  author = {Zhou, Xin and Liang, Dingkang and Chen, Kaijin and Feng, Tianrui and Chen, Xiwu and
            Lin, Hongkai and Ding, Yikang and Tan, Feiyang and Zhao, Hengshuang and Bai, Xiang},
  year   = {2025},
  note   = {arXiv:2507.02860}
}""",
)
