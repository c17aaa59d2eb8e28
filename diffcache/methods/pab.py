"""Pyramid Attention Broadcast: the less an attention changes, the longer its output is repeated.

Published: spatial attention every 2nd step, temporal every 4th, cross-attention every 6th, between
timesteps 100 and 800; MLPs are computed, as in diffusers' port. Ours: each guidance branch has a
cache of its own; in that port, branches in calls of their own get each other's attention. Ours too:
timesteps that are logarithms of σ, as of SVD and Stable Audio, are spread evenly from 1000 to 0.
The cache holds one output of each attention module for each branch: tokens × width × modules.
"""

from diffcache.policies import ByRole, Interval
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import Modules

from .base import Method

WITHIN = (100, 800)

METHOD = Method(
    site=Modules(roles=("self", "cross", "temporal")),
    policy=ByRole(
        {
            "self": Interval(2, within=WITHIN),
            "temporal": Interval(4, within=WITHIN),
            "cross": Interval(6, within=WITHIN),
        }
    ),
    predictor=Reuse(),
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="pab",
    kind="static",
    summary="Repeats attention outputs for 2 (spatial), 4 (temporal) or 6 (cross) steps.",
    paper="""@inproceedings{zhao2025pab,
  title     = {Real-Time Video Generation with Pyramid Attention Broadcast},
  author    = {Zhao, Xuanlei and Jin, Xiaolong and Wang, Kai and You, Yang},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2408.12588}
}""",
)
