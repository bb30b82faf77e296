"""Real classes from small random configurations, so that every example runs offline in seconds with ``--smoke``.

The weights are random: the pictures are noise and the figures say nothing of any model.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
from PIL import Image

from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.encoders.registry import TINY

DIM = 32


def coco(root: Path, images: int = 60) -> Path:
    """Draw scenes in the layout of MS-COCO val2017, five captions each."""
    write_coco_scenes(root, sample_scenes(images, seed=0), seed=0)
    return root


def tokenizer(kind: type | None = None):
    """The tokenizer of the tiny CLIP: small, and on disk."""
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast.from_pretrained(TINY, trust_remote_code=False)
    if kind is None:
        return words
    return kind(tokenizer_object=words.backend_tokenizer, **words.special_tokens_map)


def quiet(pipeline):
    """Switch off the bar that a pipeline draws for every image."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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


def unclip_module():
    """The module of unCLIP's parts, put back to where published checkpoints name it: diffusers 0.36 has moved it."""
    from diffusers import pipelines

    if not hasattr(pipelines, "unclip"):
        pipelines.unclip = import_module("diffusers.pipelines.deprecated.unclip")
    return pipelines.unclip


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
        "text_proj": unclip_module()
        .UnCLIPTextProjModel(clip_embeddings_dim=embedding_dim, time_embed_dim=16 * 4, cross_attention_dim=100)
        .eval(),
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


def random_images(count: int, size: int = 32, seed: int = 0) -> list[Image.Image]:
    """Flat patches of random colour."""
    colours = torch.randint(0, 256, (count, 3), generator=torch.Generator().manual_seed(seed))
    return [Image.new("RGB", (size, size), tuple(colour.tolist())) for colour in colours]


def _image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def blip(seed: int = 0):
    """A ``BlipForConditionalGeneration`` with its processor; the third is None, since the processor decodes."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    torch.manual_seed(seed)
    words = tokenizer(BertTokenizerFast)  # transformers 4 takes no other
    text = {
        "vocab_size": len(words),
        "hidden_size": DIM,
        "encoder_hidden_size": DIM,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "sep_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {
        "hidden_size": DIM,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()
    return model, BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words), None


def git(seed: int = 0):
    """A ``GitForCausalLM`` with its processor."""
    from transformers import GitConfig, GitForCausalLM, GitProcessor

    torch.manual_seed(seed)
    words = tokenizer()
    vision = {
        "hidden_size": DIM,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    config = GitConfig(
        vision_config=vision,
        vocab_size=len(words),
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=64,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return GitForCausalLM(config).eval(), GitProcessor(_image_processor(), words), None


def gpt2_config():
    """A GPT-2 of two layers over the tiny tokenizer."""
    from transformers import GPT2Config

    words = tokenizer()
    return GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=DIM,
        n_layer=2,
        n_head=4,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def vision_encoder_decoder(seed: int = 0):
    """A ``VisionEncoderDecoderModel`` of a ViT and a GPT-2, with its image processor and its tokenizer."""
    from transformers import GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(seed)
    vit = ViTConfig(
        hidden_size=DIM, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    decoder = gpt2_config()
    decoder.tie_word_embeddings = False  # tied random weights repeat the start token for ever
    decoder.is_decoder = decoder.add_cross_attention = True
    model = VisionEncoderDecoderModel(encoder=ViTModel(vit), decoder=GPT2LMHeadModel(decoder)).eval()
    words = tokenizer()
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = words.bos_token_id
        config.eos_token_id, config.pad_token_id = words.eos_token_id, words.pad_token_id
    return model, ViTImageProcessor(size={"height": 32, "width": 32}), words


def llava(seed: int = 0):
    """A ``LlavaForConditionalGeneration`` of a CLIP and a Llama, with its processor and a chat template."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(seed)
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    size = {"hidden_size": DIM, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = LlamaConfig(vocab_size=len(words), num_key_value_heads=4, max_position_embeddings=64, **size, **ids)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    token = words.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=token, image_seq_length=16)
    processor = LlavaProcessor(
        _image_processor(),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}{% for c in m['content'] %}"
            "{{ '<image>' if c['type'] == 'image' else ' ' + c['text'] }}{% endfor %}{% endfor %}"
        ),
    )
    return LlavaForConditionalGeneration(config).eval(), processor, None


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
            feature_extractor=_image_processor(),
            **_unclip_parts(DIM),
        )
    )
