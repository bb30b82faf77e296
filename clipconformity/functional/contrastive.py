"""Contrastive losses of pairs, their parts, and the shift of a modality along its mean."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipconformity.functional.linalg import full_precision, result_dtype, to_working_precision, units
from clipconformity.functional.validation import check_pairs, check_rows, check_same_dim

BLOCK_ENTRIES = 2**22
"""Entries of the similarity matrix held at once."""


@full_precision
def nt_xent(image: Tensor, text: Tensor, logit_scale: float | Tensor = 100.0) -> Tensor:
    r"""NT-Xent, the loss that CLIP is trained with: mean of both directions of the cross entropy over one batch.

    .. math:: -\frac{1}{2N} \sum_i \left(\log \frac{e^{s \cos(v_i, w_i)}}{\sum_j e^{s \cos(v_i, w_j)}} +
              \log \frac{e^{s \cos(v_i, w_i)}}{\sum_j e^{s \cos(v_j, w_i)}}\right)

    It depends on N, about as log N for unrelated pairs: report N, and compare values at the same N only. The
    similarity matrix is computed in blocks of rows, which the backward pass computes again, so memory is
    O(N D). Differentiable, also in ``logit_scale``.

    Args:
        image: Image embeddings ``(N, D)`` of any scale, N >= 2.
        text: Text embeddings ``(N, D)``, row i belonging to row i of ``image``.
        logit_scale: The factor s on the cosine, above 0 (not its logarithm).

    Returns:
        A scalar >= 0 in nats; chance is log N.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If lengths or dimensions differ, there is only one pair, a row is zero, NaN or infinite, or
            ``logit_scale`` is not positive.

    Source: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021.

    Example:
        >>> import torch
        >>> nt_xent(torch.eye(4), torch.eye(4), logit_scale=2.0)  # log(1 + 3 exp(-2))
        tensor(0.3408)
    """
    check_pairs(image, text, 2)
    factor = float(logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale)
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"logit_scale: expected a positive number, got {factor}.")
    dtype = torch.promote_types(result_dtype(image), result_dtype(text))
    u, w = _unit_pairs(image, text)
    scale = torch.as_tensor(logit_scale, dtype=u.dtype, device=u.device)
    losses = [
        _checkpoint(_cross_entropy, rows, columns, start, scale)
        for whole, columns in ((u, w), (w, u))
        for start, rows in _row_blocks(whole)
    ]
    return (torch.stack(losses).sum() / (2 * len(u))).to(image.device, dtype)


def _unit_pairs(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    values, other = to_working_precision(image), to_working_precision(text)
    dtype = torch.promote_types(values.dtype, other.dtype)
    return units(values.to(dtype)), units(other.to(dtype))


def _row_blocks(rows: Tensor) -> list[tuple[int, Tensor]]:
    size = max(1, BLOCK_ENTRIES // len(rows))
    return [(start, rows[start : start + size]) for start in range(0, len(rows), size)]


def _checkpoint(function: Callable[..., Tensor], *args: Tensor | int) -> Tensor:
    """Call ``function`` without storing its intermediate values; the backward pass computes them again."""
    if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return function(*args)


def _cross_entropy(rows: Tensor, columns: Tensor, start: int, scale: Tensor) -> Tensor:
    """Sum over a block of rows of the cross entropy with the pair's own column, float64."""
    logits = scale * (rows @ columns.T)  # (b, N)
    return (logits.logsumexp(1) - logits.diagonal(start)).sum(dtype=torch.float64)


@full_precision
def left_out_losses(image: Tensor, text: Tensor, logit_scale: float) -> Tensor:
    """NT-Xent with each pair left out in turn, ``(N,)`` float64; arguments as of :func:`nt_xent`."""
    u, w = _unit_pairs(image, text)
    total, moved = (torch.zeros(len(u), dtype=torch.float64, device=u.device) for _ in range(2))
    for whole, columns in ((u, w), (w, u)):
        for start, rows in _row_blocks(whole):
            logits = (logit_scale * (rows @ columns.T)).double()  # (b, N)
            log_sum = logits.logsumexp(1, keepdim=True)
            total[start : start + len(rows)] += log_sum[:, 0] - logits.diagonal(start)
            # How far each row's sum falls without each column; without its largest, the rest is summed again.
            largest = logits.argmax(1, keepdim=True)
            change = torch.log1p(-(logits - log_sum).exp().scatter(1, largest, 0.0))
            rest = logits.scatter(1, largest, -math.inf).logsumexp(1, keepdim=True)
            change.scatter_(1, largest, rest - log_sum)
            change.diagonal(start).zero_()  # a pair is left out whole
            moved += change.sum(0)
    return (total.sum() - total + moved) / (2 * (len(u) - 1))


