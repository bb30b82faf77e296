"""Interpolation of raw embeddings: slerp about the origin and vSLERP about a shifted one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.contrastive import check_mean
from clipconformity.functional.linalg import full_precision, result_dtype, to_working_precision, units
from clipconformity.functional.validation import check_directions, check_norms

SMALL = 1e-3
"""Squared angle below which a power series replaces sin(x)/x: the error of four terms is 3e-18 there."""
OPPOSITE = 1e-6
"""Distance from exactly opposite, in radians, within which the great circle counts as undetermined."""


class _Path(NamedTuple):
    """An interpolation as w_start * v0 + w_end * v1 + turn, each broadcast to ``(..., D)``."""

    start: Tensor
    end: Tensor
    turn: Tensor


@full_precision
def slerp(start: Tensor, end: Tensor, t: float | Tensor) -> Tensor:
    r"""Spherical linear interpolation of raw embeddings about the origin.

    .. math:: \frac{\sin((1-t)\omega)}{\sin\omega} v_0 + \frac{\sin(t\omega)}{\sin\omega} v_1, \quad
              \omega = 2\,\mathrm{atan2}(|a - b|, |a + b|)

    with a and b the unit directions of :math:`v_0` and :math:`v_1`. The formula is applied to the raw vectors, so
    vectors of equal norm stay on their sphere. Exact at t = 0 and 1, also for equal inputs. The weights are computed as
    smooth functions of the squared angle, in float64, so values and gradients are accurate down to an angle of 0, where
    they are those of linear interpolation.

    Opposite directions (within 1e-6 radians) have no unique great circle. There the path turns through the first
    coordinate axis that is nearest to perpendicular, and its norm changes linearly from one end to the other, so it
    never meets the origin.

    Args:
        start: Raw embeddings ``(..., D)``.
        end: Raw embeddings, broadcast against ``start``.
        t: Position, 0 at ``start`` and 1 at ``end``; a number or a tensor broadcast against ``(...)``. Values
            outside continue along the circle.

    Returns:
        ``(..., D)``; float32, or float64 for float64 input. Differentiable.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes do not fit, a vector is zero, NaN or infinite, or t is not finite.

    Source: K. Shoemake, *Animating Rotation with Quaternion Curves*, SIGGRAPH 1985.

    Example:
        >>> import torch
        >>> slerp(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]), 0.5)
        tensor([1.4142, 1.4142])
    """
    values, other = _check_ends(start, end)
    path = _path(values, other, _position(t, values), elementwise_angle=False)
    dtype = torch.promote_types(result_dtype(start), result_dtype(end))
    return (path.start * values + path.end * other + path.turn).to(start.device, dtype)


@full_precision
def vslerp(
    start: Tensor,
    end: Tensor,
    t: float | Tensor,
    mean: Tensor,
    alpha: float = 1.0,
    *,
    elementwise_angle: bool = False,
) -> Tensor:
    r"""vSLERP: spherical linear interpolation of raw embeddings about a point on the way to their modality's mean.

    .. math:: \alpha m + \mathrm{slerp}(v_0 - \alpha m,\; v_1 - \alpha m,\; t)

    Exact at t = 0 and 1, and equal to :func:`slerp` at alpha = 0. Opposite directions about :math:`\alpha m` are
    treated as in :func:`slerp`.

    The code published with the paper differs from its formula: it takes the arc cosine of the product of the
    normalised vectors element by element, without summing it to a dot product, so every dimension has its own angle,
    near :math:`\pi/2`. ``elementwise_angle=True`` reproduces that, for comparison with published pictures.

    Args:
        start: Raw embeddings ``(..., D)`` of one modality.
        end: Raw embeddings, broadcast against ``start``.
        t: Position, 0 at ``start`` and 1 at ``end``; a number or a tensor broadcast against ``(...)``.
        mean: Raw mean ``(D,)`` of the modality.
        alpha: Position of the centre as a share of the mean; 1 is the centre of the ellipsoid.
        elementwise_angle: Whether to compute angles as the published code does.

    Returns:
        ``(..., D)``; float32, or float64 for float64 input. Differentiable.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes do not fit, a vector is NaN or infinite or lies on the centre, or t or alpha is not
            finite.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> mean = torch.tensor([5.0, 5.0])
        >>> vslerp(torch.tensor([7.0, 5.0]), torch.tensor([5.0, 7.0]), 0.5, mean)
        tensor([6.4142, 6.4142])
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha: expected a finite number, got {alpha}.")
    values, other = _check_ends(start, end)
    center = alpha * check_mean(mean, values.shape[-1]).to(values)
    for name, rows in (("start", values), ("end", other)):
        check_directions(torch.linalg.vector_norm((rows - center).detach(), dim=-1).flatten(), f"{name} - alpha * mean")
    path = _path(values - center, other - center, _position(t, values), elementwise_angle)
    # The formula with collected terms: the centre's weight is exactly 0 at both ends, which are therefore exact.
    result = path.start * values + path.end * other + (1 - path.start - path.end) * center + path.turn
    dtype = torch.promote_types(result_dtype(start), result_dtype(end))
    return result.to(start.device, dtype)


