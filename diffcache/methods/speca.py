"""SpeCa: Taylor drafts of the blocks, each verified by really computing the last block on it.

Draft, measure (the mean relative error of what the last block adds), threshold and the cap of eight
drafts in a row are published, with these numbers for FLUX.1; for DiT-XL they are 0.1, 0.01, 0.01,
order 4 and five drafts, and the error is that of the last block's whole output. The published code
lets the error decide about the step after; here a rejected draft is computed inside the same call,
for the samples that were rejected. Its least count of drafts between computed steps is left out,
since none goes unverified. The published drafts are of every attention and MLP; here of each list
of blocks. The cache holds three residuals a list and three of the last block, a guidance branch.
"""

from diffcache.policies import Drafted
from diffcache.predictors import Taylor
from diffcache.runtime.guards import Guards
from diffcache.sites import BlockStack

from .base import Method

METHOD = Method(
    site=BlockStack(head=0, tail=1),
    policy=Drafted(base=7.0, decay=0.3, floor=0.1),
    predictor=Taylor(order=2),
    guards=Guards(protect=(3, 0), max_consecutive_skips=8),
    name="speca",
    kind="hybrid",
    summary="Forecasts the blocks, verifies by the last one, and computes what is rejected.",
    paper="""@inproceedings{liu2025speca,
  title     = {SpeCa: Accelerating Diffusion Transformers with Speculative Feature Caching},
  author    = {Liu, Jiacheng and Zou, Chang and Lyu, Yuanhuiyi and Ren, Fei and Wang, Shaobo and
               Li, Kaixin and Zhang, Linfeng},
  booktitle = {Proceedings of the 33rd ACM International Conference on Multimedia},
  year      = {2025},
  note      = {arXiv:2509.11628}
}""",
)
