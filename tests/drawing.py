"""Sets of rows that hypothesis draws, and what is done to them, for the property tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

SEEDS = st.integers(0, 2**31 - 1)
FACTORS = st.sampled_from([1e-6, 0.37, 2.0, 1e5])


class Shape(NamedTuple):
    """How rows are made."""

    count: int
    dim: int
    seed: int
    offset: float
    tails: bool
    repeats: int


shapes = st.builds(
    Shape,
    count=st.integers(12, 40),
    dim=st.integers(2, 8),
    seed=SEEDS,
    offset=st.sampled_from([0.0, 0.5, 2.0, 20.0]),
    tails=st.booleans(),
    repeats=st.integers(0, 4),
)


def draw_rows(shape: Shape, seed: int, count: int) -> Tensor:
    """Rows off the origin, of unequal axes, with heavy tails and repeats where the shape has them."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, shape.dim, generator=generator, dtype=torch.float64)
    if shape.tails:
        rows /= torch.rand(count, 1, generator=generator, dtype=torch.float64).clamp_min(0.02).sqrt()
    rows = rows * torch.linspace(0.3, 1.5, shape.dim, dtype=torch.float64) + shape.offset
    if shape.repeats:
        rows[-shape.repeats :] = rows[: shape.repeats]
    return rows


def assert_equal(found: Tensor, expected: Tensor, what: object, rel: float = 1e-6, size: float = 1.0) -> None:
    """Compare outputs; ``size`` is what they are small against."""
    torch.testing.assert_close(
        found.double(),
        expected.double(),
        rtol=rel,
        atol=1e-3 * rel * size,
        equal_nan=True,
        msg=lambda m: f"{what}: {m}",
    )


def stretch(sets: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """Give every row another length."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        rows * (0.25 + 4 * torch.rand(*rows.shape[:-1], 1, generator=generator, dtype=rows.dtype)) for rows in sets
    )


def rotation(dim: int, seed: int) -> Tensor:
    """An orthogonal matrix, of uniform distribution."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
