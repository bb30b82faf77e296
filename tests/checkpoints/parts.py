"""What several kinds share: size, tokenizer, image processor."""

from __future__ import annotations

from clipconformity.encoders.registry import TINY

DIM = 32


def tokenizer(kind: type | None = None):
    """The tokenizer of the tiny CLIP: small, and on disk."""
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast.from_pretrained(TINY, trust_remote_code=False)
    if kind is None:
        return words
    return kind(tokenizer_object=words.backend_tokenizer, **words.special_tokens_map)


def image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
