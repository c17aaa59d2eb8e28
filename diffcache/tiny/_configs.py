"""Configurations of the tiny models: their classes are diffusers' and transformers' own."""

LATENT_CHANNELS = 8
TOKENS = 24
CLIP_HIDDEN = 96
T5_HIDDEN = 96

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": LATENT_CHANNELS,
    "sample_size": 64,
    "mid_block_add_attention": False,
    # Training folds the measured mean and deviation of the latents into the quant convolutions.
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}

UNET = {
    "sample_size": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [64, 80, 80],
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": CLIP_HIDDEN,
    "attention_head_dim": 2,
}

DIT = {
    "patch_size": 1,
    "in_channels": 4 * LATENT_CHANNELS,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 5,
    "joint_attention_dim": T5_HIDDEN,
    "pooled_projection_dim": CLIP_HIDDEN,
    "guidance_embeds": False,
    "axes_dims_rope": [8, 12, 12],
}

CLIP = {
    "hidden_size": CLIP_HIDDEN,
    "intermediate_size": 4 * CLIP_HIDDEN,
    "projection_dim": CLIP_HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
}

T5 = {
    "d_model": T5_HIDDEN,
    "d_kv": 24,
    "d_ff": 2 * T5_HIDDEN,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 24,
}

DDIM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}

FLOW = {"num_train_timesteps": 1000, "shift": 1.0}
