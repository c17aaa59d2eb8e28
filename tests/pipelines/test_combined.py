"""Kandinsky 2.2: one call that runs a prior, and then a decoder, each with its scheduler."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    KandinskyV22CombinedPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

import diffcache
from diffcache.tiny._models import clip_tokenizer

PRIOR, DECODER = 8, 6
STEPS = PRIOR + DECODER
WIDTH = 8

# The combined pipeline hands its decoder an argument that diffusers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`callback_steps` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def kandinsky() -> KandinskyV22CombinedPipeline:
    tokenizer = clip_tokenizer()
    towers = {"hidden_size": WIDTH, "projection_dim": WIDTH, "intermediate_size": 16}
    towers |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    texts = CLIPTextConfig(**towers, **ends, vocab_size=len(tokenizer))
    pictures = CLIPVisionConfig(**towers, image_size=32, patch_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = KandinskyV22CombinedPipeline(
            unet=UNet2DConditionModel(
                in_channels=4,
                out_channels=8,
                addition_embed_type="image",
                down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                mid_block_type="UNetMidBlock2DSimpleCrossAttn",
                block_out_channels=(8, 16),
                layers_per_block=1,
                encoder_hid_dim=WIDTH,
                encoder_hid_dim_type="image_proj",
                cross_attention_dim=8,
                attention_head_dim=4,
                resnet_time_scale_shift="scale_shift",
                norm_num_groups=4,
            ),
            scheduler=DDIMScheduler(clip_sample=False),
            movq=VQModel(latent_channels=4, norm_num_groups=8, norm_type="spatial"),
            prior_prior=PriorTransformer(
                num_attention_heads=2,
                attention_head_dim=4,
                num_layers=1,
                embedding_dim=WIDTH,
                num_embeddings=tokenizer.model_max_length,
            ),
            prior_image_encoder=CLIPVisionModelWithProjection(pictures),
            prior_text_encoder=CLIPTextModelWithProjection(texts),
            prior_tokenizer=tokenizer,
            prior_scheduler=UnCLIPScheduler(
                variance_type="fixed_small_log", prediction_type="sample"
            ),
            prior_image_processor=None,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def call(kandinsky: KandinskyV22CombinedPipeline) -> Iterator[Callable[..., torch.Tensor]]:
    """Latents of two samples."""

    def run(**options: Any) -> torch.Tensor:
        return kandinsky(
            ["two red circles", "a blue square"],
            height=16,
            width=16,
            prior_num_inference_steps=PRIOR,
            num_inference_steps=DECODER,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **options,
        ).images

    yield run
    diffcache.unwrap(kandinsky)


def test_a_callback_of_the_prior_may_ask_it(kandinsky, call):
    ask = {
        "hidden_states": torch.ones(4, WIDTH),
        "timestep": 500,
        "proj_embedding": torch.ones(4, WIDTH),
        "encoder_hidden_states": torch.ones(4, 24, WIDTH),
    }
    answers: list[torch.Tensor] = []

    def asking(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        answers.append(kandinsky.prior_prior(**ask, return_dict=False)[0].clone())
        return {}

    diffcache.wrap(kandinsky, mask=[step % 2 == 0 for step in range(STEPS)])
    wanted = call()
    before = diffcache.report(kandinsky)
    assert torch.equal(call(prior_callback_on_step_end=asking), wanted)
    report = diffcache.report(kandinsky)
    assert (report.computed, report.total) == (before.computed, before.total)
    assert len(answers) == PRIOR and all(torch.equal(answers[0], each) for each in answers)


@pytest.mark.parametrize("changed", ["latents", "weights"])
def test_a_callback_of_the_prior_may_change_it(kandinsky, call, changed):
    def change(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        if step == 4 and changed == "latents":
            return {"latents": -tensors["latents"]}
        if step == 4:
            with torch.no_grad():
                kandinsky.prior_prior.proj_to_clip_embeddings.weight.mul_(1)
        return tensors

    diffcache.wrap(kandinsky, "interval", every=8, force=True)
    call()
    assert not diffcache.report(kandinsky).mask[5].any()
    call(prior_callback_on_step_end=change)
    report = diffcache.report(kandinsky)
    assert report.mask[5].all()
    assert any(changed in note and "before step 5" in note for note in report.notes)


def test_batches_of_several_sizes_have_no_mask(kandinsky, call):
    """With a negative prompt the prior denoises it as samples of its own."""
    diffcache.wrap(kandinsky)
    call(negative_prompt=["noise", "a cat"])
    report = diffcache.report(kandinsky)
    assert not report.mask.numel() and len(report.trace) == STEPS
    assert any("denoised batches of 4 and of 2; a list of steps" in n for n in report.notes)
    with pytest.raises(ValueError, match=r"list of steps.*several sizes.*its notes"):
        diffcache.wrap(kandinsky, mask=report.mask)
    steps = [step % 2 == 0 for step in range(STEPS)]
    diffcache.wrap(kandinsky, mask=steps)
    call(negative_prompt=["noise", "a cat"])
    assert [event.rules[0] == "skip" for event in diffcache.report(kandinsky).trace] == [
        not computed for computed in steps
    ]
