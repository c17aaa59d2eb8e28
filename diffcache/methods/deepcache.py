"""DeepCache: keep the outermost layers of a UNet, reuse the feature that comes up from below."""

from diffcache.policies import Interval
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import UNetBranch

from .base import Method

# Published: N=5 and branch 0 as the released Stable Diffusion script has them; `policy=PowerLaw()`
# is its 1:N schedule. Cache memory: one feature of the outermost level for each guidance branch.
METHOD = Method(
    site=UNetBranch(depth=0, inner=1),
    policy=Interval(every=5),
    predictor=Reuse(),
    guards=Guards.none(),
    name="deepcache",
    summary="Recomputes a UNet's outermost layers and reuses the deep feature for n steps.",
    paper="""@inproceedings{ma2024deepcache,
  title     = {DeepCache: Accelerating Diffusion Models for Free},
  author    = {Ma, Xinyin and Fang, Gongfan and Wang, Xinchao},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024},
  note      = {arXiv:2312.00858}
}""",
)
