"""SmoothCache: attention and MLP outputs repeated as far as their measured change allows.

Published: the scan, all layers of a kind together, lags of up to 3 steps, α of 0.08 or 0.18 for 50
DDIM steps of DiT-XL (0.35 for rectified flow and DPM-Solver); each pipeline is measured first:
`diffcache.calibrate(pipe, prompts, method="smoothcache")`. Ours: the roles by which modules are
grouped, and the mean over the tensors of a module that gives several. The cache holds one output of
each module for each guidance branch: tokens × width × modules.
"""

from diffcache.policies import LagErrors
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import Modules

from .base import Method

METHOD = Method(
    site=Modules(),
    policy=LagErrors(alpha=0.08),
    predictor=Reuse(),
    # As released: the schedule itself computes the last step.
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="smoothcache",
    kind="by layer",
    summary="Repeats attention and MLP outputs as far as their measured change allows.",
    paper="""@misc{liu2024smoothcache,
  title  = {SmoothCache: A Universal Inference Acceleration Technique for Diffusion Transformers},
  author = {Liu, Joseph and Geddes, Joshua and Guo, Ziyu and Jiang, Haomiao and
            Nandwana, Mahesh Kumar},
  year   = {2024},
  note   = {arXiv:2411.10510}
}""",
)
