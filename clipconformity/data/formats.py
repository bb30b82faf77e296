"""The formats of embedding files: one row each. The help of the commands shows them, without torch."""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from clipconformity.data.addresses import Place, RemotePath
from clipconformity.data.limits import RefusedError, check_limit
from clipconformity.data.places import copy_here, is_file, look_up, open_place
from clipconformity.data.remote import HEADER_BYTES, ROW_BYTES
from clipconformity.data.untrusted import check_unpickling

if TYPE_CHECKING:
    import numpy as np
    import torch

    from clipconformity.data.stored import Array

FORMAT = "clipconformity-embeddings"
REFERENCE = "clipconformity-reference"
SCORE = "clipconformity-score"
KINDS = {
    FORMAT: ("a file of embeddings", "give it as `--embeddings FILE`, or `NAME=FILE` of `clipconformity compare`"),
    REFERENCE: ("a reference set", "give it as `--reference FILE`"),
    SCORE: ("a saved score", "give it to `clipconformity compare` as `NAME=FILE`"),
}
"""Kinds of safetensors files of this library, by their metadata: what each is, and which option takes it."""
MIN_EXPANSION = 2**26
"""Bytes to which a file of any size may expand."""
MAX_HEADER = 100_000_000
"""Longest header of a safetensors file, by its library."""
KEY = "embeddings"
Arrays: TypeAlias = "tuple[dict[str, Array], dict[str, Any]]"
"""The arrays of a file by name, and its metadata ``ids``, ``spec``, ``encoder_id``, ``modality``, if known."""


def _read_safetensors(path: Place) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        with copy_header(path) as local, safe_open(local, framework="pt") as file:  # checks offsets and shapes
            metadata = file.metadata() or {}
            types = {name: _parse_type(file, name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if metadata.get("format") in (REFERENCE, SCORE):
        noun, place = KINDS[metadata["format"]]
        raise RefusedError(f"{path}: it is {noun}, not embeddings; {place}.")
    about = json.loads(metadata["about"]) if metadata.get("format") == FORMAT else {}
    kinds = {"ids": list, "spec": str, "encoder_id": dict, "modality": str}
    if not isinstance(about, dict) or any(not isinstance(about.get(k), (t, type(None))) for k, t in kinds.items()):
        raise ValueError("its metadata is damaged")
    return _locate_tensors(path, types), about


@contextmanager
def copy_header(path: Place) -> Iterator[Path]:
    """Give a safetensors file on this machine with the header of another, and none of the values of a remote one.

    Its library checks a header by the size of the file alone, which the copy has.

    Raises:
        OSError: If it is missing, or its server does not give it.
    """
    with open_place(path) as file:
        size = int.from_bytes(file.read(8), "little")
    with copy_here(path, first=8 + min(size, MAX_HEADER)) as local:
        yield local


def _parse_type(file: Any, name: str) -> torch.dtype:
    part = file.get_slice(name)
    return part[:0].dtype if part.get_shape() else file.get_tensor(name).dtype


def _locate_tensors(path: Place, types: dict[str, torch.dtype]) -> dict[str, Array]:
    """Locate the tensors of a safetensors file; its library would map all of the file into memory."""
    from clipconformity.data.stored import StoredRows

    with open_place(path) as file:
        size = int.from_bytes(file.read(8), "little")
        places = json.loads(file.read(size))
    return {
        name: StoredRows(
            partial(_open_at, path, 8 + size + places[name]["data_offsets"][0]), tuple(places[name]["shape"]), dtype
        )
        for name, dtype in types.items()
    }


def _open_at(path: Place, place: int) -> IO[bytes]:
    file = open_place(path, ROW_BYTES)
    file.seek(place)
    return file


class _Header(NamedTuple):
    """The header of an array in NumPy's format."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    size: int
    """Bytes of the header."""

    @property
    def types(self) -> tuple[torch.dtype, np.dtype | None]:
        """The type of the values, and NumPy's type where their byte order is not the native one."""
        import numpy as np
        import torch

        native = self.dtype.newbyteorder("=")
        return torch.from_numpy(np.empty(0, native)).dtype, None if self.dtype == native else self.dtype


def _read_npy(path: Place) -> Arrays:
    from clipconformity.data.stored import StoredColumns, StoredRows

    with open_place(path) as file:
        header = _read_header(file, look_up(path, fresh=False).size)
    if header.by_columns and isinstance(path, RemotePath):
        raise RefusedError(
            f"{path}: NumPy wrote it by columns, so that a block of rows is spread over the file, and each piece of it "
            "would be a request; download it first, or save numpy.ascontiguousarray(rows)."
        )
    kind = StoredColumns if header.by_columns else StoredRows
    return {KEY: kind(partial(_open_at, path, header.size), header.shape, *header.types)}, {}


def _open_zip(path: Place, ahead: int = HEADER_BYTES) -> zipfile.ZipFile:
    return zipfile.ZipFile(path if isinstance(path, Path) else open_place(path, ahead))


def _read_npz(path: Place) -> Arrays:
    found: dict[str, Array] = {}
    with _open_zip(path) as members:
        _check_members(path, members)
        for member in members.infolist():
            with members.open(member) as file:
                header = _read_header(file, member.file_size)
                found[member.filename.removesuffix(".npy")] = _read_member(path, member.filename, header)
    return found, {}


def _read_member(path: Place, name: str, header: _Header) -> Array:
    """Return an array of a zip file; one stored by rows is read as a stream, one by columns at once."""
    from clipconformity.data.stored import StoredRows, read_whole

    shape = header.shape[::-1] if header.by_columns else header.shape
    stored = StoredRows(partial(_open_member, path, name, header.size), shape, *header.types)
    return read_whole(stored).permute(*range(len(shape))[::-1]).contiguous() if header.by_columns else stored


def _open_member(path: Place, name: str, place: int) -> IO[bytes]:
    with _open_zip(path, ROW_BYTES) as members:  # its members stay open
        file = members.open(name)
    file.read(place)
    return file


def _check_members(path: Place, members: zipfile.ZipFile) -> None:
    """Refuse a zip file whose members expand beyond the limit."""
    found = members.infolist()
    for member in found:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename!r:.60} is compressed by another method than deflate")
    check_expansion(path, sum(member.file_size for member in found))


def _read_header(file: IO[bytes], size: int) -> _Header:
    """Read the header of an array in NumPy's format.

    Args:
        file: The open file, at its start.
        size: Bytes of header and array.

    Raises:
        ValueError: If it is not an array of numbers, or its header claims more than the file has.
    """
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"it is of NumPy's format {version}, which is of structured arrays, not of numbers")
    shape, by_columns, dtype = read(file)
    if dtype.kind not in "fiu":
        raise ValueError(f"it holds {dtype!s:.60}, not numbers")
    if min(shape, default=0) < 0 or file.tell() + math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header has the shape {shape!s:.60}, and the file is too short for it")
    return _Header(shape, by_columns and len(shape) > 1, dtype, file.tell())


