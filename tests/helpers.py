"""Oracles and sources of samples that share no code with the library."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor


def double(values: Tensor) -> np.ndarray:
    """Values as float64 numpy."""
    return values.detach().double().cpu().numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_conformity(rows: Tensor, reference: Tensor | None = None) -> np.ndarray:
    """Mean over the whole cosine matrix in float64, the diagonal left out inside the own set."""
    u = unit(double(rows))
    if reference is not None:
        return (u @ unit(double(reference)).T).mean(1)
    matrix = u @ u.T
    np.fill_diagonal(matrix, np.nan)
    return np.nanmean(matrix, axis=1)


def brute_self_conformity(rows: Tensor) -> float:
    u = unit(double(rows))
    return float((u @ u.T)[~np.eye(len(u), dtype=bool)].mean())


def ellipsoid_rows(count: int, dim: int, generator: torch.Generator, offset: float = 1.0) -> Tensor:
    """Raw embeddings off the origin, of unequal spread in each dimension and of unequal length."""
    spread = torch.linspace(0.3, 1.5, dim)
    rows = torch.randn(count, dim, generator=generator) * spread + offset
    return rows * (2 + torch.rand(count, 1, generator=generator))


def rows_with_cosine(cosine: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """Raw embeddings (N, dim) with the given cosine (N,) to the first axis, uniform around it, of varied length."""
    around = torch.randn(len(cosine), dim - 1, generator=generator, dtype=torch.float64)
    around /= torch.linalg.vector_norm(around, dim=1, keepdim=True)
    c = cosine.double()[:, None]
    length = 8 + torch.rand(len(cosine), 1, generator=generator, dtype=torch.float64)
    return (length * torch.cat([c, (1 - c.square()).sqrt() * around], 1)).float()


def gaussian_kl(shift: float, width: float) -> float:
    """KL(N(shift, width^2) || N(0, 1)) in nats."""
    return 0.5 * (width**2 + shift**2 - 1) - math.log(width)


def shift_for(kl: float, width: float) -> float:
    """Distance of the means in standard deviations of Q at which the Gaussian KL is ``kl``."""
    return math.sqrt(2 * kl - (width**2 - 1 - 2 * math.log(width)))


def start_ranks(worker: Callable[..., Any], arguments: tuple[Any, ...], count: int) -> None:
    """Run ``worker(rank, *arguments)`` in so many processes, forked from one that has imported what they need."""
    multiprocessing.set_forkserver_preload(["torch", "torchmetrics", "scipy.special", "clipconformity.metrics"])
    mp.start_processes(worker, arguments, nprocs=count, start_method="forkserver")


def check_score(values: dict[str, Any], count: int) -> None:
    """The core figures of a score, as plain values, are there and finite."""
    assert values["count"] == count
    of_conformity = ("conformity_mean", "self_conformity_mean", "typicality_shift", "conformity_kl")
    for name in (*of_conformity, "variety_ratio", "norm_mean"):
        assert values[name] is not None, name
        assert math.isfinite(values[name]), name
    assert -1 <= values["conformity_mean"] <= 1
    assert values["verdict"].keys() == {"typical", "varied"}
