"""Base of all encoders: dispatch of inputs, raw float32 outputs, counted truncation, identity."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.data.images import iterate_images
from clipconformity.encoders.inputs import NO_IMAGE, is_text, join_inputs, list_texts
from clipconformity.encoders.words import is_known, is_mostly_unknown, split_words
from clipconformity.functional.validation import check_matrix
from clipconformity.provenance import MODALITIES

Preprocess = Callable[[list[Image.Image]], dict[str, Tensor]]


class BaseEncoder(ABC):
    """An image tower, a text tower or both, with *raw* embeddings, before L2 normalisation.

    Attributes:
        modalities: The modalities that it encodes: ``"image"``, ``"text"`` or both.
        spec: The spec, as ``load_encoder`` takes it.
        device: Device of the model.
        dtype: Precision of the model's arithmetic; below float32 by autocast.
        context_length: Largest number of tokens of a text, with its start and end tokens.
        logit_scale: The trained scale of cosines in the contrastive loss; None for a text-only model.
        truncated: Number of texts cut to the context length so far; the first one gives a warning.
    """

    modalities: tuple[str, ...] = MODALITIES

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        spec: str,
        device: torch.device,
        dtype: torch.dtype,
        context_length: int,
        logit_scale: float | None,
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.context_length = context_length
        self.logit_scale = logit_scale
        self.truncated = 0
        self._known_words: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}, device={str(self.device)!r})"

    @cached_property
    def embed_dim(self) -> int:
        """Dimension D of the embeddings."""
        return self._run(self._project_text, ["a"]).shape[1]

    @cached_property
    def id(self) -> dict[str, str]:
        """Hash of the weights, preprocessing, precision and backend, independent of where the model was loaded from."""
        precision = str(self.dtype).removeprefix("torch.")
        return {"weights": _hash_weights(self.model), "precision": precision} | self._describe_preprocessing()

    def encode_image(self, images: Any) -> Tensor:
        """Encode images.

        Args:
            images: PIL images, ``pathlib.Path``, uint8 or float tensors ``(N, 3, H, W)``, uint8 arrays
                ``(N, H, W, 3)``, or a list of mixed sizes.

        Returns:
            Raw float32 embeddings ``(N, D)`` on the encoder's device.

        Raises:
            TypeError: If they are not images.
            ValueError: If a shape or range does not fit, the list is empty, a file cannot be read, or the model
                encodes only texts.
        """
        if "image" not in self.modalities:
            raise self._make_modality_error("image")
        # One at a time: decoded images are large, and inputs of the tower are small.
        inputs = [self.preprocess_images([image]) for image in iterate_images(images)]
        if not inputs:
            raise ValueError(NO_IMAGE)
        return self.project_image(join_inputs(inputs))

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Encode texts; those beyond the context length are cut before their end token, and counted.

        Args:
            texts: A text or a list of texts.

        Returns:
            Raw float32 embeddings ``(N, D)`` on the encoder's device.

        Raises:
            TypeError: If they are not strings.
            ValueError: If the list is empty, or a text is empty.
        """
        return self._run(self._project_text, list_texts(texts))

    def unknown_texts(self, texts: Sequence[str]) -> list[int]:
        """Find the texts that the tokenizer does not know, such as those in a script that it was not made for.

        A word is unknown if it is dropped, becomes the unknown token, or is split into letters or bytes; a
        text, if over half of its letters are in such words. Its embedding then says little.

        Returns:
            Their indices; none where the encoder does not show its tokens.
        """
        words = [split_words(text) for text in texts]
        new = sorted({word for of_one in words for word in of_one} - self._known_words.keys())
        made = self._tokenise_words(new) if new else []
        if made is None:
            return []
        unknown = self._unknown_token
        self._known_words |= {word: is_known(word, one, unknown) for word, one in zip(new, made, strict=True)}
        return [number for number, of_one in enumerate(words) if is_mostly_unknown(of_one, self._known_words)]

    @property
    def _unknown_token(self) -> int | None:
        """The tokenizer's unknown token; None if it has none."""
        return None

    def _tokenise_words(self, words: list[str]) -> Sequence[Sequence[int]] | None:
        """Tokenise each word by itself, without start and end tokens; None where the tokenizer does not allow it."""
        return None

    def __call__(self, batch: Any) -> Tensor:
        """Encode a batch of images, or of texts where it is a string or a list of strings.

        Raises:
            TypeError: If the batch is neither.
            ValueError: If a string names an existing file: images are given as ``pathlib.Path``.
        """
        return self.encode_text(batch) if is_text(batch) else self.encode_image(batch)

    def _try(self) -> None:
        """Run once, so that wrong settings show now, and not in the middle of an evaluation.

        Raises:
            ValueError: If it cannot encode a grey square and a word, or gives them different dimensions.
        """
        trials: dict[str, Callable[[], Tensor]] = {
            "image": lambda: self.encode_image(Image.new("RGB", (32, 32), "grey")),
            "text": lambda: self.encode_text(["a"]),
        }
        try:
            dims = {modality: trials[modality]().shape[1] for modality in self.modalities}
        except torch.cuda.OutOfMemoryError:
            raise
        except BaseException as error:  # raised by a library for wrong settings
            if not is_failure(error):
                raise
            raise ValueError(f"{str(explain_error(self.spec, error)).rstrip('.')} (in a trial run).") from error
        if len(set(dims.values())) > 1:
            raise ValueError(
                f"{self.spec}: its image embeddings have dimension {dims['image']} and its text embeddings "
                f"{dims['text']}; expected one for both."
            )

    def _make_modality_error(self, modality: str) -> ValueError:
        """Make the error for a modality that the model does not have."""
        return ValueError(
            f"{self.spec}: this model encodes {' and '.join(self.modalities)} alone, and was given {modality}s; give "
            "an encoder of both, such as 'tiny' or one of CLIP's."
        )

    def project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the image tower on outputs of :attr:`preprocess_images`; raw float32 ``(N, D)``."""
        moved = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
        return self._run(self._project_image, moved)

    def _run(self, project: Callable[[Any], Tensor], prepared: Any) -> Tensor:
        autocast = torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            embeddings = project(prepared)
        # A copy made outside inference mode is an ordinary tensor, which can be changed in place.
        return check_matrix(embeddings, "the encoder's output").to(torch.float32, copy=True)

    def _check_tokens(self, tokens: Tensor, known: object) -> None:
        """Refuse tokens that the model does not have; on a GPU they would abort the process."""
        most = int(tokens.max())
        if isinstance(known, int) and most >= known:
            raise ValueError(
                f"{self.spec}: its tokenizer gives token {most}, and its model has {known}; they do not fit together."
            )

    def _count_cut(self, lengths: Sequence[int]) -> None:
        """Count the texts with more tokens than the context length, and warn once."""
        cut = [length for length in lengths if length > self.context_length]
        if cut and not self.truncated:
            warnings.warn(
                f"{self.spec}: a text of {cut[0]} tokens is cut to the context length of {self.context_length}, its "
                "end token kept. This warning comes once; encoder.truncated counts such texts.",
                stacklevel=5,
            )
        self.truncated += len(cut)

    @property
    @abstractmethod
    def preprocess_images(self) -> Preprocess:
        """Converts RGB images to the image tower's inputs, on the CPU; worker processes get it without the model."""

    @abstractmethod
    def _project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        """Project preprocessed images."""

    @abstractmethod
    def _project_text(self, texts: list[str]) -> Tensor:
        """Tokenise and project texts."""

    @abstractmethod
    def _describe_preprocessing(self) -> dict[str, str]:
        """Describe preprocessing and backend for the identity."""


