"""Small batches that wait to be taken in together: a call costs more than its work on few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.stream.chunks import MAX_ROWS, LabelledRows

MAX_BYTES = 8 * 2**20
"""Memory of the rows that wait, at the most."""


class Pending:
    """Rows that came and are not in the state yet, in memory of a fixed size.

    Whoever reads the state adds them first. Batches that wait together are of one kind: of one type and device, and
    with the same labels.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, 0)
        self._kind: tuple[object, ...] = ()
        self._parts: list[tuple[int, LabelledRows]] = []  # each with the number of rows up to its end

    @property
    def count(self) -> int:
        """Number of rows that wait."""
        return self._parts[-1][0] if self._parts else 0

    def append(self, rows: LabelledRows) -> bool:
        """Copy a batch, if it fits; an interrupt leaves it out or takes it in.

        Returns:
            Whether it fits: beside those that wait, or, where none does, into half of the memory.
        """
        values, start, kind = rows.values, self.count, _describe(rows)
        end = start + values.shape[0]
        if not start:
            if 2 * end > _max_rows(values):
                return False
            self._open(values, kind)
        elif kind != self._kind or end > self._buffer.shape[0]:
            return False
        held = self._buffer[start:end].copy_(values)
        self._parts.append((end, rows._replace(values=held).copy_labels()))
        return True

    def _open(self, values: Tensor, kind: tuple[object, ...]) -> None:
        """Prepare for rows of this kind."""
        if kind[:3] != self._kind[:3]:
            with torch.inference_mode(False):  # a tensor made inside could not be written to outside
                self._buffer = values.new_empty(_max_rows(values), values.shape[1])
        self._kind = kind

    def read(self) -> LabelledRows:
        """Read what waits; it is written over after the next :meth:`clear`."""
        return LabelledRows.join_labels([part for _, part in self._parts], self._buffer[: self.count])

    def clear(self) -> None:
        """Forget what waits."""
        self._parts = []


def _max_rows(values: Tensor) -> int:
    """Find how many rows fit into the memory."""
    return max(1, min(MAX_ROWS, MAX_BYTES // max(1, values.shape[1] * values.element_size())))


def _describe(rows: LabelledRows) -> tuple[object, ...]:
    """Describe what batches that wait together have in common."""
    values, grouped = rows.values, rows.grouped
    return values.shape[1], values.dtype, values.device, grouped, *(label is None for label in rows[1:-1])
