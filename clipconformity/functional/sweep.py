"""Loss and divergence of the modalities under shifts along their means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.conformity import conformity
from clipconformity.functional.contrastive import left_out_losses, nt_xent
from clipconformity.functional.density import CELLS, Grid
from clipconformity.functional.divergence import (
    MIN_SAMPLES,
    Divergences,
    Readout,
    Side,
    compute_plug_in,
    correct_bias,
    is_lower_bound,
    make_grid,
    plan_readout,
    warn_lower_bound,
)
from clipconformity.functional.linalg import full_precision, mean_of, result_dtype
from clipconformity.functional.resampling import (
    MIN_RESAMPLES,
    basic_interval,
    check_level,
    check_resamples,
    count_draws,
    jackknife,
    make_generator,
    quantile_levels,
)
from clipconformity.functional.validation import check_norms, check_pairs, check_spread

CHUNK_ENTRIES = 2**21
"""Redrawn conformities held at once."""


class ShiftSweep(NamedTuple):
    """Loss and KL over alpha; every vector has the length A of ``alphas``; intervals at 95% by default."""

    alphas: Tensor
    loss: Tensor
    """NT-Xent of all N pairs, in nats."""
    loss_low: Tensor
    loss_high: Tensor
    loss_difference: Tensor
    """Loss minus the loss at alpha 0, whether or not 0 is among ``alphas``."""
    loss_difference_low: Tensor
    """Paired interval of the difference: above 0 where the loss is significantly higher than at alpha 0."""
    loss_difference_high: Tensor
    kl: Tensor
    """KL(image || text) between the own-set conformities, in nats, bias-corrected, not below 0."""
    kl_low: Tensor
    kl_high: Tensor
    kl_difference: Tensor
    """KL minus the KL at alpha 0."""
    kl_difference_low: Tensor
    kl_difference_high: Tensor
    kl_lower_bound: Tensor
    """Where the two distributions barely overlap, so that the KL is only a lower bound, ``(A,)`` bool."""
    pairs: int
    """Number of pairs N, on which the loss depends."""


class ShiftGrid(NamedTuple):
    """Loss and KL over separate shifts of the modalities."""

    image_alphas: Tensor
    text_alphas: Tensor
    loss: Tensor
    """NT-Xent of all N pairs, in nats, ``(A, B)``: a row for each image alpha, a column for each text alpha."""
    kl: Tensor
    """KL(image || text) between the own-set conformities, in nats, bias-corrected, ``(A, B)``."""
    kl_lower_bound: Tensor
    """Where the two distributions barely overlap, so that the KL is only a lower bound, ``(A, B)`` bool."""
    pairs: int
    """Number of pairs N, on which the loss depends."""


class Pairs(NamedTuple):
    """Checked pairs, float64."""

    image: Tensor
    text: Tensor

    def shift(self, image_alpha: float, text_alpha: float) -> Pairs:
        """Shift each modality along its own mean, and refuse a shift that takes rows to the origin."""
        result = []
        for name, rows, alpha in zip(self._fields, self, (image_alpha, text_alpha), strict=True):
            moved = rows - alpha * rows.mean(0)
            check_norms(torch.linalg.vector_norm(moved, dim=1), f"{name} shifted by alpha={alpha:g}")
            result.append(moved)
        return Pairs(*result)

    def to(self, dtype: torch.dtype) -> Pairs:
        """Return the pairs in another precision."""
        return Pairs(self.image.to(dtype), self.text.to(dtype))


class _Compared(NamedTuple):
    """A divergence at one alpha: its read-out settings and plug-in value."""

    grid: Grid
    readout: Readout
    plain: Divergences
    lower_bound: bool

    @property
    def kl(self) -> Tensor:
        """Bias-corrected KL(image || text), a scalar."""
        return correct_bias(self.readout, self.plain).forward[0]


class _Draws(NamedTuple):
    """Bootstrap draws of pairs, and the changes of the raw means: shared by all alphas."""

    chosen: Tensor
    """Pairs drawn, ``(R, N)``."""
    moves: Pairs
    """Redrawn mean minus the mean, ``(R, D)`` for each modality."""


@full_precision
def shift_sweep(
    image: Tensor,
    text: Tensor,
    alphas: Sequence[float] | Tensor,
    logit_scale: float = 100.0,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    generator: torch.Generator | None = None,
) -> ShiftSweep:
    r"""Sweep the shift :math:`v - \alpha m` over alpha: NT-Xent, and the KL between the modalities' conformities.

    Both modalities are shifted by the same share of their own raw means. The paper finds both curves lowest at alpha 0,
    the model itself. The paired intervals of the difference from alpha 0 show whether that holds for given pairs.

    The KL is KL(image || text) of the conformities inside the own sets, by the estimator of :func:`conformity_kl`. Its
    intervals redraw pairs and recompute means and conformities (basic bootstrap, clipped at 0), with the same draws for
    all alphas.
    The loss depends on N, and its intervals are for the expectation at N pairs: by the jackknife, which leaves out each
    pair, also as a negative of the others and from the means, with Student's t.

    Args:
        image: Raw image embeddings ``(N, D)``, N >= 10.
        text: Raw text embeddings ``(N, D)``, row i belonging to row i of ``image``.
        alphas: Shares of the mean to subtract, ``(A,)``.
        logit_scale: The factor on the cosine, above 0.
        confidence: Coverage of the intervals, in (0, 1).
        resamples: Number of resamples R behind them, at least 20.
        generator: Source of randomness; by default one with a fixed seed, so that equal data give equal results.

    Returns:
        A :class:`ShiftSweep`.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If lengths or dimensions differ, there are too few pairs, all samples are equal, a row is zero, NaN
            or infinite, also after a shift, or an option is out of range.

    Warns:
        LowerBoundWarning: If a KL is only a lower bound.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025; Efron and Stein, 1981, for the
    jackknife.

    Example:
        >>> import torch
        >>> rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
        >>> sweep = shift_sweep(2 + rows, rows.flip(1) - 2, [0.0, 1.0], logit_scale=10.0, resamples=50)
        >>> sweep.loss.shape, bool((sweep.loss_low <= sweep.loss).all())
        (torch.Size([2]), True)
    """
    pairs = _check(image, text)
    check_level(confidence)
    check_resamples(resamples, MIN_RESAMPLES)
    steps = _check_alphas(alphas, "alphas")
    draw = make_generator(generator)
    every = [0.0, *steps]  # the differences are from alpha 0
    dtype = torch.promote_types(result_dtype(image), result_dtype(text))
    loss = torch.stack([nt_xent(*pairs.shift(a, a).to(dtype), logit_scale).double().cpu() for a in every])
    compared = [_compare(*(conformity(x).cpu() for x in pairs.shift(a, a))) for a in every]
    kl = torch.stack([c.kl for c in compared])
    if any(c.lower_bound for c in compared[1:]):
        warn_lower_bound()
    left = torch.stack([left_out_losses_at(pairs.to(dtype), a, float(logit_scale)) for a in every])
    draws = _bootstrap(pairs, resamples, draw)
    kls = torch.stack([_redraw_kl(pairs.shift(a, a), a, c, draws) for a, c in zip(every, compared, strict=True)])
    columns = (
        torch.tensor(steps, dtype=torch.float64),
        *(x[1:] for x in (loss, *jackknife_interval(left, loss, confidence, 0.0))),
        *(x[1:] for x in (loss - loss[0], *jackknife_interval(left - left[0], loss - loss[0], confidence, -math.inf))),
        *(x[1:] for x in (kl, *_kl_interval(compared, kls, confidence))),
        *(x[1:] for x in (kl - kl[0], *_kl_difference(compared, kls, confidence))),
    )
    bounds = torch.tensor([c.lower_bound for c in compared[1:]])
    vectors = [x.to(image.device, dtype) for x in columns]
    return ShiftSweep._make((*vectors, bounds.to(image.device), len(image)))


@full_precision
def shift_grid(
    image: Tensor,
    text: Tensor,
    image_alphas: Sequence[float] | Tensor,
    text_alphas: Sequence[float] | Tensor,
    logit_scale: float = 100.0,
) -> ShiftGrid:
    r"""Shift the modalities separately, each along its own mean: NT-Xent and KL on a grid, the paper's experiment.

    Args:
        image: Raw image embeddings ``(N, D)``, N >= 10.
        text: Raw text embeddings ``(N, D)``, row i belonging to row i of ``image``.
        image_alphas: Shares of the image mean to subtract, ``(A,)``.
        text_alphas: Shares of the text mean to subtract, ``(B,)``.
        logit_scale: The factor on the cosine, above 0.

    Returns:
        A :class:`ShiftGrid` without intervals: :func:`shift_sweep` has those on the diagonal. Away from it the
        distributions soon separate, and the KL becomes a lower bound: ``kl_lower_bound`` shows where, without a
        warning.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: As :func:`shift_sweep`.

    Source: Levi and Gilboa, ICML 2025.

    Example:
        >>> import torch
        >>> rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
        >>> shift_grid(2 + rows, rows.flip(1) - 2, [0.0, 0.5, 1.0], [0.0, 1.0]).kl.shape
        torch.Size([3, 2])
    """
    pairs = _check(image, text)
    images, texts = _check_alphas(image_alphas, "image_alphas"), _check_alphas(text_alphas, "text_alphas")
    image_conformity = [conformity(pairs.shift(a, 0.0).image).cpu() for a in images]
    text_conformity = [conformity(pairs.shift(0.0, b).text).cpu() for b in texts]
    compared = [[_compare(x, y) for y in text_conformity] for x in image_conformity]
    dtype = torch.promote_types(result_dtype(image), result_dtype(text))
    loss = torch.stack(
        [torch.stack([nt_xent(*pairs.shift(a, b).to(dtype), logit_scale) for b in texts]) for a in images]
    )
    kl = torch.stack([torch.stack([c.kl for c in row]) for row in compared])
    bounds = torch.tensor([[c.lower_bound for c in row] for row in compared])
    fields = [
        x.to(image.device, dtype)
        for x in (torch.tensor(images, dtype=torch.float64), torch.tensor(texts, dtype=torch.float64), loss, kl)
    ]
    return ShiftGrid._make((*fields, bounds.to(image.device), len(image)))


def _check(image: Tensor, text: Tensor) -> Pairs:
    pairs = Pairs(*(x.double() for x in check_pairs(image, text, MIN_SAMPLES)))
    for name, rows, given in zip(pairs._fields, pairs, (image, text), strict=True):
        check_spread(rows.var(0).sum(), mean_of(rows), given.dtype, name)
    # Scale does not matter below, but a row that a shift makes short must stay in the range of norms.
    # A power of two is exact.
    return Pairs(*(rows * 2.0 ** -round(math.log2(float(rows.square().sum(1).mean())) / 2) for rows in pairs))


def _check_alphas(alphas: Sequence[float] | Tensor, name: str) -> list[float]:
    steps = [float(a) for a in alphas]
    if not steps or not all(math.isfinite(a) for a in steps):
        raise ValueError(f"{name}: expected one or more finite numbers, got {steps}.")
    return steps


def _compare(image: Tensor, text: Tensor) -> _Compared:
    grid = make_grid(text)
    sides = [Side(grid.counts(x), float(len(x))) for x in (image, text)]
    readout = plan_readout(*sides)
    plain = compute_plug_in(readout, *(side.counts[None] for side in sides))
    return _Compared(grid, readout, plain, is_lower_bound(readout, *sides))


def left_out_losses_at(pairs: Pairs, alpha: float, logit_scale: float) -> Tensor:
    """Loss at one alpha with each pair left out, also from the means to first order, ``(N,)`` float64."""
    means = [x.mean(0).requires_grad_() for x in pairs]
    with torch.enable_grad():
        image, text = (x - alpha * mean for x, mean in zip(pairs, means, strict=True))
        slopes = torch.autograd.grad(nt_xent(image, text, logit_scale), means)
    others = len(image) - 1
    result = left_out_losses(image.detach(), text.detach(), logit_scale)
    for x, mean, slope in zip(pairs, means, slopes, strict=True):
        result = result + (mean.detach() - x) @ slope / others
    return result.cpu()


def jackknife_interval(left_out: Tensor, value: Tensor, confidence: float, least: float) -> tuple[Tensor, Tensor]:
    """Interval of a loss from its values without each pair, ``(A, N)``."""
    ones = torch.ones(left_out.shape[1], dtype=torch.float64)
    half = torch.tensor(
        [jackknife(one, rest, ones).half_width(confidence) for one, rest in zip(value, left_out, strict=True)],
        dtype=torch.float64,
    )
    return (value - half).clamp_min(least), value + half


def _bootstrap(pairs: Pairs, resamples: int, generator: torch.Generator) -> _Draws:
    count = len(pairs.image)
    index = torch.randint(count, (resamples, count), generator=generator, device=generator.device)
    index = index.to(pairs.image.device)
    centered = Pairs(*(x - x.mean(0) for x in pairs))
    moves = [torch.cat([count_draws(part, part.shape[1]) @ x for part in _parts(index)]) / count for x in centered]
    return _Draws(index, Pairs(*moves))


def _parts(index: Tensor) -> tuple[Tensor, ...]:
    return index.split(max(1, CHUNK_ENTRIES // index.shape[1]))


def _redraw_kl(shifted: Pairs, alpha: float, compared: _Compared, draws: _Draws) -> Tensor:
    """Plug-in KL of every draw, with recomputed means and conformities, ``(R,)``."""
    histograms = []
    for rows, moves in zip(shifted, draws.moves, strict=True):
        parts = []
        for index, move in zip(_parts(draws.chosen), _parts_like(moves, draws.chosen), strict=True):
            weight = count_draws(index, index.shape[1])
            values = _redraw_conformities(rows, alpha * move, weight)
            cell = compared.grid.locate(values.cpu()) + (CELLS + 2) * torch.arange(len(weight))[:, None]
            flat = torch.bincount(cell.flatten(), weight.cpu().flatten(), minlength=len(weight) * (CELLS + 2))
            parts.append(flat.view(len(weight), CELLS + 2))
        histograms.append(torch.cat(parts))
    return compute_plug_in(compared.readout, histograms[0], histograms[1]).forward


def _parts_like(moves: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    return moves.split([len(part) for part in _parts(index)])


def _redraw_conformities(rows: Tensor, move: Tensor, weight: Tensor) -> Tensor:
    """Conformity of every row inside its redrawn set; ``move`` is subtracted from each row, ``(b, N)``.

    The moved rows themselves are never built: |x - d|^2 and (x - d) . m_u follow from products of matrices.
    """
    count = len(rows)
    along = move @ rows.T  # (b, N)
    square = rows.square().sum(1) - 2 * along + move.square().sum(1, keepdim=True)
    inverse = square.clamp_min(1e-16 * float(rows.square().sum(1).mean())).rsqrt()
    share = weight * inverse
    mean = (share @ rows - share.sum(1, keepdim=True) * move) / count  # (b, D)
    cosine = (mean @ rows.T - (mean * move).sum(1, keepdim=True)) * inverse
    return (count * cosine - weight) / (count - weight).clamp_min(1)  # a row's copies excluded


def _kl_interval(compared: list[_Compared], drawn: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    point = torch.cat([c.plain.forward for c in compared])
    bias = torch.tensor([sum(c.readout.biases) for c in compared], dtype=torch.float64)
    return basic_interval(point, bias, drawn, confidence)


def _kl_difference(compared: list[_Compared], drawn: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
    """Basic bootstrap interval of the difference from the first, which is alpha 0."""
    point = torch.cat([c.plain.forward for c in compared])
    below, above = (drawn - drawn[0]).quantile(quantile_levels(confidence), dim=1)
    return 2 * (point - point[0]) - above, 2 * (point - point[0]) - below
