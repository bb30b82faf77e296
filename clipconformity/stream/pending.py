"""Small batches that wait to be taken in together: a call costs more than its work on few rows."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.data.interrupts import defer_signals
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
        self._parts: list[LabelledRows] = []
        self.count = 0

    def fits(self, rows: LabelledRows) -> bool:
        """Whether a batch can wait beside those that do."""
        if not self._parts:
            return len(rows.values) <= _max_rows(rows.values) // 2
        return self.count + len(rows.values) <= len(self._buffer) and _kind(rows) == _kind(self._parts[0])

    def append(self, rows: LabelledRows) -> None:
        """Copy a batch that fits."""
        values, end = rows.values, self.count + len(rows.values)
        if not self._parts and _layout(values) != _layout(self._buffer):
            with torch.inference_mode(False):  # a tensor made inside could not be written to outside
                self._buffer = values.new_empty(_max_rows(values), values.shape[1])
        self._buffer[self.count : end] = values
        part = rows._replace(values=self._buffer[self.count : end]).copy_labels()
        with defer_signals():
            self._parts.append(part)
            self.count = end

    def read(self) -> LabelledRows:
        """Read what waits; it is written over after the next :meth:`clear`."""
        return LabelledRows.join_labels(self._parts, self._buffer[: self.count])

    def clear(self) -> None:
        """Forget what waits."""
        self.count = 0
        self._parts = []


def _max_rows(values: Tensor) -> int:
    """Find how many rows fit into the memory."""
    return max(1, min(MAX_ROWS, MAX_BYTES // max(1, values.shape[1] * values.element_size())))


def _layout(values: Tensor) -> tuple[object, ...]:
    return values.shape[1], values.dtype, values.device


def _kind(rows: LabelledRows) -> tuple[object, ...]:
    return _layout(rows.values), rows.grouped, *(part is None for part in rows)
