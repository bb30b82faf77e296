"""CLIP-like models of Hugging Face transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.encoders.base import BaseEncoder

LONGEST = 100_000
"""Tokenizers without a limit of their own report a huge one."""


class TransformersEncoder(BaseEncoder):
    """Raw ``get_image_features`` and ``get_text_features`` of a dual encoder, on transformers 4 and 5.

    ``forward`` of these models gives L2-normalised embeddings and is not used.
    """

    def __init__(self, location: str | Path, *, spec: str, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        try:
            model = transformers.AutoModel.from_pretrained(location).float()
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(location)
            self.processor = transformers.AutoImageProcessor.from_pretrained(location, **_pil_backend(transformers))
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise _explained(spec, error) from error
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ValueError(f"{spec}: {type(model).__name__} has no image and text tower; expected a CLIP-like model.")
        super().__init__(
            model,
            spec=spec,
            device=device,
            dtype=dtype,
            context_length=_context_length(model.config, self.tokenizer),
            logit_scale=_logit_scale(model),
        )
        # SigLIP was trained on texts padded to their full length, without a mask.
        self._padding: bool | str = "max_length" if "siglip" in model.config.model_type else True

    def preprocess_images(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """Turn RGB images into the image tower's inputs."""
        return dict(self.processor(images=images, return_tensors="pt"))

    def _project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        return _projection(self.model.get_image_features(**inputs))  # type: ignore[operator]

    def _project_text(self, texts: list[str]) -> Tensor:
        inputs = self.tokenizer(
            texts, padding=self._padding, truncation=True, max_length=self.context_length, return_tensors="pt"
        ).to(self.device)
        long = [text for text in texts if len(text) + 2 > self.context_length]  # a token has at least one character
        if long:
            lengths = self.tokenizer(long, truncation=False, verbose=False)["input_ids"]
            self.truncated += sum(len(ids) > self.context_length for ids in lengths)
        return _projection(self.model.get_text_features(**inputs))  # type: ignore[operator]

    def _preprocessing(self) -> dict[str, str]:
        settings = self.processor.to_dict()
        kept = {k: v for k, v in settings.items() if k.startswith(("do_", "image_", "size", "crop", "res", "rescale"))}
        kept.pop("image_processor_type", None)
        return {"preprocessing": json.dumps(kept, sort_keys=True, default=str), "backend": "pil"}


def _projection(output: Any) -> Tensor:
    """Transformers 4 gives the projection itself, transformers 5 an object that holds it."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _pil_backend(transformers: Any) -> dict[str, Any]:
    """Ask for CLIP's own preprocessing, with PIL: with and without torchvision the same pixels come out."""
    return {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}


def _context_length(config: Any, tokenizer: Any) -> int:
    limits = [getattr(config.text_config, "max_position_embeddings", None), tokenizer.model_max_length]
    known = [int(limit) for limit in limits if limit is not None and limit < LONGEST]
    if not known:
        raise ValueError("the model's context length is not told by its config nor its tokenizer.")
    return min(known)


def _logit_scale(model: Any) -> float:
    if hasattr(model, "logit_scale"):
        return float(model.logit_scale.detach().exp())
    return 1 / float(model.temperature.detach())


def _explained(spec: str, error: Exception) -> Exception:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, OSError):
        return FileNotFoundError(
            f"{spec}: could not be loaded ({first}). Check the name and the connection, or download the model "
            "elsewhere and give its directory; HF_HUB_OFFLINE=1 uses local files only."
        )
    return ValueError(f"{spec}: could not be loaded ({first}).")
