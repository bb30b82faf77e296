"""The formats of embedding files: one row each, shown in the help of the commands, which does without torch."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from clipconformity.data.limits import RefusedError, check_limit
from clipconformity.data.untrusted import check_unpickling

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FORMAT = "clipconformity-embeddings"
REFERENCE = "clipconformity-reference"
SCORE = "clipconformity-score"
KINDS = {
    FORMAT: ("a file of embeddings", "give it as `--embeddings FILE`, or `NAME=FILE` of `clipconformity compare`"),
    REFERENCE: ("a reference set", "give it as `--reference FILE`"),
    SCORE: ("a saved score", "give it to `clipconformity compare` as `NAME=FILE`"),
}
"""Kinds of safetensors files of this library, as their metadata tell them: what each is, and where it goes."""
UNHINDERED = 2**26
"""Bytes that any file may grow to as it is read."""
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
    if metadata.get("format") in (REFERENCE, SCORE):
        noun, place = KINDS[metadata["format"]]
        raise RefusedError(f"{path}: it is {noun}, not embeddings; {place}.")
    about = json.loads(metadata["about"]) if metadata.get("format") == FORMAT else {}
    kinds = {"ids": list, "spec": str, "encoder_id": dict, "modality": str}
    if not isinstance(about, dict) or any(not isinstance(about.get(k), (t, type(None))) for k, t in kinds.items()):
        raise ValueError("its metadata is damaged")
    return arrays, about


def _tensor(array: np.ndarray) -> Tensor:
    import numpy as np
    import torch

    if array.dtype.kind not in "fiu":
        raise ValueError(f"it holds {array.dtype!s:.60}, not numbers")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _from_npy(path: Path) -> Arrays:
    import numpy as np

    with path.open("rb") as file:
        _check_header(path, file, path.stat().st_size)
        return {KEY: _tensor(np.load(file, allow_pickle=False))}, {}


def _from_npz(path: Path) -> Arrays:
    import numpy as np

    _check_members(path)
    with zipfile.ZipFile(path) as members:
        for member in members.infolist():
            with members.open(member) as file:
                _check_header(path, file, member.file_size)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: _tensor(arrays[name]) for name in arrays.files}, {}


def _check_members(path: Path) -> None:
    """Refuse a zip file whose members grow without bounds as they are read."""
    with zipfile.ZipFile(path) as members:
        found = members.infolist()
    for member in found:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename!r:.60} is compressed by another method than deflate")
    check_expansion(path, sum(member.file_size for member in found))


def _check_header(path: Path, file: IO[bytes], size: int) -> None:
    """Refuse an array in NumPy's format that says that it is larger than its file, and go back to the start."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is not None:  # a later one, of structured arrays with names in Unicode, is none of numbers
        shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"it says that it has the shape {shape!s:.60}, and is too short for it")
    file.seek(0)


def check_expansion(path: Path, size: int) -> None:
    """Refuse arrays that are far larger than the file that they come from.

    Raises:
        ValueError: If they are.
    """
    if size > UNHINDERED:
        check_limit(path, "expansion", size // max(path.stat().st_size, 1))


def _from_pt(path: Path) -> Arrays:
    import torch
    from torch import Tensor

    check_unpickling(path)
    if zipfile.is_zipfile(path):
        _check_members(path)
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


def stated_kind(path: Path) -> str | None:
    """Give which of ``KINDS`` a safetensors file says that it is; None of other files, and where it says nothing."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            found: str | None = (file.metadata() or {}).get("format")
    except (SafetensorError, OSError):  # who reads it says what is wrong
        return None
    return found if found in KINDS else None


def suffixes() -> str:
    """The ends of the names that can be read, as help and errors show them."""
    return ", ".join(READERS)