def _log_affinity(rows: Tensor, whole: Tensor, start: int) -> Tensor:
    """Log of the sum of exp(-2 |u - u'|^2) over a block of rows, without the pairs of a row with itself."""
    exponent = 4 * (rows @ whole.T) - 4  # (b, N): |u - u'|^2 = 2 - 2 cos
    own = torch.zeros_like(exponent, dtype=torch.bool)
    own.diagonal(start).fill_(True)
    return exponent.masked_fill(own, -math.inf).double().flatten().logsumexp(0)


@full_precision
def alignment(image: Tensor, text: Tensor) -> Tensor:
    r"""Alignment of pairs: the mean squared distance of their unit embeddings. Low is aligned.

    .. math:: \frac1N \sum_i |u_i - w_i|^2 = 2 - 2\,\mathrm{mean} \cos(v_i, w_i)

    Args:
        image: Image embeddings ``(N, D)`` of any scale.
        text: Text embeddings ``(N, D)``, row i belonging to row i of ``image``.

    Returns:
        A scalar in [0, 4]. Differentiable, with gradient 0 at equal directions.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If lengths or dimensions differ, or a row is zero, NaN or infinite.

    Source: Wang and Isola, *Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere*, ICML 2020.

    Example:
        >>> import torch
        >>> alignment(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(1.)
    """
    check_pairs(image, text)
    dtype = torch.promote_types(result_dtype(image), result_dtype(text))
    u, w = _unit_pairs(image, text)
    return (u - w).square().sum(1).mean(dtype=torch.float64).to(image.device, dtype)


@full_precision
def uniformity(embeddings: Tensor) -> Tensor:
    r"""Uniformity of one modality on the sphere, each sample with all others but itself. Low is spread out.

    .. math:: \log \frac{1}{N(N-1)} \sum_{i \ne j} e^{-2 |u_i - u_j|^2}

    Computed in blocks of rows, which the backward pass computes again, so memory is O(N D).

    Args:
        embeddings: Embeddings ``(N, D)`` of any scale, N >= 2.

    Returns:
        A scalar in [-8, 0]: 0 when all directions are equal, about -4 when they are uniform. Differentiable.

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If there are fewer than two, or a row is zero, NaN or infinite.

    Source: Wang and Isola, ICML 2020, with t = 2.

    Example:
        >>> import torch
        >>> uniformity(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor(-4.)
    """
    check_rows(embeddings, min_rows=2)
    u = units(to_working_precision(embeddings))
    parts = [_checkpoint(_log_affinity, rows, u, start) for start, rows in _row_blocks(u)]
    value = torch.stack(parts).logsumexp(0) - math.log(len(u)) - math.log(len(u) - 1)
    return value.to(embeddings.device, result_dtype(embeddings))


@full_precision
def shift(embeddings: Tensor, alpha: float, mean: Tensor | None = None) -> Tensor:
    r"""Shift raw embeddings along their mean: :math:`v - \alpha m`.

    At alpha 0 the embeddings are as they were, at alpha 1 they are centred on the origin, below 0 they are further
    off it. The difference is taken in float64.

    Args:
        embeddings: Raw embeddings ``(N, D)`` of one modality.
        alpha: Share of the mean that is subtracted.
        mean: Raw mean ``(D,)``; by default the mean of ``embeddings``.

    Returns:
        ``(N, D)``; float32, or float64 for float64 input. Differentiable.

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If a shape does not fit, alpha or the mean is not finite, or a row is zero, NaN or infinite.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> shift(torch.tensor([[3.0, 0.0], [1.0, 2.0]]), 0.5)
        tensor([[ 2.0000, -0.5000],
                [ 0.0000,  1.5000]])
    """
    check_rows(embeddings)
    if not math.isfinite(alpha):
        raise ValueError(f"alpha: expected a finite number, got {alpha}.")
    values = to_working_precision(embeddings).double()
    center = values.mean(0) if mean is None else check_mean(mean, values.shape[1]).to(values)
    return (values - alpha * center).to(embeddings.device, result_dtype(embeddings))


def check_mean(mean: object, dim: int) -> Tensor:
    """Refuse anything but a finite floating-point vector ``(dim,)``; return it in working precision.

    Raises:
        TypeError: If it is not a floating-point tensor.
        ValueError: If its shape does not fit, or it is not finite.
    """
    if not isinstance(mean, Tensor) or not mean.is_floating_point():
        got = mean.dtype if isinstance(mean, Tensor) else type(mean).__name__
        raise TypeError(f"mean: expected a floating-point tensor of shape ({dim},), got {got}.")
    if mean.ndim != 1:
        raise ValueError(f"mean: expected shape ({dim},), got {tuple(mean.shape)}.")
    check_same_dim(mean, dim, "mean", "embeddings")
    if not bool(torch.isfinite(mean.detach()).all()):
        raise ValueError("mean: expected finite values, got NaN or infinite ones.")
    return to_working_precision(mean)
