"""Arrays in files, read in blocks of rows: a memory map of the whole file would count as memory in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor


class Stored(Protocol):
    """An array of numbers in a file whose header was read, but not its values."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, rows first."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of its values."""

    def blocks(self, rows: int, first: int | None = None, begin: int = 0) -> Iterator[Tensor]:
        """Read it in order, from the row ``begin`` on: ``first`` rows, then ``rows`` at a time, then what is left.

        Each block is new memory.
        """


@runtime_checkable
class StoredWords(Protocol):
    """A column of texts in a file."""

    @property
    def count(self) -> int:
        """Number of its rows."""

    def read_words(self, rows: int, first: int | None = None, begin: int = 0) -> Iterator[list[str]]:
        """Read it in order, in blocks as of :meth:`Stored.blocks`."""


Array: TypeAlias = "Tensor | Stored | StoredWords"
"""An array of a file: in memory, or read on demand."""


def split_rows(count: int, rows: int, first: int | None = None, begin: int = 0) -> Iterator[slice]:
    """Cut the rows from ``begin`` to ``count`` into blocks: ``first``, then ``rows`` at a time, then what is left."""
    start, size = begin, first or rows
    while start < count:
        stop = min(start + size, count)
        yield slice(start, stop)
        start, size = stop, rows


@dataclass(frozen=True)
class StoredRows:
    """An array stored by rows; a :class:`Stored`.

    Attributes:
        opened: Opens the file at its first row.
        shape: Rows first.
        dtype: The type of its values.
        foreign: NumPy's type of the values where their byte order is not the native one.
    """

    opened: Callable[[], IO[bytes]]
    shape: tuple[int, ...]
    dtype: torch.dtype
    foreign: np.dtype | None = None

    def blocks(self, rows: int, first: int | None = None, begin: int = 0) -> Iterator[Tensor]:
        """Read it in order, as of :meth:`Stored.blocks`.

        Raises:
            ValueError: If the file ends too early.
        """
        with self.opened() as file:
            if begin:  # of a compressed member what stands before is read over
                file.seek(begin * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize, os.SEEK_CUR)
            for part in split_rows(self.shape[0], rows, first, begin):
                yield self._read(file, part.stop - part.start)
            file.read(1)  # a zip member, whose checksum is compared at its end

    def _read(self, file: IO[bytes], rows: int) -> Tensor:
        shape = (rows, *self.shape[1:])
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        return decode_numbers(read_bytes(file, size), self.dtype, self.foreign).reshape(shape)


@dataclass(frozen=True)
class StoredColumns:
    """An array stored by columns, NumPy's Fortran order; a :class:`Stored` with the same attributes.

    Axes of length 1 do not affect the order, and are ignored.
    """

    opened: Callable[[], IO[bytes]]
    shape: tuple[int, ...]
    dtype: torch.dtype
    foreign: np.dtype | None = None

    def blocks(self, rows: int, first: int | None = None, begin: int = 0) -> Iterator[Tensor]:
        """Read it in order, as of :meth:`Stored.blocks`; each block takes a piece of every column.

        Raises:
            ValueError: If the file ends too early.
        """
        count, columns = self.shape[0], int(np.prod(self.shape[1:], dtype=np.int64))
        with self.opened() as file:
            place, size = file.tell(), self.dtype.itemsize
            for part in split_rows(count, rows, first, begin):
                length = part.stop - part.start
                block = torch.empty(length, columns, dtype=self.dtype)
                for column in range(columns):
                    file.seek(place + (column * count + part.start) * size)
                    block[:, column] = decode_numbers(read_bytes(file, length * size), self.dtype, self.foreign)
                yield block


def read_bytes(file: IO[bytes], size: int) -> Tensor:
    """Read ``size`` bytes into new memory, uint8 ``(size,)``.

    Raises:
        ValueError: If the file ends too early.
    """
    found = torch.empty(size, dtype=torch.uint8)
    view, done = memoryview(found.numpy()), 0  # type: ignore[arg-type]
    while done < size:
        more = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not more:
            raise ValueError(f"it ends {size - done} bytes too early")
        done += more
    return found


def decode_numbers(content: Tensor, dtype: torch.dtype, foreign: np.dtype | None) -> Tensor:
    """Decode bytes to numbers ``(n,)``."""
    if foreign is None:
        return content.view(dtype)
    return torch.from_numpy(content.numpy().view(foreign).astype(foreign.newbyteorder("=")))


def read_blocks(
    array: Array | list[str], rows: int, first: int | None = None, begin: int = 0
) -> Iterator[Tensor | list[str]]:
    """Read an array or a list in blocks, whether it is held or not."""
    if isinstance(array, (Tensor, list)):
        yield from (array[part] for part in split_rows(len(array), rows, first, begin))
    elif isinstance(array, StoredWords):
        yield from array.read_words(rows, first, begin)
    else:
        yield from array.blocks(rows, first, begin)


def read_whole(array: Tensor | Stored) -> Tensor:
    """Read an array at once."""
    if isinstance(array, Tensor):
        return array
    blocks = list(array.blocks(max(array.shape[0], 1)))
    return blocks[0] if blocks else torch.empty(array.shape, dtype=array.dtype)


def count_rows(array: Array | list[str]) -> int:
    """Number of rows of an array or a list; 0 for a scalar."""
    if isinstance(array, list):
        return len(array)
    if isinstance(array, StoredWords):
        return array.count
    return array.shape[0] if len(array.shape) else 0
