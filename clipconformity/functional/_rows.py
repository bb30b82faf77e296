"""What the functions of geometry share: checked rows, unit rows, means, covariances and seeded draws."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional._checks import blocks, check_matrix, check_norms, check_same_dim, working


def check_rows(embeddings: object, name: str = "embeddings", min_rows: int = 1) -> Tensor:
    """Refuse anything but finite, non-zero rows ``(N, D)``; give them back in working precision, without their graph.

    Raises:
        TypeError: If ``embeddings`` is not a floating-point tensor.
        ValueError: If the shape does not fit, there are too few rows, or a row is zero, NaN or infinite.
    """
    values = working(check_matrix(embeddings, name, min_rows))
    norms = [torch.linalg.vector_norm(block, dim=1, dtype=torch.float64) for block in blocks(values)]
    check_norms(torch.cat(norms) if norms else values.new_zeros(0), name)
    return values


def check_pairs(image: Tensor, text: Tensor, min_rows: int = 1, advice: str = "") -> tuple[Tensor, Tensor]:
    """Refuse anything but two checked sets of equal length and dimension.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If a set is bad in itself, or lengths or dimensions differ.
    """
    pair = check_rows(image, "image", min_rows), check_rows(text, "text", min_rows)
    check_same_dim(pair[0], pair[1].shape[1], "image", "text")
    if len(image) != len(text):
        raise ValueError(
            f"image has {len(image)} rows and text has {len(text)}; "
            f"expected pairs, row i of one belonging to row i of the other.{advice}"
        )
    return pair


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
        centered = block.double() - mean
        total.addmm_(centered.T, centered)
    return mean, total / (len(values) - 1)


def check_spread(total_variance: Tensor, mean: Tensor, dtype: torch.dtype, name: str = "embeddings") -> None:
    """Refuse a set whose spread is no more than the rounding of its entries.

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


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """Take the given generator, or a freshly seeded one so that the same data gives the same result."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def permuted_columns(values: Tensor, generator: torch.Generator) -> Tensor:
    """A copy with every column permuted on its own: the same marginals, no correlation but by chance."""
    result = torch.empty_like(values)
    for column in range(values.shape[1]):
        order = torch.randperm(len(values), generator=generator, device=generator.device)
        result[:, column] = values[order.to(values.device), column]
    return result
