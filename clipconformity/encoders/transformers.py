"""CLIP-like models of Hugging Face transformers."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.data.hub import NOT_REACHED, is_hub_reachable
from clipconformity.encoders.base import BaseEncoder, Preprocess, explain_error, is_failure, make_unreachable_error
from clipconformity.encoders.checkpoints import check_checkpoint, check_size

MAX_CONTEXT_LENGTH = 100_000
"""Largest credible context length: tokenizers without a limit report a huge one."""
STEPS = ("do_", "image_mean", "image_std", "size", "crop", "res", "include_top", "patch_size", "max_num_patches")
"""Prefixes of the image processor's settings that affect pixels."""


class TransformersEncoder(BaseEncoder):
    """Raw ``get_image_features`` and ``get_text_features`` of a dual encoder, on transformers 4 and 5.

    ``forward`` of these models returns L2-normalised embeddings and is not used.
    """

    def __init__(self, location: str | Path, *, spec: str, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        here = Path(location).is_dir()
        if here:
            check_checkpoint(Path(location))
        # A model named by a checkpoint is not downloaded, and a hub that does not respond is not retried for a minute.
        silent = here or not is_hub_reachable()
        try:
            model = _load_towers(transformers, location, silent, here)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                location, trust_remote_code=False, local_files_only=silent
            )
            backend = _choose_pil_backend(transformers.__version__)
            self.processor = transformers.AutoImageProcessor.from_pretrained(
                location, trust_remote_code=False, local_files_only=silent, **backend
            )
        except BaseException as error:  # any error of the library is reported in one line
            if not is_failure(error):
                raise
            if silent and not here and isinstance(error, OSError):
                raise make_unreachable_error(spec, NOT_REACHED) from error
            raise explain_error(spec, error) from error
        super().__init__(
            model,
            spec=spec,
            device=device,
            dtype=dtype,
            context_length=_read_context_length(model.config, self.tokenizer),
            logit_scale=_read_logit_scale(model),
        )
        self._family: str = model.config.model_type
        self._words: object = getattr(model.config.text_config, "vocab_size", None)
        # SigLIP was trained on texts padded to their full length, without a mask.
        self._unmasked = "siglip" in self._family
        self._try()

    @property
    def preprocess_images(self) -> Preprocess:
        """Converts RGB images to the image tower's inputs."""
        return partial(_preprocess, self.processor)

    def _project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        return _get_projection(self.model.get_image_features(**inputs))  # type: ignore[operator]

    def _project_text(self, texts: list[str]) -> Tensor:
        inputs = self.tokenizer(
            texts,
            padding="max_length" if self._unmasked else True,
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        self._check_tokens(inputs["input_ids"], self._words)
        full = (inputs["attention_mask"].sum(1) >= self.context_length).nonzero().flatten().tolist()
        if full:
            whole = self.tokenizer([texts[row] for row in full], truncation=False, verbose=False)["input_ids"]
            self._count_cut([len(tokens) for tokens in whole])
        if self._unmasked:
            del inputs["attention_mask"]
        inputs = inputs.to(self.device)
        if self._family == "chinese_clip":  # whose get_text_features fails in transformers 4.57
            return self.model.text_projection(self.model.text_model(**inputs).last_hidden_state[:, 0])  # type: ignore[operator]
        return _get_projection(self.model.get_text_features(**inputs))  # type: ignore[operator]

    @property
    def _unknown_token(self) -> int | None:
        token: int | None = self.tokenizer.unk_token_id
        return token

    def _tokenise_words(self, words: list[str]) -> list[list[int]]:
        tokens: list[list[int]] = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        return tokens

    def _describe_preprocessing(self) -> dict[str, str]:
        settings = self.processor.to_dict()
        # Versions differ in naming a step that is not done; images are always RGB.
        done = {name: value for name, value in settings.items() if value is not None and value is not False}
        kept = {name: value for name, value in done.items() if name.startswith(STEPS)}
        kept.pop("do_convert_rgb", None)
        return {
            "preprocessing": json.dumps(kept, sort_keys=True, default=str),
            "backend": _describe_backend(self.processor),
        }


def _load_towers(transformers: Any, location: str | Path, silent: bool, here: bool) -> Any:
    """Load a model with two towers; the checkpoint must have all of its weights."""
    # Always given, since transformers would else ask on standard input whether to run the checkpoint's own Python.
    if here:
        config = transformers.AutoConfig.from_pretrained(location, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            check_size(Path(location), transformers.AutoModel.from_config(config, trust_remote_code=False))
    model, info = transformers.AutoModel.from_pretrained(
        location, output_loading_info=True, trust_remote_code=False, local_files_only=silent
    )
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(f"{type(model).__name__} has no image and text tower; expected a CLIP-like model")
    # ALIGN's text pooler does not affect the embedding.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("text_model.pooler"))
    if missing:
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}, which "
            "would be random; expected one of both towers and their projections"
        )
    return model.float()


def _preprocess(processor: Any, images: list[Image.Image]) -> dict[str, Tensor]:
    # Given, since transformers 4 guesses the channel axis from the shape, and errs on an image one pixel high.
    return dict(processor(images=images, return_tensors="pt", input_data_format="channels_last"))


def _get_projection(output: Any) -> Tensor:
    """Return the projection, which transformers 4 returns itself and transformers 5 inside an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _choose_pil_backend(version: str) -> dict[str, Any]:
    """Choose CLIP's preprocessing with PIL, so that pixels are the same with and without torchvision."""
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    return {"backend": "pil"} if (major, minor) >= (5, 4) else {"use_fast": False}


def _describe_backend(processor: Any) -> str:
    """Return the backend of the image processor, which may differ from the requested one."""
    info = getattr(processor, "backend", None)
    if isinstance(info, str):
        return info
    return "torchvision" if type(processor).__name__.endswith("Fast") else "pil"


def _read_context_length(config: Any, tokenizer: Any) -> int:
    text = config.text_config
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and "altclip" in config.model_type:
        positions -= text.pad_token_id + 1  # as in RoBERTa, positions start after the padding token
    known = [
        int(limit)
        for limit in (positions, tokenizer.model_max_length)
        if limit is not None and limit < MAX_CONTEXT_LENGTH
    ]
    if not known:
        raise ValueError("neither the model's config nor its tokenizer gives its context length.")
    return min(known)


def _read_logit_scale(model: Any) -> float:
    if hasattr(model, "logit_scale"):
        return float(model.logit_scale.detach().exp())
    return 1 / float(model.temperature.detach())