def _check_ends(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Check both ends and broadcast them against each other, float64."""
    for name, value in (("start", start), ("end", end)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating-point tensor of shape (..., D), got {got}.")
        if value.ndim < 1 or value.shape[-1] == 0:
            raise ValueError(f"{name}: expected shape (..., D), got {tuple(value.shape)}.")
        norms = torch.linalg.vector_norm(to_working_precision(value.detach()), dim=-1, dtype=torch.float64)
        check_norms(norms.flatten(), name)
    if start.shape[-1] != end.shape[-1]:
        raise ValueError(
            f"start has dimension {start.shape[-1]} and end has dimension {end.shape[-1]}; "
            "both must come from the same encoder."
        )
    try:
        values, other = torch.broadcast_tensors(
            to_working_precision(start).double(), to_working_precision(end).double()
        )
    except RuntimeError as error:
        raise ValueError(
            f"start of shape {tuple(start.shape)} and end of shape {tuple(end.shape)} do not broadcast; "
            "give batches of equal shape, or one vector."
        ) from error
    return values, other


def _position(t: float | Tensor, values: Tensor) -> Tensor:
    """Check t; return it with a last dimension of 1, float64."""
    position = torch.as_tensor(t, dtype=torch.float64, device=values.device)
    if not bool(torch.isfinite(position.detach()).all()):
        raise ValueError("t: expected finite positions, got NaN or infinite ones.")
    return position[..., None]


def _path(values: Tensor, other: Tensor, t: Tensor, elementwise_angle: bool) -> _Path:
    """Weights of the two ends ``(..., 1)``, or ``(..., D)`` by element, and the turn ``(..., D)``."""
    a, b = units(values), units(other)
    apart, along = (a - b).square().sum(-1, keepdim=True), (a + b).square().sum(-1, keepdim=True)
    opposite = along.detach() < OPPOSITE**2
    if elementwise_angle:
        product = a * b
        apart, along = 1 - product, 1 + product
    square = _squared_angle(apart.masked_fill(opposite, 1.0), along.masked_fill(opposite, 1.0))
    weights = (s * _sinc(s.square() * square) / _sinc(square) for s in (1 - t, t))
    around = _turn(values, other, a, t)
    start, end = (torch.where(opposite, special, usual) for special, usual in zip(around, weights, strict=False))
    return _Path(start, end, torch.where(opposite, around.turn, 0.0))


def _squared_angle(apart: Tensor, along: Tensor) -> Tensor:
    """Squared angle 4 atan(sqrt(apart / along))^2: a smooth function of the ratio, down to 0."""
    ratio = apart / along
    small = ratio.detach() < SMALL / 10
    exact = 2 * torch.atan(ratio.masked_fill(small, 1.0).sqrt())
    series = 4 * ratio * (1 + ratio * (-2 / 3 + ratio * (23 / 45 - ratio * 44 / 105)))
    return torch.where(small, series, exact.square())


def _sinc(square: Tensor) -> Tensor:
    """Compute sin(x)/x from x^2, smooth at 0."""
    small = square.detach() < SMALL
    root = square.masked_fill(small, 1.0).sqrt()
    series = 1 - square / 6 * (1 - square / 20 * (1 - square / 42))
    return torch.where(small, series, root.sin() / root)


def _turn(values: Tensor, other: Tensor, a: Tensor, t: Tensor) -> _Path:
    """Path between opposite ends: half a turn through a perpendicular axis, with a linearly changing norm."""
    lengths = [torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True) for x in (values, other)]
    length = (1 - t) * lengths[0] + t * lengths[1]
    first = t <= 0.5
    start = torch.where(first, torch.cos(math.pi * t) * length / lengths[0], 0.0)
    end = torch.where(first, 0.0, torch.cos(math.pi * (1 - t)) * length / lengths[1])
    a = a.detach()
    axis = torch.zeros_like(a).scatter_(-1, a.abs().argmin(-1, keepdim=True), 1.0)
    axis = axis - (axis * a).sum(-1, keepdim=True) * a
    if a.shape[-1] > 1:
        axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
    return _Path(start, end, torch.sin(math.pi * torch.minimum(t, 1 - t)) * length * axis)
