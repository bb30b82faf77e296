"""Embedding files: safetensors, NumPy, Parquet and PyTorch, none of them unpickled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from clipconformity.data.addresses import Place, parse_place
from clipconformity.data.brief import format_brief
from clipconformity.data.failures import find_remote_error
from clipconformity.data.files import write_tensors
from clipconformity.data.formats import FORMAT, KEY, READERS, check_expansion, list_suffixes
from clipconformity.data.layout import find_metadata, parse_modality
from clipconformity.data.limits import RefusedError, check_limit
from clipconformity.data.names import Places
from clipconformity.data.places import Stamps, check_unchanged, look_up
from clipconformity.data.stored import Array, Stored, StoredWords, count_rows, read_blocks, read_whole
from clipconformity.data.strict_json import to_json
from clipconformity.data.untrusted import format_value
from clipconformity.functional.validation import check_matrix
from clipconformity.provenance import UNKNOWN, Provenance

KEYS = (KEY, "embedding")
"""Names of the array or column of embeddings, where none is given."""
GROUPS = "groups"
"""Name of the array or column of groups, likewise."""
IDS = ("id", "image_path", "url")
"""Names of that of ids, likewise; the first that is there."""
MADE_OF = "made_of"
"""Entry of a file of this library that names the share of some samples that it holds."""
T = TypeVar("T")


class Columns(NamedTuple):
    """The arrays or columns of a file that are read; None means the usual names."""

    embeddings: str | None = None
    ids: str | None = None
    groups: str | None = None


@dataclass(frozen=True)
class EmbeddingFile:
    """Embeddings read from a file, and their description there.

    Attributes:
        path: The file.
        embeddings: ``(N, D)``.
        ids: A name for each row; by default its number, behind the file's stem.
        named: Whether the ids are names in the file rather than row numbers.
        groups: Group ids ``(N,)``, if the file has them.
        provenance: Encoder and modality, as far as the file gives them.
    """

    path: Place
    embeddings: Tensor
    ids: list[str]
    named: bool = False
    groups: Tensor | None = None
    provenance: Provenance = UNKNOWN

    def __repr__(self) -> str:
        count, dim = self.embeddings.shape
        origin = {"spec": self.provenance.spec, "modality": self.provenance.modality}
        groups = None if self.groups is None else len(self.groups.unique())
        return format_brief(self, path=self.path, count=count, embed_dim=dim, **origin, groups=groups)


class EmbeddingBlock(NamedTuple):
    """Consecutive rows of a file."""

    embeddings: Tensor
    """``(n, D)``."""
    ids: Sequence[str]
    groups: Tensor | list[str] | None


@dataclass(frozen=True)
class EmbeddingShard:
    """A file of embeddings whose header was read and checked.

    Attributes:
        path: The file.
        count: Number of its rows N.
        dim: Dimension D.
        dtype: The type of its values.
        named: Whether it has names for its rows.
        grouped: Whether it has group ids.
        provenance: Encoder and modality, as far as it says them.
        columns: What is read of it.
        made_of: The share of some samples that it holds, as it says; not checked.
        stamps: What would change with the file, and with that of its metadata.
    """

    path: Place
    count: int
    dim: int
    dtype: torch.dtype
    named: bool
    grouped: bool
    provenance: Provenance
    columns: Columns
    made_of: object = None
    stamps: Stamps = ()

    def blocks(
        self, rows: int, first: int | None = None, name: str | None = None, begin: int = 0
    ) -> Iterator[EmbeddingBlock]:
        """Read it in order: ``first`` rows, then ``rows`` at a time, then what is left; one block is held at a time.

        Args:
            rows: Of a block.
            first: Of the first one, where that is another number.
            name: What rows without ids are named by, in place of the file's stem.
            begin: The row that it is read from.

        Raises:
            ValueError: If it is damaged, or was replaced after it was opened.
        """
        opened = _open(self.path, self.columns, fresh=True)
        if opened.shape != (self.count, self.dim) or opened.stamps != self.stamps:
            raise ValueError(f"{self.path}: was replaced by another file while it was read.")
        ids, groups = (
            None if part is None else _read_blocks(self.path, part, rows, first, begin)
            for part in (opened.ids, opened.groups)
        )
        start = begin
        for values in _read_blocks(self.path, opened.values, rows, first, begin):
            assert isinstance(values, Tensor)
            stop = start + len(values)
            names = Places(name or self.path.stem, start, stop) if ids is None else _to_words(next(ids))
            group = None if groups is None else next(groups)
            labels = group.reshape(len(values)).long() if isinstance(group, Tensor) else group
            yield EmbeddingBlock(values.reshape(len(values), self.dim), names, labels)
            start = stop


def open_embeddings(path: Place | str, columns: Columns | None = None) -> EmbeddingShard:
    """Read and check the header of a file of raw embeddings, so that blocks of rows can be read.

    Files as of :func:`read_embeddings`; ``.pt`` files are read whole, twice.

    Args:
        path: The file.
        columns: Which of its arrays or columns are read.

    Raises:
        OSError: As :func:`read_embeddings`, as are the others.
        TypeError: If it does not hold floating-point numbers, or groups are neither whole numbers nor texts.
        ValueError: If its header is damaged, or it is over a limit.
        ImportError: If pyarrow is not installed for a Parquet file, or what reads an address is not.
    """
    path, columns = parse_place(path), columns or Columns()
    found = _open(path, columns)
    dtype = found.values.dtype
    named, grouped = found.ids is not None, found.groups is not None
    return EmbeddingShard(
        path, *found.shape, dtype, named, grouped, found.provenance, columns, found.made_of, found.stamps
    )


def read_embeddings(path: Place | str, *, column: str | None = None) -> EmbeddingFile:
    """Read raw embeddings ``(N, D)``; axes of length 1 beyond the first are dropped.

    Files with several arrays or columns need one named ``embeddings`` or ``embedding``; one named ``groups`` beside it
    gives group ids, and one named ``id``, ``image_path`` or ``url`` names the rows.

    Args:
        path: A ``.safetensors``, ``.npy``, ``.npz``, ``.parquet`` or ``.pt`` file (tensors only; nothing is unpickled);
            of another machine its address, as text, and no ``.pt`` file.
        column: Another name of the array or column.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it is not a regular file, or a server does not give it.
        TypeError: If it does not hold floating-point numbers.
        ValueError: If the kind is unknown, the file is damaged or over a limit, or the shape is not ``(N, D)``.
        ImportError: If pyarrow is not installed for a Parquet file, or what reads an address is not.
    """
    path = parse_place(path)
    found = _open(path, Columns(column))
    if isinstance(found.groups, StoredWords):
        raise TypeError(f"{path}: groups: expected whole numbers, got texts.")
    rows = max(found.shape[0], 1)
    values = _call_reader(path, lambda: read_whole(found.values)).reshape(found.shape)
    groups = found.groups
    labels = None if groups is None else _call_reader(path, lambda: read_whole(groups)).reshape(len(values)).long()
    if found.ids is None:
        ids = list(Places(path.stem, 0, rows))
    else:
        ids = [name for part in _read_blocks(path, found.ids, rows) for name in _to_words(part)]
    check_unchanged(path, found.stamps)
    return EmbeddingFile(path, values, ids, found.ids is not None, labels, found.provenance)


class _OpenFile(NamedTuple):
    """The arrays of a file that are to be read."""

    values: Tensor | Stored
    shape: tuple[int, int]
    ids: Array | list[str] | None
    groups: Array | None
    provenance: Provenance
    made_of: object
    stamps: Stamps


def _open(path: Place, columns: Columns, fresh: bool = False) -> _OpenFile:
    """Read the header of a file, and find and check the arrays that are to be read."""
    stamps = [(path, look_up(path, fresh=fresh))]
    if path.suffix not in READERS:
        raise ValueError(f"{path}: expected a file ending in {list_suffixes()}.")
    arrays, about = _call_reader(path, lambda: READERS[path.suffix](path))
    beside = find_metadata(path, needed=columns.ids is not None or columns.groups is not None)
    if beside is not None:
        stamps.append((beside, look_up(beside, fresh=False)))
        arrays = _call_reader(beside, lambda: READERS[beside.suffix](beside))[0] | arrays
    value = _choose_array(path, arrays, columns.embeddings)
    shape = _check_shape(path, value)
    check_limit(path, "rows", shape[0])
    check_limit(path, "dimension", shape[1])
    groups = _get_array(path, arrays, columns.groups) if columns.groups else arrays.get(GROUPS)
    if groups is not None:
        groups = _check_groups(path, groups, shape[0])
    ids = _find_ids(path, arrays, about, columns.ids, value)
    if ids is not None and count_rows(ids) != shape[0]:
        raise ValueError(f"{path}: damaged: {count_rows(ids)} ids do not match its {shape[0]} embeddings.")
    return _OpenFile(value, shape, ids, groups, _read_provenance(path, about), about.get(MADE_OF), tuple(stamps))


def _call_reader(path: Place, read: Callable[[], T]) -> T:
    """Call a reader, and turn any failure of it into an error that names the file."""
    try:
        return read()
    except (RefusedError, ImportError):
        raise
    except Exception as error:
        if (failure := find_remote_error(error)) is not None:
            raise failure from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: cannot be read as {path.suffix} without unpickling ({reason[:120]}); "
            "save plain arrays or tensors."
        ) from None


def _read_blocks(
    path: Place, array: Array | list[str], rows: int, first: int | None = None, begin: int = 0
) -> Iterator[Tensor | list[str]]:
    """Read an array in blocks, as :func:`_call_reader` does."""
    own = getattr(array, "path", path)  # of a column that lies in another file
    blocks = read_blocks(array, rows, first, begin)
    while (block := _call_reader(own, lambda: next(blocks, None))) is not None:
        yield block


def _choose_array(path: Place, arrays: Mapping[str, Array], column: str | None) -> Tensor | Stored:
    """Choose the array of embeddings."""
    if column is not None:
        found = _get_array(path, arrays, column)
    elif key := next((key for key in KEYS if key in arrays), None):
        found = arrays[key]
    elif len(arrays) == 1:
        found = next(iter(arrays.values()))
    else:
        raise ValueError(
            f"{path}: expected one array or column, or one named {KEY!r}, got {_list_arrays(arrays)}; "
            "name one (--column)."
        )
    if isinstance(found, StoredWords):
        raise TypeError(f"{path}: expected floating-point raw embeddings, got a column of texts.")
    return found


def _get_array(path: Place, arrays: Mapping[str, Array], name: str) -> Array:
    if name not in arrays:
        raise ValueError(
            f"{path}: there is no array or column {name!r} of numbers or texts, but {_list_arrays(arrays)}."
        )
    return arrays[name]


def _list_arrays(arrays: Mapping[str, Array]) -> str:
    return f"{[format_value(name)[1:-1] for name in sorted(arrays)][:8]}"


def _check_shape(path: Place, value: Tensor | Stored) -> tuple[int, int]:
    """Refuse arrays that are no embeddings; return the shape without axes of length 1 beyond the first."""
    shape, dtype = _check_dense(path, value)
    if len(shape) > 2:
        shape = (shape[0], *(n for n in shape[1:] if n != 1))
    probe = _call_reader(path, lambda: torch.empty((1,) * len(shape), dtype=dtype).expand(shape))  # takes no memory
    check_matrix(probe, str(path))
    return shape[0], shape[1]


def _check_dense(path: Place, value: Tensor | Stored, what: str = "array") -> tuple[tuple[int, ...], torch.dtype]:
    """Refuse tensors without plain values, or that expand beyond the limit; return shape and type."""
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided:
            kind = "a nested tensor" if value.is_nested else value.layout
            raise ValueError(f"{path}: expected a dense {what}, got {kind}; save it with to_dense().")
        if value.device.type == "meta":
            raise ValueError(f"{path}: expected a dense {what}, got a tensor of the meta device, which has no values.")
        if value.is_quantized:
            raise ValueError(f"{path}: expected a dense {what}, got quantised values; save it with dequantize().")
    shape, dtype = _call_reader(path, lambda: (tuple(value.shape), value.dtype))
    check_expansion(path, math.prod(shape) * dtype.itemsize)
    return shape, dtype


def _check_groups(path: Place, groups: Array, rows: int) -> Array:
    if isinstance(groups, StoredWords):
        shape: tuple[int, ...] = (groups.count,)
    else:
        shape, dtype = _check_dense(path, groups, "array of groups")
        if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            raise TypeError(f"{path}: groups: expected whole numbers, got {dtype}.")
    if not shape or shape[0] != rows or math.prod(shape) != rows:
        raise ValueError(f"{path}: damaged: groups of shape {shape} do not match its {rows} embeddings.")
    return groups


def _find_ids(
    path: Place, arrays: Mapping[str, Array], about: Mapping[str, Any], column: str | None, embeddings: Tensor | Stored
) -> Array | list[str] | None:
    """Find the names of the rows: in the given column, in the file's own list, or in a usual column."""
    if column is not None:
        found = _get_array(path, arrays, column)
        if not _is_id_array(found):
            raise TypeError(f"{path}: ids: expected a column of texts or whole numbers, got another in {column!r}.")
        return found
    if own := about.get("ids"):
        wrong = next((row for row, one in enumerate(own) if not isinstance(one, str)), None)
        if wrong is not None:
            raise ValueError(f"{path}: damaged: the id of row {wrong} is {format_value(own[wrong])}; expected strings.")
        return list(own)
    usual = (arrays[name] for name in IDS if name in arrays and arrays[name] is not embeddings)
    return next((one for one in usual if _is_id_array(one)), None)


