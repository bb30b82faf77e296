"""Embedding files: safetensors, NumPy and PyTorch, none of them unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clipconformity.data.files import write_tensors
from clipconformity.data.formats import FORMAT, KEY, READERS, check_expansion, suffixes
from clipconformity.data.limits import RefusedError, check_limit
from clipconformity.data.strict_json import to_json
from clipconformity.data.untrusted import check_input, shown
from clipconformity.functional.validation import check_matrix
from clipconformity.provenance import UNKNOWN, Provenance


@dataclass(frozen=True)
class EmbeddingFile:
    """Embeddings read from a file, and what the file says of them.

    Attributes:
        path: The file.
        embeddings: ``(N, D)``.
        ids: A name for each row; by default its number, behind the file's stem.
        named: Whether the file has names, so that the ids are more than places.
        groups: Group ids ``(N,)``, if the file has them.
        provenance: Encoder and modality, as far as the file says them.
    """

    path: Path
    embeddings: Tensor
    ids: list[str]
    named: bool = False
    groups: Tensor | None = None
    provenance: Provenance = UNKNOWN


def read_embeddings(path: Path | str) -> EmbeddingFile:
    """Read raw embeddings ``(N, D)``; axes of length 1 beyond the first are dropped.

    Files with several arrays need one named ``embeddings``; an array ``groups`` beside it gives group ids.

    Args:
        path: A ``.safetensors``, ``.npy``, ``.npz`` or ``.pt`` file (tensors only; nothing is unpickled).

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is no regular file.
        TypeError: If it does not hold floating-point numbers.
        ValueError: If the kind is unknown, the file is damaged or over a limit, or the shape is not ``(N, D)``.
    """
    path = Path(path)
    check_input(path, "file")
    if path.suffix not in READERS:
        raise ValueError(f"{path}: expected a file ending in {suffixes()}.")
    try:
        arrays, about = READERS[path.suffix](path)
    except RefusedError:
        raise
    except Exception as error:  # a damaged file makes its reader fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: cannot be read as {path.suffix} without unpickling ({reason[:120]}); "
            "save plain arrays or tensors."
        ) from None
    value = _dense(path, _choose(path, arrays))
    if value.ndim > 2:
        value = value.reshape([len(value), *(n for n in value.shape[1:] if n != 1)])
    embeddings = check_matrix(value, str(path))
    check_limit(path, "rows", len(embeddings))
    check_limit(path, "dimension", embeddings.shape[1])
    groups = _groups(path, arrays["groups"], len(embeddings)) if "groups" in arrays else None
    ids = about.get("ids") or [f"{path.stem}:{row}" for row in range(len(embeddings))]
    if len(ids) != len(embeddings):
        raise ValueError(f"{path}: damaged: {len(ids)} ids do not match its {len(embeddings)} embeddings.")
    wrong = next((row for row, one in enumerate(ids) if not isinstance(one, str)), None)
    if wrong is not None:
        raise ValueError(f"{path}: damaged: the id of row {wrong} is {shown(ids[wrong])}; expected strings.")
    encoder_id = about.get("encoder_id")
    if encoder_id is not None and not all(isinstance(part, str) for part in encoder_id.values()):
        raise ValueError(f"{path}: damaged: encoder_id is {shown(encoder_id)}; expected strings.")
    try:
        provenance = Provenance(about.get("spec"), encoder_id, about.get("modality"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from None
    return EmbeddingFile(path, embeddings, ids, bool(about.get("ids")), groups, provenance)


def _dense(path: Path, value: Tensor, what: str = "array") -> Tensor:
    """Refuse a tensor without plain values of its own, or which repeats them beyond the limit."""
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested tensor" if value.is_nested else value.layout
        raise ValueError(f"{path}: expected a dense {what}, got {kind}; save it with to_dense().")
    if value.device.type == "meta":
        raise ValueError(f"{path}: expected a dense {what}, got a tensor of the meta device, which has no values.")
    if value.is_quantized:
        raise ValueError(f"{path}: expected a dense {what}, got quantised values; save it with dequantize().")
    check_expansion(path, value.numel() * value.element_size())
    return value.detach()


def _groups(path: Path, groups: Tensor, rows: int) -> Tensor:
    groups = _dense(path, groups, "array of groups")
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise TypeError(f"{path}: groups: expected whole numbers, got {groups.dtype}.")
    if groups.numel() != rows or groups.ndim == 0 or len(groups) != rows:
        raise ValueError(f"{path}: damaged: groups of shape {tuple(groups.shape)} do not match its {rows} embeddings.")
    return groups.reshape(rows).long()


def write_embeddings(
    path: Path | str,
    embeddings: Tensor,
    *,
    ids: Sequence[str] | None = None,
    groups: Tensor | None = None,
    provenance: Provenance = UNKNOWN,
) -> None:
    """Write embeddings ``(N, D)`` as safetensors with what is known of them; whole or not at all.

    Raises:
        OSError: If the file cannot be written.
    """
    tensors = {KEY: embeddings}
    if groups is not None:
        tensors["groups"] = groups
    about = {"ids": None if ids is None else list(ids)} | provenance.describe()
    write_tensors(path, tensors, {"format": FORMAT, "about": to_json(about)})


def _choose(path: Path, arrays: Mapping[str, Tensor]) -> Tensor:
    if KEY in arrays:
        return arrays[KEY]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise ValueError(f"{path}: expected one array, or one named {KEY!r}, got {sorted(arrays)[:8]}.")
