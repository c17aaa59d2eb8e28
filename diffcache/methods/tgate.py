"""T-GATE: cross-attention is frozen once the image's layout stands.

Published: cross-attention outputs are frozen from step 10 on; until then self-attention is computed
every 5th step after 2 steps of warm-up, and at every step afterwards. Ours: the phase of that
interval, which is counted from the end of the warm-up, and that each guidance branch freezes its
own output. Published but not done here: from the gate on the unconditional branch is dropped and
the two branches' outputs are averaged, which changes the guidance itself. The cache holds one
output of each attention module for each branch: tokens × width × modules.
"""

from diffcache.policies import ByRole, Gated, Interval
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import Modules

from .base import Method

GATE = 10

METHOD = Method(
    site=Modules(roles=("self", "cross")),
    policy=ByRole(
        {
            "cross": Interval(None, start=GATE),
            "self": Gated(GATE, before=Interval(5, start=2), after=Interval(1)),
        }
    ),
    predictor=Reuse(),
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="tgate",
    kind="static",
    summary="Freezes cross-attention after ten steps and thins self-attention before.",
    paper="""@article{liu2024tgate,
  title   = {Faster Diffusion via Temporal Attention Decomposition},
  author  = {Liu, Haozhe and Zhang, Wentian and Xie, Jinheng and Faccio, Francesco and Xu, Mengmeng
             and Xiang, Tao and Shou, Mike Zheng and Perez-Rua, Juan-Manuel and
             Schmidhuber, Juergen},
  journal = {arXiv preprint arXiv:2404.02747},
  year    = {2024}
}""",
)
