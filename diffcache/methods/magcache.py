"""MagCache: residuals repeated as long as calibrated magnitudes say they may be.

Rule, threshold, cap, retention and the ratios for FLUX.1-dev are published (diffusers' defaults;
the released code has 0.24, 5, 0.1 at 28 steps). Other denoisers are calibrated first:
`diffcache.calibrate(pipe, prompts, method="magcache")`. Averaging the ratios of several lists of
blocks is ours. The cache holds one residual a list of blocks and guidance branch.
"""

from diffcache.policies import MagnitudeRatios
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import BlockStack

from .base import Method, Published

# fmt: off
_FLUX = (
    1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344,
    0.98047, 1.01562, 1.00781, 1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047,
    0.98828, 0.96484, 0.95703, 0.93359, 0.89062,
)
# fmt: on

METHOD = Method(
    site=BlockStack(head=0, tail=0),
    policy=MagnitudeRatios(threshold=0.06, max_skips=3, retention=0.2),
    predictor=Reuse(),
    # As released: retention and the cap belong to the rule.
    guards=Guards(protect=(1, 0), max_consecutive_skips=None),
    name="magcache",
    kind="by timestep",
    summary="Repeats the blocks' residual while its calibrated magnitude stays near one.",
    published=(
        Published(
            denoiser="FluxTransformer2DModel",
            config={"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
            scheduler="FlowMatchEulerDiscreteScheduler",
            timetable={"use_dynamic_shifting": True},
            options={"ratios": _FLUX},
        ),
    ),
    paper="""@inproceedings{ma2025magcache,
  title     = {MagCache: Fast Video Generation with Magnitude-Aware Cache},
  author    = {Ma, Zehong and Wei, Longhui and Wang, Feng and Zhang, Shiliang and Tian, Qi},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  note      = {arXiv:2506.09045}
}""",
)
