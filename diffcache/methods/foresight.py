"""Foresight: each layer's output is repeated while it changes less than it did in a warm-up.

Published: thresholds by layer from the last three steps of the warm-up, a full step every 2nd; γ of
0.5 and a warm-up of 8 steps in the released examples (15 % of the steps in the paper). The released
code takes the last step of the warm-up alone, and repeats every block before one that it repeats.
Ours: layers are single attention and MLP modules, in place of whole blocks, and decisions are made
for each sample. The cache holds one output of each module for each guidance branch: tokens × width
× modules.
"""

from diffcache.policies import ModuleThreshold
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import Modules

from .base import Method

METHOD = Method(
    site=Modules(),
    policy=ModuleThreshold(gamma=0.5, warmup=8, every=2),
    predictor=Reuse(),
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="foresight",
    kind="by layer",
    summary="Repeats the outputs of modules that change less than they did in a warm-up.",
    paper="""@inproceedings{adnan2025foresight,
  title     = {Foresight: Adaptive Layer Reuse for Accelerated and High-Quality Text-to-Video
               Generation},
  author    = {Adnan, Muhammad and Kurella, Nithesh and Arunkumar, Akhil and Nair, Prashant J.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  note      = {arXiv:2506.00329}
}""",
)
