"""Two small trained diffusers pipelines, stored in the package, to try and test caching on.

Both draw 64 by 64 scenes such as "two red circles and one striped blue square".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, SchedulerMixin

__all__ = ["pipeline", "prompts"]

prompts = (
    "two red circles and one blue square",
    "one striped green triangle",
    "three yellow crosses",
    "one dotted purple circle and two cyan triangles",
    "one blue letter T and one red letter H",
    "four green squares",
)


def pipeline(
    kind: str,
    *,
    dtype: torch.dtype | None = None,
    scheduler: SchedulerMixin | None = None,
) -> DiffusionPipeline:
    """A trained tiny pipeline, on the CPU.

    ``kind`` is ``"unet"`` for a ``StableDiffusionPipeline`` with a DDIM scheduler, or ``"dit"``
    for a ``FluxPipeline``, whose guidance is ``true_cfg_scale`` and needs ``negative_prompt=""``.
    Guidance of about 2.5 suits both. ``dtype`` is that of the models, ``torch.float32`` if
    ``None``; ``scheduler`` replaces the pipeline's own. Pictures are 64 by 64 pixels, prompts at
    most 24 tokens.

    Raises ``ValueError`` for another ``kind``.
    """
    if kind not in ("unet", "dit"):
        raise ValueError(f'kind must be "unet" or "dit", got {kind!r}')
    from . import _pipelines

    return _pipelines.build(kind, dtype, scheduler)
