"""What the functions of geometry share: checked rows, unit rows, means, covariances and seeded draws."""

from __future__ import annotations

import contextlib
import functools
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
        centered = block.double() - mean
        total.addmm_(centered.T, centered)
    return mean, total / (len(values) - 1)


def permuted_columns(values: Tensor, generator: torch.Generator) -> Tensor:
    """A copy with every column permuted on its own: the same marginals, no correlation but by chance."""
    result = torch.empty_like(values)
    for column in range(values.shape[1]):
        order = torch.randperm(len(values), generator=generator, device=generator.device)
        result[:, column] = values[order.to(values.device), column]
    return result


P = ParamSpec("P")

R = TypeVar("R")

BLOCK_BYTES = 4 * 2**20
"""Rows are worked through in blocks of about this size, so that a block stays in the processor's cache."""

BLOCK_ROWS = 8192
"""The most rows of a block: a float32 sum over more loses digits."""


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