def check_expansion(path: Place, size: int) -> None:
    """Refuse arrays that are far larger than their file.

    Raises:
        ValueError: If they are.
    """
    if size > MIN_EXPANSION:
        check_limit(path, "expansion", size // max(look_up(path, fresh=False).size, 1))


def _read_parquet(path: Place) -> Arrays:
    from clipconformity.data.parquet import open_columns

    return open_columns(path), {}


def _read_pt(path: Place) -> Arrays:
    import torch
    from torch import Tensor

    if isinstance(path, RemotePath):
        raise RefusedError(
            f"{path}: a .pt file holds a pickle, and is read whole; none is taken from an address: download it first, "
            "or save it as .safetensors."
        )
    check_unpickling(path)
    if zipfile.is_zipfile(path):
        with _open_zip(path) as members:
            _check_members(path, members)
    with warnings.catch_warnings():  # torch warns of unknown pickle protocols, and then may fail
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Tensor):
        return {KEY: content}, {}
    if isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values()):
        return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, {}
    raise ValueError(f"it holds {type(content).__name__}, not a tensor or a dict of tensors")


READERS: dict[str, Callable[[Place], Arrays]] = {
    ".safetensors": _read_safetensors,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".parquet": _read_parquet,
}
"""Readers by suffix. A new format needs only a row here: errors and help follow."""


def read_kind(path: Place) -> str | None:
    """Return which of ``KINDS`` the metadata of a safetensors file name; None where they name none."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors" or not is_file(path):
        return None
    try:
        with copy_header(path) as local, safe_open(local, framework="pt") as file:
            found: str | None = (file.metadata() or {}).get("format")
    except (SafetensorError, OSError):  # its reader reports the damage
        return None
    return found if found in KINDS else None


def list_suffixes() -> str:
    """List the suffixes that can be read, for help and errors."""
    return ", ".join(READERS)
