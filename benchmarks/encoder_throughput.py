"""Images per second from files to a computed metric, against the bare model and against torchmetrics' CLIPScore.

Three loops over the same JPEG files and the same random weights of a transformers CLIP, timed in turn, so that a busy
machine slows all of them alike:

- clipconformity: `image_source`, `ConformityMetrics.update` for each batch, one `compute` at the end.
- bare loop: open, the model's own preprocessing, `get_image_features`, and the embeddings thrown away.
- CLIPScore: the same files against one short caption each, which it encodes too.

The metric's own share is the time inside `update` and `compute`. Target: at least 0.95 of the bare loop.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.multimodal import CLIPScore

import clipconformity as cc
from clipconformity.encoders.base import BaseEncoder
from clipconformity.encoders.registry import TINY
from clipconformity.encoders.transformers import _get_projection
from clipconformity.evaluation import image_source

SIZES = {  # width, layers, heads, patch, resolution, dimension
    "small": (192, 4, 3, 16, 128, 128),
    "b32": (768, 12, 12, 32, 224, 512),
    "l14": (1024, 24, 16, 14, 224, 768),
}


def save_model(size: str, folder: Path) -> None:
    """Save a CLIP of random weights with the embedded default's tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    width, layers, heads, patch, resolution, dim = SIZES[size]
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    text = {"vocab_size": 49, "max_position_embeddings": 16, "bos_token_id": 47, "eos_token_id": 48, "pad_token_id": 0}
    vision = tower | {"image_size": resolution, "patch_size": patch}
    CLIPModel(CLIPConfig(text_config=tower | text, vision_config=vision, projection_dim=dim)).save_pretrained(folder)
    crop = {"height": resolution, "width": resolution}
    CLIPImageProcessor(size={"shortest_edge": resolution}, crop_size=crop).save_pretrained(folder)
    for path in TINY.glob("*token*.json"):
        shutil.copy(path, folder)


def write_photographs(count: int, pixels: int, folder: Path) -> list[Path]:
    """Write crops of two photographs, each shifted, scaled to ``pixels`` on the longer side."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    photographs = [Image.fromarray(values) for values in load_sample_images().images]
    paths = []
    for number in range(count):
        left, top = (int(value) for value in generator.integers(0, (240, 120)))
        crop = photographs[number % 2].crop((left, top, left + 400, top + 300))
        paths.append(folder / f"{number:05}.jpg")
        crop.resize((pixels, pixels * 3 // 4)).save(paths[-1], quality=90)
    return paths


def batches(paths: list[Path], load: Callable[[list[Path]], Any], size: int, workers: int) -> Iterator[Any]:
    """Load batches of files, in worker processes where there are some."""
    numbers = [list(range(start, min(start + size, len(paths)))) for start in range(0, len(paths), size)]
    return iter(DataLoader(paths, batch_sampler=numbers, collate_fn=load, num_workers=workers))  # type: ignore[arg-type]


class Bare:
    """The loop that anyone would write."""

    def __init__(self, encoder: BaseEncoder) -> None:
        self.model, self.device = encoder.model, encoder.device
        self.processor = encoder.processor  # type: ignore[attr-defined]

    def load(self, paths: list[Path]) -> Tensor:
        """Open and preprocess."""
        images = [Image.open(path).convert("RGB") for path in paths]
        return self.processor(images=images, return_tensors="pt")["pixel_values"]

    def run(self, paths: list[Path], size: int, workers: int) -> None:
        """Encode all files."""
        for pixels in batches(paths, self.load, size, workers):
            with torch.inference_mode():
                _get_projection(self.model.get_image_features(pixel_values=pixels.to(self.device)))  # type: ignore[operator]
        wait(self.device)


class ForCLIPScore(torch.nn.Module):
    """The model as torchmetrics takes it: plain tensors, which transformers 5 no longer returns."""

    def __init__(self, encoder: BaseEncoder) -> None:
        super().__init__()
        self.model, self.config, self.encoder = encoder.model, encoder.model.config, encoder

    def get_image_features(self, pixels: Tensor) -> Tensor:
        """Give the image projection."""
        with torch.inference_mode():
            return _get_projection(self.model.get_image_features(pixel_values=pixels))  # type: ignore[operator]

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Give the text projection."""
        with torch.inference_mode():
            return _get_projection(self.model.get_text_features(input_ids=ids, attention_mask=mask))  # type: ignore[operator]

    def process(self, text: Any = None, images: Any = None, **options: Any) -> Any:
        """Tokenise, or preprocess."""
        if text is not None:
            return self.encoder.tokenizer(text, **options)  # type: ignore[attr-defined]
        return self.encoder.processor(images=images, return_tensors="pt")  # type: ignore[attr-defined]


