"""Pipelines of diffusers."""

from __future__ import annotations

import sys

import torch

from checkpoints.parts import DIM, image_processor, tokenizer


def quiet(pipeline):
    """Switch off the bar that a pipeline draws for every image."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion(seed: int = 0):
    """A ``StableDiffusionPipeline`` of 32 x 32 images."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    unet = _unet(cross_attention_dim=DIM)
    return quiet(
        StableDiffusionPipeline(
            vae=_autoencoder(),
            text_encoder=_text_encoder(projection=False),
            tokenizer=tokenizer(),
            unet=unet,
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def stable_diffusion_xl(seed: int = 0):
    """A ``StableDiffusionXLPipeline`` of 32 x 32 images, with both of its text encoders."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(seed)
    unet = _unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + DIM,
        cross_attention_dim=2 * DIM,
    )
    return quiet(
        StableDiffusionXLPipeline(
            vae=_autoencoder(),
            text_encoder=_text_encoder(projection=False),
            text_encoder_2=_text_encoder(projection=True),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet,
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
            add_watermarker=False,
        )
    )


def _unet(**more):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    ).eval()


def _autoencoder():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        sample_size=32,
    ).eval()


def _text_encoder(projection: bool):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=DIM,
        projection_dim=DIM,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def unclip(seed: int = 0):
    """A ``UnCLIPPipeline`` of 32 x 32 images."""
    from diffusers import PriorTransformer, UnCLIPPipeline
    from diffusers.schedulers import UnCLIPScheduler

    torch.manual_seed(seed)
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=12,
        embedding_dim=DIM,
        num_layers=1,
        num_embeddings=tokenizer().model_max_length,
    )
    with torch.no_grad():
        prior.clip_std.fill_(1.0)
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log",
        prediction_type="sample",
        num_train_timesteps=1000,
        clip_sample_range=5.0,
    )
    return quiet(UnCLIPPipeline(prior=prior.eval(), prior_scheduler=scheduler, **_unclip_parts(DIM)))


def unclip_image_variation(seed: int = 0):
    """A ``UnCLIPImageVariationPipeline`` of 32 x 32 images."""
    from diffusers import UnCLIPImageVariationPipeline
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=DIM,
        projection_dim=DIM,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return quiet(
        UnCLIPImageVariationPipeline(
            image_encoder=CLIPVisionModelWithProjection(config).eval(),
            feature_extractor=image_processor(),
            **_unclip_parts(DIM),
        )
    )


def _unclip_parts(embedding_dim: int) -> dict:
    from diffusers import UNet2DConditionModel, UNet2DModel
    from diffusers.schedulers import UnCLIPScheduler

    up_and_down = {
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "in_channels": 6,
        "out_channels": 3,
        "sample_size": 32,
        "norm_num_groups": 8,
    }
    decoder = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=100,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
        norm_num_groups=8,
    )
    return {
        "text_encoder": _text_encoder(projection=True),
        "tokenizer": tokenizer(),
        "text_proj": _text_projection(embedding_dim),
        "decoder": decoder.eval(),
        "super_res_first": UNet2DModel(**up_and_down).eval(),
        "super_res_last": UNet2DModel(**up_and_down).eval(),
        "decoder_scheduler": UnCLIPScheduler(
            variance_type="learned_range", prediction_type="epsilon", num_train_timesteps=1000
        ),
        "super_res_scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="epsilon", num_train_timesteps=1000
        ),
    }


def _text_projection(embedding_dim: int):
    """The part of unCLIP whose place differs between versions of diffusers; its pipeline's module has it in all."""
    from diffusers import UnCLIPPipeline

    kind = sys.modules[UnCLIPPipeline.__module__].UnCLIPTextProjModel
    return kind(clip_embeddings_dim=embedding_dim, time_embed_dim=16 * 4, cross_attention_dim=100).eval()


def ddpm(seed: int = 0):
    """A ``DDPMPipeline`` of 16 x 16 images."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=16, layers_per_block=1, block_out_channels=(16, 16), norm_num_groups=8, **blocks)
    return quiet(DDPMPipeline(unet=unet.eval(), scheduler=DDPMScheduler()))
