"""AdaptiveDiffusion as released: batch-wide, reuse only, without guards of ours.

Latents in half precision differ by their rounding, so that less is skipped. The cache holds one
output a guidance branch, and four latents in fp32.
"""

from diffcache.policies import ReleasedThirdOrder
from diffcache.predictors import Reuse
from diffcache.runtime.guards import Guards
from diffcache.sites import Output

from .base import Method

PAPER = """@inproceedings{ye2024adaptivediffusion,
  title     = {Training-Free Adaptive Diffusion with Bounded Difference Approximation Strategy},
  author    = {Ye, Hancheng and Yuan, Jiakang and Xia, Renqiu and Yan, Xiangchao and Chen, Tao
               and Yan, Junchi and Shi, Botian and Zhang, Bo},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2410.09873}
}"""

METHOD = Method(
    site=Output(),
    policy=ReleasedThirdOrder(threshold=0.01, max_skips=4),
    predictor=Reuse(),
    guards=Guards.none(),
    name="adaptivediffusion",
    kind="by timestep",
    summary="The released code's rule on norms of latents, one decision for the whole batch.",
    paper=PAPER,
)
