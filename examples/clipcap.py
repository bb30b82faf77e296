"""ClipCap: CLIP's image embedding mapped to a prefix of GPT-2, which goes on with the caption; greedy, and with beams.

    clipconformity reference --coco coco/ --per-image all --encoder open_clip:ViT-B-32/openai \\
        -o coco-reference.safetensors
    python clipcap.py --images coco/val2017 --reference coco-reference-text.safetensors \\
        --mapper-weights coco_weights.pt -o out/

Both mappers of the published code, an MLP and a transformer, under the names of its weights, so that its files load.
They are read with `weights_only=True`, so a file can hold nothing but tensors.

Downloads (estimates): gpt2, 0.6 GB; CLIP ViT-B/32 of OpenAI, 0.6 GB, or RN50x4, 0.7 GB, for the transformer; by hand
the mapper with its GPT-2 from where the authors' repository points to, 0.6 GB.
Time (estimate): 5,000 images in 15 minutes on one A100 GPU; 8 GB of GPU memory.

R. Mokady, A. Hertz, A. H. Bermano, ClipCap: CLIP Prefix for Image Captioning, 2021.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import clipconformity as cc
from clipconformity.data import list_images
from clipconformity.evaluation import caption_source, compare
from clipconformity.generators import caption_images
from clipconformity.provenance import Provenance
from clipconformity.report import Run, write_report


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
        masks = (".attn.bias", ".attn.masked_bias")
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            missing, extra = self.load_state_dict(
                {name: value for name, value in found.items() if not name.endswith(masks)}, strict=False
            )
        except (pickle.UnpicklingError, RuntimeError, AttributeError, EOFError):
            raise ValueError(f"{path}: expected weights of this mapper, prefix length, CLIP and GPT-2.") from None
        missing = [name for name in missing if not name.endswith(masks)]
        if missing or extra:
            raise ValueError(f"{path}: other weights than expected; missing {missing[:3]}, unknown {extra[:3]}.")

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


def load(options: argparse.Namespace, clip_dim: int) -> tuple[ClipCap, Any]:
    """Load GPT-2 with the mapper, and its tokenizer."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    words = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    length = options.prefix_length or (10 if options.mapper == "mlp" else 40)
    gpt = GPT2LMHeadModel.from_pretrained(options.model, trust_remote_code=False)
    made = ClipCap(gpt, options.mapper, clip_dim, length)
    made.load(options.mapper_weights)
    return made.eval().to(options.device), words


def run(options: argparse.Namespace) -> None:
    """Caption with every number of beams, then compare them."""
    widths = sorted(set(options.beams))
    if len(widths) < 2 or widths[0] < 1:
        raise ValueError(f"--beams: expected two different numbers at least, from 1 on, got {widths}.")
    if options.limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {options.limit}.")
    paths = list_images(options.images)[: options.limit]
    reference = cc.ReferenceSet.load(options.reference)
    encoder = cc.load_encoder(options.encoder, options.device)
    reference.provenance.check(Provenance.from_encoder(encoder, "text"))  # now, rather than once all captions are there
    clip = encoder if options.clip == options.encoder else cc.load_encoder(options.clip, options.device)
    model, words = load(options, clip.embed_dim)
    stop = words.encode(".")[0]
    options.output.mkdir(parents=True, exist_ok=True)
    captions = {}
    for beams in widths:

        def captioner(images: list[Image.Image], beams: int = beams) -> list[str]:
            embeddings = clip.encode_image(images).to(options.device)  # raw, as the MLP was trained
            if options.mapper == "transformer":
                embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)
            return model.caption(embeddings, words, stop, beams, options.max_tokens)

        name = "greedy" if beams == 1 else f"beam-{beams}"
        reported = (options.mapper, options.mapper_weights, options.clip, options.model, options.max_tokens)
        found = caption_images(
            captioner,
            paths,
            options.output / f"{name}.json",
            batch_size=options.batch_size,
            on_empty="skip",
            settings=" ".join(map(str, reported)),
        )
        print(f"{name}: {found.generated} captioned, {found.reused} found, {len(found.empty)} without words")
        captions[name] = found.captions
    compared = compare({name: caption_source(one, encoder) for name, one in captions.items()}, reference)
    print(compared.table())
    content = json.dumps(compared.to_dict(), indent=2)
    (options.output / "comparison.json").write_text(content + "\n", encoding="utf-8")
    runs = [Run(name, one, captions=captions[name].texts) for name, one in compared.scores.items()]
    write_report(options.output / "report.html", runs)
    print(f"Written: captions, comparison.json and report.html in {options.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; bad input ends in one line, with exit status 2."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, usage=argparse.SUPPRESS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = "open_clip:ViT-B-32/openai"
    parser.add_argument("--images", type=Path, required=True, help="folder of images to caption")
    parser.add_argument("--reference", type=Path, required=True, help="reference of human captions")
    parser.add_argument("--mapper-weights", type=Path, required=True, help="published file, such as coco_weights.pt")
    parser.add_argument("--mapper", choices=("mlp", "transformer"), default="mlp", help="its kind (default: mlp)")
    parser.add_argument("--clip", default=spec, help="CLIP of the mapper (default: %(default)s)")
    parser.add_argument("--model", default="gpt2", help="checkpoint of GPT-2 (default: %(default)s)")
    parser.add_argument("--prefix-length", type=int, help="by default 10 for the MLP and 40 for the transformer")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="1 is greedy (default: 1 5)")
    parser.add_argument("--max-tokens", type=int, default=67, help="of a caption (default: %(default)s)")
    parser.add_argument("--encoder", default=spec, help="the reference's (default: %(default)s)")
    parser.add_argument("--device", default=device, help="where the models run (default here: %(default)s)")
    parser.add_argument("--limit", type=int, default=5000, help="most images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images captioned at once (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        run(options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
