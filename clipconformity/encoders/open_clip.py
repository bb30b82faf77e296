"""Models of open_clip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.encoders.base import BaseEncoder


class OpenCLIPEncoder(BaseEncoder):
    """Raw ``encode_image`` and ``encode_text`` of an open_clip model; CoCa, which normalises by default, included."""

    def __init__(
        self, name: str, pretrained: str | None, *, spec: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise ImportError(
                f"{spec}: open_clip is not installed; install it with `pip install 'clipconformity[open_clip]'`."
            ) from error
        if pretrained is not None and pretrained.startswith(("/", ".", "~")):
            pretrained = str(Path(pretrained).expanduser())
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
            self.tokenizer = open_clip.get_tokenizer(name)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{spec}: open_clip could not load it ({' '.join(str(error).split())[:300]}).") from error
        self.preprocess = preprocess
        super().__init__(
            model,
            spec=spec,
            device=device,
            dtype=dtype,
            context_length=int(self.tokenizer.context_length),
            logit_scale=float(model.logit_scale.detach().exp()),
        )

    def preprocess_images(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """Turn RGB images into the image tower's inputs."""
        return {"pixels": torch.stack([self.preprocess(image) for image in images])}

    def _project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.encode_image(inputs["pixels"], normalize=False)  # type: ignore[operator]

    def _project_text(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts).to(self.device)
        self.truncated += sum(self._token_count(text) > self.context_length for text in texts)
        return self.model.encode_text(tokens, normalize=False)  # type: ignore[operator]

    def _token_count(self, text: str) -> int:
        if len(text) + 2 <= self.context_length:  # a token has at least one character
            return 0
        inner: Any = getattr(self.tokenizer, "tokenizer", None)
        return len(inner(text)["input_ids"]) if inner is not None else len(self.tokenizer.encode(text)) + 2

    def _preprocessing(self) -> dict[str, str]:
        steps = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", " ".join(str(self.preprocess).split()))
        return {"preprocessing": steps, "backend": "pil"}
