"""Input checks and working precision shared by the pure functions."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

BLOCK_BYTES = 4 * 2**20
"""Rows are worked through in blocks of about this size, so that a block stays in the processor's cache."""
BLOCK_ROWS = 8192
"""The most rows of a block: a float32 sum over more loses digits."""
LEAST_NORM, MOST_NORM = 1e-15, 1e15
"""Norms of embeddings that are taken. Within them no square of a float32 entry that counts over- or underflows, so that
every function and metric is right; beyond them some would be wrong without a word, so all refuse alike."""


def check_matrix(embeddings: object, name: str = "embeddings", min_rows: int = 1) -> Tensor:
    """Refuse anything but a floating-point ``(N, D)`` tensor; values are not read, so a GPU is not waited for.

    Raises:
        TypeError: If ``embeddings`` is not a tensor of floating-point numbers.
        ValueError: If it is not two-dimensional, has no columns or fewer than ``min_rows`` rows.
    """
    if not isinstance(embeddings, Tensor):
        raise TypeError(
            f"{name}: expected a torch tensor of shape (N, D), got {type(embeddings).__name__}; "
            "convert it with torch.as_tensor."
        )
    if not embeddings.is_floating_point():
        raise TypeError(
            f"{name}: expected floating-point raw embeddings, got {embeddings.dtype}; "
            "pass the projection output before any quantisation."
        )
    if embeddings.ndim != 2 or embeddings.shape[1] == 0:
        raise ValueError(f"{name}: expected shape (N, D), got {tuple(embeddings.shape)}.")
    if len(embeddings) < min_rows:
        raise ValueError(f"{name}: expected at least {min_rows} samples, got {len(embeddings)}; add samples.")
    return embeddings.detach()


def check_same_dim(embeddings: Tensor, dim: int, name: str, other: str) -> None:
    """Refuse two sets of different dimension, naming both."""
    if embeddings.shape[-1] != dim:
        raise ValueError(
            f"{name} has dimension {embeddings.shape[-1]} and {other} has dimension {dim}; "
            "both must come from the same encoder."
        )


def within_range(norms: Tensor) -> Tensor:
    """Say of every norm whether its row is taken; NaN, infinity and zero are outside like all that is too far off."""
    return (norms >= LEAST_NORM) & (norms <= MOST_NORM)


def check_directions(norms: Tensor, name: str) -> None:
    """Refuse rows whose norm says that they hold NaN or infinity, or are zero."""
    _refuse(
        ~torch.isfinite(norms) | (norms == 0),
        name,
        "are zero or hold NaN or infinite values",
        "remove them, or look at the model that made them",
    )


def check_norms(norms: Tensor, name: str = "embeddings") -> None:
    """Refuse rows whose float64 norm says that they hold NaN or infinity, are zero, or are out of range.

    Raises:
        ValueError: If there are any.
    """
    outside = ~within_range(norms)
    if bool(outside.any()):
        check_directions(norms, name)
        _refuse(outside, name, f"have a norm outside {LEAST_NORM:g} to {MOST_NORM:g}", "rescale the embeddings")


def _refuse(bad: Tensor, name: str, what: str, advice: str) -> None:
    rows = bad.nonzero().flatten()
    if len(rows):
        raise ValueError(f"{name}: {len(rows)} of {len(bad)} rows {what} (first: row {int(rows[0])}); {advice}.")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with autocast off on every device: bf16 autocast errs by a tenth of a standard deviation."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with contextlib.ExitStack() as stack:
            for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return wrapper


def working(embeddings: Tensor) -> Tensor:
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
