"""Reading of batches of raw embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from clipconformity.functional.validation import check_matrix


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
