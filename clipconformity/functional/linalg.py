"""What the functions of geometry share: checked rows, unit rows, means, covariances and seeded draws."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor


def units(values: Tensor) -> Tensor:
    """Rows over their norms, differentiable; the largest entry goes first, so that no square over- or underflows."""
    scaled = values / values.detach().abs().amax(-1, keepdim=True)
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)


def mean_of(values: Tensor) -> Tensor:
    """Mean of the rows in float64, ``(D,)``."""
    return values.mean(0, dtype=torch.float64)


def covariance_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(D,)`` and sample covariance ``(D, D)`` with N - 1, in float64, block by block."""
    mean = mean_of(values)
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=values.device)
    for block in blocks(values):
        add_gram(total, block.double() - mean)
    return mean, mirror_upper(total) / (len(values) - 1)


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add the Gram matrix of float64 rows ``(N, D)`` to the upper triangle of ``(D, D)`` in place.

    What is below the diagonal is not set: :func:`mirror_upper` gives the whole matrix.
    """
    for start, end in gram_panels(rows):
        total[start:end, start:].addmm_(rows[:, start:end].T, rows[:, start:])


def gram_panels(rows: Tensor) -> list[tuple[int, int]]:
    """Bands of the Gram matrix of rows, each taken from the diagonal on: on a CPU five eighths of the products."""
    dim = rows.shape[1]
    narrow = rows.device.type != "cpu" or dim < PANELS * MIN_PANEL or len(rows) < MIN_PANEL
    return [(0, dim)] if narrow else panels(dim)


def mirror_upper(upper: Tensor) -> Tensor:
    """Give the symmetric matrix of what is on and above the diagonal."""
    return upper.triu() + upper.triu(1).T


def gram(rows: Tensor) -> Tensor:
    """Sum of the outer products of float64 rows, ``(D, D)``."""
    total = rows.new_zeros(rows.shape[1], rows.shape[1])
    for block in rows.split(BLOCK_ROWS):
        add_gram(total, block)
    return mirror_upper(total)


def panels(dim: int) -> list[tuple[int, int]]:
    """First and last place of the bands that a triangular matrix is worked through in."""
    ends = [dim * part // PANELS for part in range(PANELS + 1)]
    return [(start, end) for start, end in itertools.pairwise(ends) if end > start]


def square_norms(rows: Tensor) -> Tensor:
    """Squared norm of every row, ``(N,)``, without the matrix of the squares."""
    return torch.linalg.vecdot(rows, rows)


def permuted_columns(values: Tensor, generator: torch.Generator) -> Tensor:
    """A copy with every column permuted on its own: the same marginals, no correlation but by chance."""
    turned = values.T.clone(
        memory_format=torch.contiguous_format
    )  # a column's entries side by side: fetched one by one they are a row apart
    for column in turned:
        order = torch.randperm(len(column), generator=generator, device=generator.device)
        column.copy_(column[order.to(column.device)])
    return turned.T.contiguous()


P = ParamSpec("P")

R = TypeVar("R")

BLOCK_BYTES = 4 * 2**20
"""Rows are worked through in blocks of about this size, so that a block stays in the processor's cache."""

BLOCK_ROWS = 8192
"""The most rows of a block: a float32 sum over more loses digits."""

PANELS = 4
"""Bands of a Gram matrix that are computed from the diagonal on: more are too narrow for the product to be fast."""
MIN_PANEL = 64
"""The fewest rows, and columns of a panel, for which panels are faster than the whole product."""


class _Scratch(threading.local):
    """Memory of a thread that is used again: fresh memory costs more than what small sums do with it."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}


_scratch = _Scratch()


def scratch(name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give memory of this thread under a name, of any content: it is what the last call of that name gave."""
    size = shape[0] * shape[1]
    if device.type != "cpu":  # its allocator reuses memory by itself
        return torch.empty(shape, dtype=dtype, device=device)
    held = _scratch.held.get((name, dtype))
    if held is None or held.numel() < size:
        with torch.inference_mode(False):  # a tensor made inside could not be written to outside
            held = _scratch.held[name, dtype] = torch.empty(size, dtype=dtype)
    return held[:size].view(shape)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with autocast off on every device: bf16 autocast errs by a tenth of a standard deviation."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with contextlib.ExitStack() as stack:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return wrapper


def to_working_precision(embeddings: Tensor) -> Tensor:
    """Give the tensor in the precision that its arithmetic runs in.

    Half precisions become float32. A GPU works in float64, where TF32 does not exist and these sums are bound
    by memory anyway; MPS has no float64 and the work moves to the CPU.
    """
    if embeddings.device.type == "mps":
        embeddings = embeddings.cpu()
    if embeddings.dtype == torch.float64 or embeddings.device.type != "cpu":
        return embeddings.double()
    return embeddings.float()


def blocks(embeddings: Tensor) -> list[Tensor]:
    """Split ``(N, D)`` into row blocks that fit the cache."""
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (embeddings.shape[1] * embeddings.element_size())))
    return list(embeddings.split(rows))


def result_dtype(embeddings: Tensor) -> torch.dtype:
    """Results come back in float32, or in float64 for float64 input."""
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32