def _is_id_array(array: Array) -> bool:
    if isinstance(array, StoredWords):
        return True
    return len(array.shape) == 1 and not (array.dtype.is_floating_point or array.dtype.is_complex)


def _to_words(part: Tensor | list[str]) -> list[str]:
    return [str(one) for one in part.tolist()] if isinstance(part, Tensor) else part


def _read_provenance(path: Place, about: Mapping[str, Any]) -> Provenance:
    encoder_id = about.get("encoder_id")
    if encoder_id is not None and not all(isinstance(part, str) for part in encoder_id.values()):
        raise ValueError(f"{path}: damaged: encoder_id is {format_value(encoder_id)}; expected strings.")
    try:
        return Provenance(about.get("spec"), encoder_id, about.get("modality") or parse_modality(path))
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from None


def write_embeddings(
    path: Path | str,
    embeddings: Tensor,
    *,
    ids: Sequence[str] | None = None,
    groups: Tensor | None = None,
    provenance: Provenance = UNKNOWN,
    made_of: Sequence[Sequence[Any]] = (),
) -> None:
    """Write embeddings ``(N, D)`` as safetensors with ids, groups and provenance; whole or not at all.

    Args:
        path: The file.
        embeddings: The rows.
        ids: A name for each.
        groups: A group id for each.
        provenance: What they come from.
        made_of: The share of some samples that they are, as plain values.

    Raises:
        OSError: If the file cannot be written.
    """
    tensors = {KEY: embeddings}
    if groups is not None:
        tensors["groups"] = groups
    about = {"ids": None if ids is None else list(ids)} | provenance.describe()
    about |= {MADE_OF: list(made_of)} if made_of else {}
    write_tensors(path, tensors, {"format": FORMAT, "about": to_json(about)})
