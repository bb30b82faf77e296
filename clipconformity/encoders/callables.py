"""Encoders of any other model: a pair of functions, or a user's function that makes an encoder."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.encoders.inputs import is_text, list_images, list_texts
from clipconformity.encoders.protocol import Encoder
from clipconformity.encoders.registry import FAMILIES
from clipconformity.functional.validation import check_matrix


class CallableEncoder:
    """An encoder made of two functions that return *raw* embeddings.

    Args:
        encode_image: From a list of RGB images to ``(N, D)``; None where the model takes no images.
        encode_text: From a list of strings to ``(N, D)``; None where it takes no texts.
        embed_dim: Dimension D.
        spec: A name for it, recorded in reference sets; after unpickling a metric, the encoder has to be given again.
        id: The identity that must agree between two uses, such as ``{"weights": "..."}``; by default the spec.

    Example:
        >>> import torch
        >>> encoder = CallableEncoder(
        ...     lambda images: torch.ones(len(images), 4), lambda texts: torch.ones(len(texts), 4), 4, spec="mine"
        ... )
        >>> encoder(["a dog", "a cat"]).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        encode_image: Callable[[list[Image.Image]], Tensor] | None,
        encode_text: Callable[[list[str]], Tensor] | None,
        embed_dim: int,
        *,
        spec: str,
        id: dict[str, str] | None = None,
    ) -> None:
        self._encode_image = encode_image
        self._encode_text = encode_text
        self.embed_dim = embed_dim
        self.spec = spec
        self.id = {"weights": spec} if id is None else id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"

    def encode_image(self, images: Any) -> Tensor:
        """Encode images; arguments as of :meth:`BaseEncoder.encode_image`.

        Raises:
            TypeError: If the encoder takes no images.
        """
        if self._encode_image is None:
            raise TypeError(f"{self.spec}: takes no images; give texts, or make it with encode_image=.")
        return self._check_embeddings(self._encode_image, list_images(images))

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Encode a text or a list of texts.

        Raises:
            TypeError: If the encoder takes no texts.
        """
        if self._encode_text is None:
            raise TypeError(f"{self.spec}: takes no texts; give images, or make it with encode_text=.")
        return self._check_embeddings(self._encode_text, list_texts(texts))

    def __call__(self, batch: Any) -> Tensor:
        """Encode a batch of images, or of texts where it is a string or a list of strings."""
        return self.encode_text(batch) if is_text(batch) else self.encode_image(batch)

    def _check_embeddings(self, function: Callable[[list[Any]], Tensor], items: list[Any]) -> Tensor:
        with torch.no_grad():
            matrix = check_matrix(function(items), f"{self.spec}: the encoder's output").float()
        if matrix.shape != (len(items), self.embed_dim):
            raise ValueError(
                f"{self.spec}: expected embeddings of shape {(len(items), self.embed_dim)}, got {tuple(matrix.shape)}."
            )
        return matrix


def is_function(spec: str) -> bool:
    """Whether a spec names a function, ``package.module:function``, of a module that exists."""
    found = re.fullmatch(r"([^\W\d]\w*)[\w.]*:[^\W\d][\w.]*", spec)
    if found is None or any(spec.startswith(family.start) for family in FAMILIES):
        return False
    module = found[1]
    return find_spec(module) is not None or Path(f"{module}.py").is_file() or Path(module, "__init__.py").is_file()


def call_function(spec: str) -> Encoder:
    """Call a function without arguments that makes an encoder; modules in the current folder are found as well.

    It runs the user's own code, so the spec must come from a command line, never from a file.

    Args:
        spec: ``package.module:function``.

    Raises:
        ValueError: If there is no such function.
        TypeError: If it is not a function, or does not return an encoder.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = resolve_name(spec)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"encoder {spec!r} cannot be imported ({' '.join(str(error).split())[:200]}).") from None
    if not callable(function):
        raise TypeError(f"encoder {spec!r}: expected a function that makes an encoder, got {type(function).__name__}.")
    encoder = function()
    if not isinstance(encoder, Encoder):
        raise TypeError(
            f"encoder {spec!r}: expected it to make an encoder, such as a clipconformity.encoders.CallableEncoder, got "
            f"{type(encoder).__name__}."
        )
    return encoder
