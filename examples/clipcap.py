"""ClipCap: CLIP's image embedding mapped to a prefix of GPT-2, which goes on with the caption.

Both mappers of the published code, an MLP and a transformer, with the names of its weights, so that its files load.
They are read with ``weights_only=True``, so a file can hold nothing but tensors.

R. Mokady, A. Hertz, A. H. Bermano, *ClipCap: CLIP Prefix for Image Captioning*, 2021.
"""

from __future__ import annotations

from pathlib import Path

import _shared
import _smoke
import torch
from PIL import Image
from torch import Tensor, nn

from clipconformity.evaluation import caption_source, score
from clipconformity.generators import caption_images


class MLP(nn.Module):
    """From an embedding ``(N, D)`` to a prefix ``(N, L * E)``, through one hidden layer."""

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2]))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map a batch."""
        return self.model(embeddings)


class Attention(nn.Module):
    """Self-attention with keys and values in one product."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(dim, dim, bias=False)
        self.to_keys_values = nn.Linear(dim, 2 * dim, bias=False)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch."""
        n, length, dim = x.shape
        queries = self.to_queries(x).view(n, length, self.heads, -1).transpose(1, 2)
        keys, values = self.to_keys_values(x).view(n, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return self.project(mixed.transpose(1, 2).reshape(n, length, dim))


class Feedforward(nn.Module):
    """Two layers with ReLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch."""
        return self.fc2(self.fc1(x).relu())


class Layer(nn.Module):
    """Attention and two layers, each behind a LayerNorm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), Feedforward(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Layers(nn.Module):
    """A stack of layers."""

    def __init__(self, dim: int, heads: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Map a batch."""
        for layer in self.layers:
            x = layer(x)
        return x


class TransformerMapper(nn.Module):
    """From an embedding ``(N, D)`` to a prefix ``(N, L, E)``: learned constants that attend to the embedding."""

    def __init__(self, clip_dim: int, dim: int, prefix_length: int, clip_length: int, layers: int = 8) -> None:
        super().__init__()
        self.clip_length = clip_length
        self.transformer = Layers(dim, 8, layers)
        self.linear = nn.Linear(clip_dim, clip_length * dim)
        self.prefix_const = nn.Parameter(torch.randn(prefix_length, dim))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map a batch."""
        given = self.linear(embeddings).view(len(embeddings), self.clip_length, -1)
        constants = self.prefix_const.expand(len(embeddings), -1, -1)
        return self.transformer(torch.cat([given, constants], dim=1))[:, self.clip_length :]


class ClipCap(nn.Module):
    """Mapper and GPT-2, under the names of the published weights: ``clip_project`` and ``gpt``."""

    def __init__(self, gpt: nn.Module, mapper: str, clip_dim: int, prefix_length: int, layers: int = 8) -> None:
        super().__init__()
        self.gpt, self.prefix_length = gpt, prefix_length
        dim = gpt.config.n_embd
        if mapper == "mlp":
            self.clip_project = MLP((clip_dim, dim * prefix_length // 2, dim * prefix_length))
        else:
            self.clip_project = TransformerMapper(clip_dim, dim, prefix_length, prefix_length, layers)

    def load(self, path: Path) -> None:
        """Load published weights; of GPT-2's causal masks, which newer versions do not store, nothing is missed."""
        found = torch.load(path, map_location="cpu", weights_only=True)
        masks = (".attn.bias", ".attn.masked_bias")
        missing, extra = self.load_state_dict(
            {name: value for name, value in found.items() if not name.endswith(masks)}, strict=False
        )
        missing = [name for name in missing if not name.endswith(masks)]
        if missing or extra:
            raise SystemExit(f"{path}: other weights than expected; missing {missing[:3]}, unknown {extra[:3]}")

    @torch.inference_mode()
    def caption(self, embeddings: Tensor, tokenizer, stop: int, beams: int, max_new_tokens: int) -> list[str]:
        """Greedy with one beam; beam search with more."""
        prefix = self.clip_project(embeddings).view(len(embeddings), self.prefix_length, -1)
        tokens = self.gpt.generate(
            inputs_embeds=prefix,
            attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop,
            pad_token_id=stop,
        )
        # The stop is a full stop, an ordinary token: what pads a short caption behind it is cut off.
        rows = [row[: row.index(stop) + 1] if stop in row else row for row in tokens.tolist()]
        return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def build(options, clip_dim: int):
    """GPT-2, its tokenizer and the token that ends a caption."""
    if options.smoke:
        from transformers import GPT2LMHeadModel

        torch.manual_seed(0)
        config = _smoke.gpt2_config()
        config.tie_word_embeddings = False
        words = _smoke.tokenizer()
        model = ClipCap(GPT2LMHeadModel(config), options.mapper, clip_dim, prefix_length=4, layers=2)
        if options.mapper_weights is None:  # published files are read in the same way
            options.mapper_weights = options.output / "weights.pt"
            torch.save(model.state_dict(), options.mapper_weights)
        model.load(options.mapper_weights)
        return model.eval(), words, words.eos_token_id
    from transformers import AutoTokenizer, GPT2LMHeadModel

    words = AutoTokenizer.from_pretrained(options.gpt2, trust_remote_code=False)
    length = options.prefix_length or (10 if options.mapper == "mlp" else 40)
    model = ClipCap(
        GPT2LMHeadModel.from_pretrained(options.gpt2, trust_remote_code=False), options.mapper, clip_dim, length
    )
    model.load(options.mapper_weights)
    return model.eval().to(options.device), words, words.encode(".")[0]


def main(arguments: list[str] | None = None) -> None:
    made = _shared.parser(__doc__, "clipcap")
    made.add_argument("--mapper", choices=("mlp", "transformer"), default="mlp", help="kind of mapper")
    made.add_argument("--mapper-weights", type=Path, help="published file, such as coco_weights.pt")
    made.add_argument("--clip", default="open_clip:ViT-B-32/openai", help="CLIP of the mapper: RN50x4 for transformer")
    made.add_argument("--gpt2", default="gpt2", help="checkpoint of GPT-2")
    made.add_argument("--prefix-length", type=int, help="by default 10 for the MLP and 40 for the transformer")
    made.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="1 is greedy")
    options = _shared.parse(made, arguments)
    _shared.alone(made, options)
    if min(options.beams) < 1:
        made.error(f"--beams: expected at least 1, got {min(options.beams)}")
    if options.smoke:
        options.clip = "tiny"
    elif options.mapper_weights is None:
        made.error("give --mapper-weights, the published file")
    coco, encoder = _shared.coco_and_encoder(options, per_image=None)
    clip = encoder if options.clip == options.encoder else _shared.load_encoder(options.clip, options.device)
    model, words, stop = build(options, clip.embed_dim)
    reference = _shared.text_reference(coco, encoder)
    scores = {}
    for beams in options.beams:

        def captioner(images: list[Image.Image], beams: int = beams) -> list[str]:
            embeddings = clip.encode_image(images).to(options.device)  # raw, as the MLP was trained
            if options.mapper == "transformer":
                embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
            return model.caption(embeddings, words, stop, beams, 8 if options.smoke else 67)

        name = "greedy" if beams == 1 else f"beam-{beams}"
        result = caption_images(
            captioner,
            coco.image_paths[: options.limit],
            options.output / f"{options.mapper}-{name}.json",
            image_ids=coco.image_ids[: options.limit],
            batch_size=options.batch_size,
            on_empty="skip",
            settings=f"{options.mapper_weights} {options.clip} {options.gpt2} {options.prefix_length}",
        )
        print(f"{name}: {result.generated} captioned, {result.reused} found, {len(result.empty)} without words")
        scores[f"ClipCap {options.mapper}, {name}"] = score(
            caption_source(result.captions, encoder), reference, resamples=options.resamples
        )
    _shared.report(options.output, reference, scores)


if __name__ == "__main__":
    _shared.run(main)
