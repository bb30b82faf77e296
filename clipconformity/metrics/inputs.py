"""What a metric is given: an encoder, batches of embeddings, images or texts, and what says their dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from clipconformity.encoders.protocol import Encoder
from clipconformity.functional.validation import check_matrix
from clipconformity.stream.reference import ReferenceSet

EncoderOrSpec: TypeAlias = "Encoder | str | Path"


def open_encoder(encoder: EncoderOrSpec | None) -> Encoder | None:
    """Return an encoder as it is, or load one by its spec or folder, as ``load_encoder`` does.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is no encoder of that name, or as ``load_encoder``.
    """
    if isinstance(encoder, (str, Path)):
        from clipconformity.encoders import load_encoder

        return load_encoder(encoder)
    if encoder is not None and not (callable(encoder) and hasattr(encoder, "embed_dim")):
        raise TypeError(
            f"encoder: expected a spec such as 'tiny', a folder, or an encoder with embed_dim, got "
            f"{type(encoder).__name__}; wrap a pair of functions in clipconformity.encoders.CallableEncoder."
        )
    return encoder


def check_batch_modality(batch: Any, fixed: str | None, reference: ReferenceSet | None) -> str | None:
    """Return the modality of a metric after a batch: the first images or texts fix it, embeddings have none.

    Raises:
        ValueError: If it differs from that of earlier batches or of the reference.
    """
    if (isinstance(batch, Tensor) and batch.ndim == 2) or _is_empty(batch):
        return fixed
    first = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    modality = "text" if isinstance(first, str) else "image"
    declared = None if reference is None else reference.modality
    for other, whose in ((fixed, "the batches before were"), (declared, "the reference is")):
        if other not in (None, modality):
            raise ValueError(
                f"batch: this is {modality} and {whose} {other}; images and texts lie in different places, so give "
                "each a metric and a reference of its own."
            )
    return modality


def encode_batch(batch: Any, encoder: Encoder | None) -> Tensor:
    """Return the raw embeddings of a batch: a two-dimensional tensor is used as embeddings.

    Raises:
        TypeError: If the batch is not such a tensor and there is no encoder.
        ValueError: If a tensor has another shape and there is no encoder.
    """
    if isinstance(batch, Tensor) and (batch.ndim == 2 or encoder is None):
        return check_matrix(batch, "batch", min_rows=0)
    if encoder is None:
        raise TypeError(
            f"batch: expected raw embeddings, a tensor of shape (N, D), got {type(batch).__name__}; convert them with "
            "torch.as_tensor, or for images or texts construct the metric with encoder=load_encoder(...)."
        )
    if _is_empty(batch):  # a rank without samples: encoders need not handle it
        return torch.empty(0, encoder.embed_dim)
    return check_matrix(encoder(batch), "batch")


def _is_empty(batch: Any) -> bool:
    if isinstance(batch, Tensor):
        return batch.ndim > 0 and len(batch) == 0
    return isinstance(batch, (list, tuple)) and not batch


def resolve_dimension(name: str, reference: ReferenceSet | None, encoder: Encoder | None, embed_dim: int | None) -> int:
    """Determine the dimension of the embeddings from the reference, the encoder or ``embed_dim``.

    Raises:
        TypeError: If the reference is not a ``ReferenceSet``.
        ValueError: If nothing gives it, or two sources differ.
    """
    if reference is not None and not isinstance(reference, ReferenceSet):
        raise TypeError(f"reference: expected a ReferenceSet, got {type(reference).__name__}.")
    dims = {
        "reference": None if reference is None else reference.embed_dim,
        "encoder": None if encoder is None else encoder.embed_dim,
        "embed_dim": embed_dim,
    }
    known = {source: dim for source, dim in dims.items() if dim is not None}
    if not known:
        raise ValueError(
            f"{name} needs to know the dimension of the embeddings: give a reference (ReferenceSet), "
            "an encoder, or embed_dim."
        )
    for source, dim in known.items():
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"{source}: expected a dimension of at least 1, got {dim!r}.")
    if len(set(known.values())) > 1:
        raise ValueError(f"dimensions differ: {known}; encoder and reference must belong together.")
    return next(iter(known.values()))
