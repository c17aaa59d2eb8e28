"""FORA: attention and MLP outputs of every block, computed every n-th step and repeated between.

Published: the interval from the first step on, all attention and MLP layers, repeated outputs.
Ours: any denoiser. The cache holds one output of each module for each guidance branch:
tokens × width × modules.
"""

from diffcache.policies import Interval
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import Modules

from .base import Method

METHOD = Method(
    site=Modules(),
    policy=Interval(every=3),
    predictor=Reuse(),
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="fora",
    kind="static",
    summary="Computes attention and MLPs one step in every n and repeats their outputs between.",
    paper="""@misc{selvaraju2024fora,
  title  = {FORA: Fast-Forward Caching in Diffusion Transformer Acceleration},
  author = {Selvaraju, Pratheba and Ding, Tianyu and Chen, Tianyi and Zharkov, Ilya and
            Liang, Luming},
  year   = {2024},
  note   = {arXiv:2407.01425}
}""",
)
