"""Columns of Parquet files, read with pyarrow a block of rows at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clipconformity.data.addresses import Place
from clipconformity.data.limits import RefusedError
from clipconformity.data.places import open_place
from clipconformity.data.remote import COLUMN_BYTES, HEADER_BYTES, ROW_BYTES
from clipconformity.data.stored import Array, split_rows
from clipconformity.data.untrusted import check_all_words

MIN_PYARROW = (14, 0, 1)
"""First version of pyarrow that unpickles nothing from a file: CVE-2023-47248 is fixed."""
BUFFER_BYTES = 2**20
"""Bytes read ahead; pyarrow would hold whole row groups."""


class MissingPyarrowError(ImportError):
    """pyarrow, which reads Parquet files, is not installed."""


def import_pyarrow(path: Place) -> tuple[Any, Any]:
    """Import pyarrow and its reader of Parquet files.

    Raises:
        MissingPyarrowError: If it is not installed.
        RefusedError: If its version may run code in a file.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPyarrowError(
            f"{path}: Parquet files are read with pyarrow; install it: pip install 'clipconformity[parquet]'."
        ) from None
    found = tuple(int(part) for part in re.findall(r"\d+", pyarrow.__version__)[:3])
    if found < MIN_PYARROW:
        raise RefusedError(
            f"{path}: pyarrow {pyarrow.__version__} may run code that a file holds (CVE-2023-47248); use "
            f"{'.'.join(map(str, MIN_PYARROW))} or newer."
        )
    return pyarrow, pyarrow.parquet


@contextmanager
def _open_parquet(path: Place, ahead: int = HEADER_BYTES, **settings: Any) -> Iterator[Any]:
    """Open a file; of a remote one pyarrow reads by the same blocks as others are read by."""
    _, parquet = import_pyarrow(path)
    if isinstance(path, Path):
        with parquet.ParquetFile(path, **settings) as file:
            yield file
        return
    with open_place(path, ahead) as source, parquet.ParquetFile(source, **settings) as file:
        yield file


def open_columns(path: Place) -> dict[str, Array]:
    """Return the columns of vectors, numbers and texts of a file; only the header is read.

    Raises:
        ImportError: If pyarrow is not installed.
        Exception: Any error of pyarrow, if the file is damaged.
    """
    pyarrow, _ = import_pyarrow(path)
    with _open_parquet(path) as file:
        count, schema = file.metadata.num_rows, file.schema_arrow
    found: dict[str, Array] = {}
    for field in schema:
        kind, types = getattr(field.type, "storage_type", field.type), pyarrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            if types.is_floating(kind.value_type) or types.is_integer(kind.value_type):
                fixed = kind.list_size if types.is_fixed_size_list(kind) else None
                found[field.name] = VectorColumn(path, field.name, count, kind.value_type, fixed)
        elif types.is_floating(kind) or types.is_integer(kind):
            found[field.name] = NumberColumn(path, field.name, count, kind)
        elif types.is_string(kind) or types.is_large_string(kind):
            found[field.name] = WordColumn(path, field.name, count, kind)
    return found


