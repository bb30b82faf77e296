"""The formats of embedding files: one row each, shown in the help of the commands, which does without torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FORMAT = "clipconformity-embeddings"
KEY = "embeddings"
Arrays: TypeAlias = "tuple[dict[str, Tensor], dict[str, Any]]"
"""The arrays of a file by name, and what it says of them: ``ids``, ``spec``, ``encoder_id``, ``modality``, if known."""


def _from_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if metadata.get("format") == "clipconformity-reference":
        raise ValueError("it is a reference set, not embeddings")
    about = json.loads(metadata["about"]) if metadata.get("format") == FORMAT else {}
    kinds = {"ids": list, "spec": str, "encoder_id": dict, "modality": str}
    if not isinstance(about, dict) or any(not isinstance(about.get(k), (t, type(None))) for k, t in kinds.items()):
        raise ValueError("its metadata is damaged")
    return arrays, about


def _tensor(array: np.ndarray) -> Tensor:
    import numpy as np
    import torch

    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype}, not numbers")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _from_npy(path: Path) -> Arrays:
    import numpy as np

    with path.open("rb") as file:
        return {KEY: _tensor(np.load(file, allow_pickle=False))}, {}


def _from_npz(path: Path) -> Arrays:
    import numpy as np

    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: _tensor(arrays[name]) for name in arrays.files}, {}


def _from_pt(path: Path) -> Arrays:
    import torch
    from torch import Tensor

    with warnings.catch_warnings():  # torch warns of pickle protocols that it may not know; it then fails or does not
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Tensor):
        return {KEY: content}, {}
    if isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values()):
        return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, {}
    raise ValueError(f"it holds {type(content).__name__}, not a tensor or a dict of tensors")


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".safetensors": _from_safetensors,
    ".npy": _from_npy,
    ".npz": _from_npz,
    ".pt": _from_pt,
}
"""What reads a file, by the end of its name. A row is all that a new format needs: errors and help follow."""


def suffixes() -> str:
    """The ends of the names that can be read, as help and errors show them."""
    return ", ".join(READERS)
