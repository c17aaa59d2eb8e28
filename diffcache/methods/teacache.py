"""TeaCache: repeats the blocks' residual while their modulated input has changed little.

Probe, rule and FLUX.1-dev's polynomial are published (threshold 0.25, 0.4, 0.6 and 0.8 for 1.5,
1.8, 2.0 and 2.25 times). Finding the probe as what the first block hands its attention is ours, as
is adding up the change as it is on other denoisers until a polynomial is measured by
`diffcache.calibrate(pipe, prompts, method="teacache")`. The cache holds one residual a list of
blocks and guidance branch, and the probe.
"""

from diffcache.policies import AccumulatedProbe
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import BlockStack

from .base import Method, Published

METHOD = Method(
    site=BlockStack(head=0, probe="modulated"),
    policy=AccumulatedProbe(threshold=0.25),
    predictor=Reuse(),
    guards=Guards(protect=(1, 1), max_consecutive_skips=None),
    name="teacache",
    kind="by timestep",
    summary="Repeats the blocks' residual while their modulated input has changed little.",
    published=(
        Published(
            denoiser="FluxTransformer2DModel",
            config={"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
            scheduler="FlowMatchEulerDiscreteScheduler",
            timetable={"use_dynamic_shifting": True},
            options={"polynomial": (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)},
        ),
    ),
    paper="""@inproceedings{liu2025teacache,
  title     = {Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model},
  author    = {Liu, Feng and Zhang, Shiwei and Wang, Xiaofeng and Wei, Yujie and Qiu, Haonan and
               Zhao, Yuzhong and Zhang, Yingya and Ye, Qixiang and Wan, Fang},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2025},
  note      = {arXiv:2411.19108}
}""",
)