@dataclass(frozen=True)
class _Column:
    """A column of a file.

    Attributes:
        path: The file.
        name: The column's name.
        count: Number of rows in the header.
        kind: pyarrow's type of a value.
        ahead: Bytes that are fetched beyond those asked for, of a remote file.
    """

    ahead: ClassVar[int] = COLUMN_BYTES
    path: Place
    name: str
    count: int
    kind: Any

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return torch.from_numpy(np.empty(0, self.kind.to_pandas_dtype())).dtype

    def read_arrays(self, rows: int, first: int | None = None, begin: int = 0) -> Iterator[Any]:
        """Read the column as pyarrow's arrays, in blocks as of ``Stored.blocks``, whatever the groups of rows are.

        Raises:
            ValueError: If a row is null, or there are fewer than the header says.
        """
        with _open_parquet(self.path, self.ahead, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            groups, over = _read_groups(file.metadata, begin)
            found = file.iter_batches(batch_size=rows, row_groups=groups, columns=[self.name])
            batches = (batch.column(0) for batch in found)
            rest = next(batches, None)
            while rest is not None and over:
                over, rest = max(0, over - len(rest)), rest[over:]
                rest = rest if len(rest) else next(batches, None)
            for part in split_rows(self.count, rows, first, begin):
                wanted, taken = part.stop - part.start, []
                while wanted:
                    if rest is None:
                        raise ValueError(f"it ends {self.count - part.stop + wanted} rows too early")
                    taken.append(self._check_type(rest[:wanted]))
                    wanted, rest = wanted - len(taken[-1]), rest[wanted:]
                    rest = rest if len(rest) else next(batches, None)
                yield self._join_chunks(taken)

    def _check_type(self, values: Any) -> Any:
        if values.null_count:
            raise ValueError(f"{values.null_count} rows of the column {self.name[:60]!r} are null")
        return getattr(values, "storage", values)

    def _join_chunks(self, parts: list[Any]) -> Any:
        pyarrow, _ = import_pyarrow(self.path)
        plain = [part.dictionary_decode() if hasattr(part, "dictionary_decode") else part for part in parts]
        return plain[0] if len(plain) == 1 else pyarrow.concat_arrays(plain)


@dataclass(frozen=True)
class NumberColumn(_Column):
    """A column with a number in each row; a ``Stored`` of shape ``(N,)``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(N,)``."""
        return (self.count,)

    def blocks(self, rows: int, first: int | None = None, begin: int = 0) -> Iterator[Tensor]:
        """Read it in order, as of ``Stored.blocks``."""
        for values in self.read_arrays(rows, first, begin):
            yield _copy_tensor(values, (len(values),), self.dtype)


@dataclass(frozen=True)
class VectorColumn(_Column):
    """A column with a list of numbers of equal length in each row; a ``Stored`` of shape ``(N, D)``.

    Attributes:
        fixed: The length of the lists by their type, else that of the first row.
    """

    ahead: ClassVar[int] = ROW_BYTES
    fixed: int | None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """``(N, D)``; reads a row where the header does not give the length."""
        if self.fixed is not None or not self.count:
            return (self.count, self.fixed or 0)
        first = next(_Column(self.path, self.name, 1, self.kind).read_arrays(1))
        return (self.count, len(first.flatten()))

    def blocks(self, rows: int, first: int | None = None, begin: int = 0) -> Iterator[Tensor]:
        """Read it in order, as of ``Stored.blocks``.

        Raises:
            ValueError: If the lists differ in length, or numbers are null.
        """
        for lists in self.read_arrays(rows, first, begin):
            shape, numbers = (len(lists), self.shape[1]), lists.flatten()
            if self.fixed is None and not bool((lists.value_lengths().to_numpy() == shape[1]).all()):
                raise ValueError(f"the lists of the column {self.name[:60]!r} are not all of {shape[1]} numbers")
            if numbers.null_count:
                raise ValueError(f"{numbers.null_count} numbers of the column {self.name[:60]!r} are null")
            yield _copy_tensor(numbers, shape, self.dtype)


@dataclass(frozen=True)
class WordColumn(_Column):
    """A column with a text in each row; a ``StoredWords``."""

    def read_words(self, rows: int, first: int | None = None, begin: int = 0) -> Iterator[list[str]]:
        """Read it in order, as of ``StoredWords.words``.

        Raises:
            ValueError: If a text is too long, or has invalid characters.
        """
        for values in self.read_arrays(rows, first, begin):
            found = values.to_pylist()
            check_all_words(found, lambda _: f"{self.path}: column {self.name[:60]!r}")
            yield found


def _read_groups(metadata: Any, begin: int) -> tuple[list[int], int]:
    """The groups of rows from that of a row on, and how many rows stand before it there."""
    first, over = 0, begin
    while first < metadata.num_row_groups and over >= (size := metadata.row_group(first).num_rows):
        first, over = first + 1, over - size
    return list(range(first, metadata.num_row_groups)), over


def _copy_tensor(values: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Copy numbers out of pyarrow's memory, which is read-only."""
    found = torch.empty(shape, dtype=dtype)
    found.view(-1).numpy()[:] = values.to_numpy(zero_copy_only=False)
    return found
