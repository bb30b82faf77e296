"""Reading of batches of raw embeddings, with small ones joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from clipconformity.functional.validation import check_matrix, check_same_dim

MIN_ROWS = 512
"""Number of rows to which small batches are joined."""


def check_batches(source: Tensor | np.ndarray | Iterable[Tensor | np.ndarray]) -> Iterator[Tensor]:
    """Return one array, or several, as tensors ``(n, D)``.

    Raises:
        TypeError: If one is not a floating-point array.
        ValueError: If one is not two-dimensional.
    """
    parts = [source] if isinstance(source, (Tensor, np.ndarray)) else source
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind == "f":
            yield check_matrix(torch.tensor(part), "embeddings_or_batches", min_rows=0)
        else:
            yield check_matrix(part, "embeddings_or_batches", min_rows=0)  # refuses anything but a tensor


def join_batches(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Return the rows in order on the CPU, small batches joined: the overhead of a call exceeds its work on few rows.

    Raises:
        ValueError: If the dimensions of two batches differ.
    """
    held: Tensor | None = None
    count = dim = 0
    for batch in batches:
        dim = dim or batch.shape[1]
        check_same_dim(batch, dim, "a later batch", "the first")
        batch = batch.cpu()
        large = 2 * len(batch) >= MIN_ROWS
        if held is not None and count and (large or count + len(batch) > MIN_ROWS or batch.dtype != held.dtype):
            yield held[:count]
            count = 0
        if large:
            yield batch
            continue
        if held is None or batch.dtype != held.dtype:
            held = batch.new_empty(MIN_ROWS, dim)
        held[count : count + len(batch)] = batch
        count += len(batch)
    if held is not None:
        yield held[:count]
