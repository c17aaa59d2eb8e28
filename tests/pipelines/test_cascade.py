"""Stable Cascade: pipelines in a combined one count a step less than their scheduler has."""

import pytest
import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    StableCascadeCombinedPipeline,
    StableCascadeUNet,
)
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import diffcache
from diffcache.tiny._models import clip_tokenizer

PRIOR, DECODER = 14, 12
WIDTH = 8


def unet(**options: object) -> StableCascadeUNet:
    return StableCascadeUNet(
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
        switch_level=(False,),
        **options,
    ).eval()


@pytest.fixture
def cascade() -> StableCascadeCombinedPipeline:
    tokenizer = clip_tokenizer()
    texts = CLIPTextConfig(
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
    )
    # As from the hub, one scheduler serves both.
    scheduler = DDPMWuerstchenScheduler()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPTextModelWithProjection(texts).eval()
        pipe = StableCascadeCombinedPipeline(
            tokenizer=tokenizer,
            text_encoder=encoder,
            decoder=unet(in_channels=4, out_channels=4),
            scheduler=scheduler,
            vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2),
            prior_prior=unet(clip_image_in_channels=WIDTH),
            prior_text_encoder=encoder,
            prior_tokenizer=tokenizer,
            prior_scheduler=scheduler,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: StableCascadeCombinedPipeline) -> torch.Tensor:
    return pipe(
        "two red circles",
        height=128,
        width=128,
        prior_num_inference_steps=PRIOR,
        num_inference_steps=DECODER,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


def test_both_pipelines_count_their_steps(cascade):
    plain = generate(cascade)
    counts = cascade.prior_pipe.num_timesteps, cascade.decoder_pipe.num_timesteps
    assert counts == (PRIOR, DECODER)
    diffcache.wrap(cascade, compute=0.5, force=True, protect=(1, 1))
    assert generate(cascade).isfinite().all()
    report = diffcache.report(cascade)
    assert not any("taken to be" in note for note in report.notes)
    assert report.mask.sum(0).tolist() == [(PRIOR + DECODER) / 2]
    assert report.mask[PRIOR - 1].all() and report.mask[-1].all()
    diffcache.wrap(cascade)
    assert torch.equal(generate(cascade), plain)
    assert (cascade.prior_pipe.num_timesteps, cascade.decoder_pipe.num_timesteps) == counts
