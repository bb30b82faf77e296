"""Input checks and working precision shared by the pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.linalg import blocks, to_working_precision

MIN_NORM, MAX_NORM = 1e-15, 1e15
"""Valid norms of embeddings. Inside this range no relevant square of a float32 entry over- or underflows, so that every
function and metric is accurate; outside, some would be silently wrong, so all raise an error."""


def check_matrix(embeddings: object, name: str = "embeddings", min_rows: int = 1) -> Tensor:
    """Refuse anything but a floating-point ``(N, D)`` tensor; values are not read, so a GPU is not synchronised.

    Raises:
        TypeError: If ``embeddings`` is not a tensor of floating-point numbers.
        ValueError: If it is not two-dimensional, has no columns or fewer than ``min_rows`` rows.
    """
    if not isinstance(embeddings, Tensor):
        raise TypeError(
            f"{name}: expected a torch tensor of shape (N, D), got {type(embeddings).__name__}; "
            "convert it with torch.as_tensor."
        )
    if embeddings.is_nested or embeddings.layout != torch.strided or embeddings.device.type == "meta":
        kind = "nested" if embeddings.is_nested else "meta" if embeddings.device.type == "meta" else embeddings.layout
        raise TypeError(f"{name}: expected a dense tensor of shape (N, D), got a {kind} one; give plain values.")
    if embeddings.is_floating_point() and embeddings.element_size() < 2:
        raise TypeError(f"{name}: expected at least 16 bits, got {embeddings.dtype}; convert it with .float().")
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


def is_in_range(norms: Tensor) -> Tensor:
    """Whether each norm is in the valid range; NaN, infinity and zero are not."""
    return (norms >= MIN_NORM) & (norms <= MAX_NORM)


def check_directions(norms: Tensor, name: str) -> None:
    """Refuse rows that by their norm are zero or hold NaN or infinity."""
    _refuse(
        ~torch.isfinite(norms) | (norms == 0),
        name,
        "are zero or hold NaN or infinite values",
        "remove them, or look at the model that made them",
    )


def check_norms(norms: Tensor, name: str = "embeddings") -> None:
    """Refuse rows that by their float64 norm are zero, out of range, or hold NaN or infinity.

    Raises:
        ValueError: If there are any.
    """
    outside = ~is_in_range(norms)
    if bool(outside.any()):
        check_directions(norms, name)
        _refuse(outside, name, f"have a norm outside {MIN_NORM:g} to {MAX_NORM:g}", "rescale the embeddings")


def _refuse(bad: Tensor, name: str, what: str, advice: str) -> None:
    rows = bad.nonzero().flatten()
    if len(rows):
        raise ValueError(f"{name}: {len(rows)} of {len(bad)} rows {what} (first: row {int(rows[0])}); {advice}.")


def check_rows(embeddings: object, name: str = "embeddings", min_rows: int = 1) -> Tensor:
    """Refuse anything but finite, non-zero rows ``(N, D)``; return them detached, in working precision.

    Raises:
        TypeError: If ``embeddings`` is not a floating-point tensor.
        ValueError: If the shape does not fit, there are too few rows, or a row is zero, NaN or infinite.
    """
    values = to_working_precision(check_matrix(embeddings, name, min_rows))
    norms = [torch.linalg.vector_norm(block, dim=1, dtype=torch.float64) for block in blocks(values)]
    check_norms(torch.cat(norms) if norms else values.new_zeros(0), name)
    return values


def check_pairs(image: Tensor, text: Tensor, min_rows: int = 1, advice: str = "") -> tuple[Tensor, Tensor]:
    """Refuse anything but two checked sets of equal length and dimension.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If a set is invalid, or lengths or dimensions differ.
    """
    pair = check_rows(image, "image", min_rows), check_rows(text, "text", min_rows)
    check_same_dim(pair[0], pair[1].shape[1], "image", "text")
    if len(image) != len(text):
        raise ValueError(
            f"image has {len(image)} rows and text has {len(text)}; "
            f"expected pairs, row i of one belonging to row i of the other.{advice}"
        )
    return pair


def check_spread(total_variance: Tensor, mean: Tensor, dtype: torch.dtype, name: str = "embeddings") -> None:
    """Refuse a set whose spread is within the rounding of its entries.

    Args:
        total_variance: Trace of the covariance.
        mean: Mean of the rows, ``(D,)``.
        dtype: Type that the rows came in.
        name: Name of the argument.

    Raises:
        ValueError: If all samples are equal.
    """
    spread, length = float(total_variance) ** 0.5, float(torch.linalg.vector_norm(mean))
    if not spread > torch.finfo(dtype).eps * length:
        raise ValueError(
            f"{name}: expected samples that differ, got a spread of {spread:.1e} at a mean of norm {length:.1e}, "
            "which is no more than rounding; check that the samples are not all the same."
        )
