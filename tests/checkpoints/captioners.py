"""Captioners of transformers: each gives its model, its processor, and its tokenizer or None where that decodes."""

from __future__ import annotations

import torch

from checkpoints.parts import DIM, image_processor, tokenizer


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
    return GitForCausalLM(config).eval(), GitProcessor(image_processor(), words), None


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
        image_processor(),
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


def gpt2(seed: int = 3):
    """GPT-2 with its own kind of tokenizer, of single bytes: each is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    signs = [chr(code) for code in range(256) if chr(code).isprintable() and code not in (32, 160, 173)]
    signs += [chr(256 + number) for number in range(256 - len(signs))]  # as GPT-2 writes the other bytes
    words = {sign: number for number, sign in enumerate([*signs, "<|endoftext|>"])}
    torch.manual_seed(seed)
    ends = {"bos_token_id": 256, "eos_token_id": 256, "tie_word_embeddings": False}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=96, n_embd=DIM, n_layer=2, n_head=4, **ends))
    bytewise = Tokenizer(models.BPE(words, []))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return model.eval(), GPT2TokenizerFast(tokenizer_object=bytewise)


def clipcap_weights(mapper: str, gpt: torch.nn.Module, clip_dim: int, length: int) -> dict[str, torch.Tensor]:
    """Weights under the names and in the shapes of ClipCap's published files, GPT-2's included.

    Those of the mapper are large, so that embeddings make a difference.
    """
    dim, layers = gpt.config.n_embd, gpt.config.n_layer
    shapes: dict[str, tuple[int, ...]]
    if mapper == "mlp":
        hidden = dim * length // 2
        shapes = {"model.0.weight": (hidden, clip_dim), "model.0.bias": (hidden,)}
        shapes |= {"model.2.weight": (dim * length, hidden), "model.2.bias": (dim * length,)}
    else:
        shapes = {"linear.weight": (length * dim, clip_dim), "linear.bias": (length * dim,)}
        shapes["prefix_const"] = (length, dim)
        of_layer = {"attn.to_queries.weight": (dim, dim), "attn.to_keys_values.weight": (2 * dim, dim)}
        of_layer |= {"attn.project.weight": (dim, dim), "mlp.fc1.weight": (2 * dim, dim), "mlp.fc1.bias": (2 * dim,)}
        of_layer |= {"mlp.fc2.weight": (dim, 2 * dim)}
        of_layer |= {f"{name}.{part}": (dim,) for name in ("norm1", "norm2") for part in ("weight", "bias")}
        of_layer |= {"attn.project.bias": (dim,), "mlp.fc2.bias": (dim,)}
        shapes |= {f"transformer.layers.{n}.{name}": shape for n in range(8) for name, shape in of_layer.items()}
    drawn = torch.Generator().manual_seed(4)
    found = {f"clip_project.{name}": torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    found |= {f"gpt.{name}": value for name, value in gpt.state_dict().items()}
    for number in range(layers):  # the masks of an older GPT-2
        found[f"gpt.transformer.h.{number}.attn.bias"] = torch.ones(1, 1, 96, 96, dtype=torch.uint8)
        found[f"gpt.transformer.h.{number}.attn.masked_bias"] = torch.tensor(-1e4)
    return found
