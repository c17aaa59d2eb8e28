"""DeepCache: keep the outermost layers of a UNet, reuse the feature that comes up from below.

N = 5 and branch 0 are those of the released Stable Diffusion script; `policy=PowerLaw()` is its 1:N
schedule. The cache holds one feature of the outermost level a guidance branch.
"""

from diffcache.policies import Interval
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import UNetBranch

from .base import Method

METHOD = Method(
    site=UNetBranch(depth=0, inner=1),
    policy=Interval(every=5),
    predictor=Reuse(),
    guards=Guards.none(),
    name="deepcache",
    kind="static",
    summary="Recomputes a UNet's outermost layers and reuses the deep feature for n steps.",
    paper="""@inproceedings{ma2024deepcache,
  title     = {DeepCache: Accelerating Diffusion Models for Free},
  author    = {Ma, Xinyin and Fang, Gongfan and Wang, Xinchao},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024},
  note      = {arXiv:2312.00858}
}""",
)