def make_unreachable_error(spec: str, reason: str) -> FileNotFoundError:
    """Make the error for a model that is not here and cannot be downloaded."""
    return FileNotFoundError(
        f"{spec}: could not be loaded ({reason}). Check the name and the connection, or download the model "
        "elsewhere and give its directory or checkpoint; HF_HUB_OFFLINE=1 uses local files only."
    )


def make_code_error(spec: str) -> ValueError:
    """Make the error for a checkpoint that cannot be loaded without running its own code."""
    return ValueError(
        f"{spec}: the checkpoint needs Python code of its own, and code that comes with a checkpoint is not run here; "
        "give a model that the library itself has, or load it yourself and give it as a CallableEncoder."
    )


def is_failure(error: BaseException) -> bool:
    """Whether an error is a failure of a library: tokenizers, in Rust, raise one that is not an ``Exception``."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def explain_error(spec: str, error: BaseException) -> Exception:
    """Explain in one line an error that a library raised when it opened or ran a model."""
    if "trust_remote_code" in str(error):
        return make_code_error(spec)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = (lines[0][:300] if lines else type(error).__name__).rstrip(".")
    if isinstance(error, KeyError | IndexError | AttributeError | ZeroDivisionError):  # its message alone says little
        first = f"{type(error).__name__} {first}; its configuration or its tokenizer may be wrong"
    absent = isinstance(error, OSError) or type(error).__name__ == "HFValidationError"  # not a name of a model
    return make_unreachable_error(spec, first) if absent else ValueError(f"{spec}: {first}.")


def _hash_weights(model: torch.nn.Module) -> str:
    """Hash weights and activation; without names, which differ between versions of the libraries."""
    parts = []
    for value in model.state_dict().values():
        if value.is_floating_point():  # other types are counters and positions
            digest = hashlib.blake2b(str(tuple(value.shape)).encode(), digest_size=16)
            digest.update(value.detach().float().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            parts.append(digest.digest())
    # The same weights with another activation are another model: OpenAI's need QuickGELU.
    names = {type(module).__name__.removesuffix("Activation") for module in model.modules()}
    parts += [name.encode() for name in sorted(names) if "gelu" in name.lower()]
    return hashlib.blake2b(b"".join(sorted(parts)), digest_size=16).hexdigest()