def as_tensors(paths: list[Path]) -> list[Tensor]:
    return [torch.tensor(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in paths]


def clip_score(model: ForCLIPScore, paths: list[Path], size: int, workers: int) -> None:
    metric = CLIPScore(lambda: (model, model.process)).to(model.encoder.device)
    for images in batches(paths, as_tensors, size, workers):
        metric.update([image.to(model.encoder.device) for image in images], ["a red circle"] * len(images))
    float(metric.compute())


def ours(encoder: BaseEncoder, reference: cc.ReferenceSet, paths: list[Path], size: int, workers: int) -> float:
    """Run files to a computed collection; returns the seconds inside the metrics."""
    metrics = cc.ConformityMetrics(reference).to(encoder.device)
    inside = 0.0
    for batch in image_source(paths, encoder, batch_size=size, workers=workers).batches:
        wait(encoder.device)
        start = time.perf_counter()
        metrics.update(batch.embeddings)
        wait(encoder.device)
        inside += time.perf_counter() - start
    start = time.perf_counter()
    metrics.compute()
    return inside + time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="model (default: %(default)s)")
    parser.add_argument("--count", type=int, default=512, help="image files (default: %(default)s)")
    parser.add_argument("--pixels", type=int, default=320, help="longer side of the files (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load ahead (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU (default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*lower bound.*")  # random weights tell no distributions apart
    times: dict[str, list[float]] = {"clipconformity": [], "bare loop": [], "CLIPScore": []}
    shares, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        model, images = Path(folder) / "model", Path(folder) / "images"
        images.mkdir()
        save_model(options.size, model)
        paths = write_photographs(options.count, options.pixels, images)
        encoder = cc.load_encoder(model, options.device)
        loop = (options.batch_size, options.workers)
        reference = cc.ReferenceSet.fit(torch.cat([encoder(paths[i : i + 64]) for i in range(0, len(paths), 64)]))
        encoder.id  # noqa: B018  (the hash is kept)
        bare, scored = Bare(encoder), ForCLIPScore(encoder)
        bare.run(paths[: options.batch_size], *loop)  # warm
        loops: list[tuple[str, Callable[[], Any]]] = [
            ("clipconformity", lambda: ours(encoder, reference, paths, *loop)),
            ("bare loop", lambda: bare.run(paths, *loop)),
            ("CLIPScore", lambda: clip_score(scored, paths, *loop)),
        ]
        for number in range(options.repeats):
            for name, function in loops[number % 3 :] + loops[: number % 3]:  # none always runs first
                took, inside = seconds(function)
                times[name].append(took)
                if name == "clipconformity":
                    shares.append(inside / took)
            ratios.append(times["bare loop"][-1] / times["clipconformity"][-1])

    print(
        f"CLIP {options.size}, {options.count} JPEG files of {options.pixels} pixels, batches of {options.batch_size}, "
        f"{options.workers} workers, {options.device}, {options.threads} thread(s), median of {options.repeats}.\n"
    )
    print("| | images/s | of the bare loop |")
    print("|---|---|---|")
    for name, values in times.items():
        speed = options.count / statistics.median(values)
        print(f"| {name} | {speed:.1f} | {statistics.median(times['bare loop']) / statistics.median(values):.3f} |")
    ratio = statistics.median(ratios)
    print(f"\nthe metrics' own share of the time: {statistics.median(shares):.2%}")
    print(f"images/s over the bare loop's, median of ratios: {ratio:.3f} (target: at least 0.95)")
    return 0 if ratio >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
