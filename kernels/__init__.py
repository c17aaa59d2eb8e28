"""GPU kernels for the arithmetic a cache does on every step, each with a plain torch twin.

`latent_difference` measures in one pass how far the latest latents are apart (the statistics of
AdaptiveDiffusion, NeurIPS 2024, arXiv 2410.09873, among others); `forecast_error` is the short
form of it that a step's forecast is measured by. `combine` forms per-sample
weighted sums of cached tensors. CUDA tensors go to Triton kernels where `has_triton()`; all others
go to the twins. Importing this package does not import triton.
"""

if __name__ == "kernels":
    # Python run in a checkout finds this folder under the name of Hugging Face's package, which
    # diffusers and transformers import.
    from .handover import stand_aside

    stand_aside()
else:
    from .backend import has_triton
    from .combination import combine
    from .difference import LatentDifference, forecast_error, latent_difference

__all__ = ["LatentDifference", "combine", "forecast_error", "has_triton", "latent_difference"]
