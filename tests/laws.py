"""What every public function must hold, as a table: a function to a row, an output to a law.

A law says what becomes of an output where the input is changed: by one scale, by a length for each row, by a rotation,
in another order, in parts. A new public function without a row fails ``test_every_public_function_has_its_laws``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from clipconformity import functional as F

Sets = tuple[Tensor, Tensor, Tensor]
"""Evaluated rows or images ``(N, D)``, reference rows or texts ``(N, D)``, further captions ``(N, 2, D)``."""


class Law(NamedTuple):
    """What becomes of one output; None where nothing is claimed."""

    degree: int | None = 0
    """All rows times c: the output times c to this power."""
    lengths: Literal["same", "changes"] | None = "same"
    """Each row times its own positive number."""
    turn: Literal["same", "turns", "changes"] | None = "same"
    """All rows rotated: ``turns`` is an output of rows that are rotated too."""
    order: Literal["same", "follows"] | None = "same"
    """The rows in another order: ``follows`` is an output of a value for each row."""
    parts: Literal["joins", "averages"] | None = None
    """The evaluated rows in parts, all else as it was."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Least and largest value."""


ANGLE = Law()
EACH_ANGLE = ANGLE._replace(order="follows", parts="joins")
SHAPE = Law(lengths="changes")
LENGTH = SHAPE._replace(degree=1)
SQUARE = SHAPE._replace(degree=2)
AXES = SHAPE._replace(turn="changes")
DRAWN = AXES._replace(order=None)
"""Rests on columns, folds or resamples that are drawn by place."""
COLUMNS = AXES._replace(lengths=None, turn=None)
FOLDS = COLUMNS._replace(order=None)
"""Of single columns: a rotation or other lengths may change it."""
NUMBER = Law(lengths="same")
"""Says how many, which nothing but the number of rows changes."""
COSINE = (-1.0, 1.0)
SHARE = (0.0, 1.0)
POSITIVE = (0.0, math.inf)


def within(law: Law, bounds: tuple[float, float]) -> Law:
    """A law with a least and a largest value."""
    return law._replace(bounds=bounds)


ROWS = LENGTH._replace(turn="turns", order="follows", parts="joins")


class Row(NamedTuple):
    """How a function is called, and the law of each of its outputs."""

    function: Callable[..., object]
    call: Callable[[Sets], object]
    laws: dict[str, Law]
    """By field; ``value`` where the result is one tensor."""
    paired: int = 1
    """How many of the sets are in pairs: row i of one belongs to row i of the others."""
    cost: int = 1
    """How many times fewer cases it has, being slow."""
    ties: bool = True
    """Whether equal rows have a value that rounding does not decide."""


def mean_of(rows: Tensor) -> Tensor:
    """Mean of a set, in float64."""
    return rows.double().mean(0)


def norms_of(rows: Tensor) -> Tensor:
    """Norm of every row, in the precision of a result."""
    return torch.linalg.vector_norm(rows if rows.element_size() > 2 else rows.float(), dim=1)


def gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a set, in float64."""
    return mean_of(rows), torch.cov(rows.double().T)


def outputs(row: Row, sets: Sets) -> dict[str, Tensor]:
    """Give what a function gives, by field; what it leaves out is left out."""
    found = row.call(sets)
    named = found._asdict() if hasattr(found, "_asdict") else {"value": found}
    return {name: torch.as_tensor(value) for name, value in named.items() if value is not None}


def _set(function: Callable[..., object], *laws: Law, **fields: Law) -> Row:
    """A function of one set."""
    return Row(function, lambda sets: function(sets[0]), fields or {"value": laws[0]})


def _two(function: Callable[..., object], *laws: Law, **fields: Law) -> Row:
    """A function of an evaluated set and a reference."""
    return Row(function, lambda sets: function(sets[0], sets[1]), fields or {"value": laws[0]})


def _pairs(function: Callable[..., object], *laws: Law, **fields: Law) -> Row:
    """A function of pairs."""
    return _two(function, *laws, **fields)._replace(paired=2)


TABLE: dict[str, Row] = {
    "conformity to a reference": _two(F.conformity, within(EACH_ANGLE, COSINE)),
    "conformity in the own set": _set(F.conformity, within(ANGLE._replace(order="follows"), COSINE)),
    "self_conformity": _set(F.self_conformity, within(ANGLE, COSINE)),
    "estimated_conformity": _set(F.estimated_conformity, within(SHAPE._replace(order="follows"), COSINE)),
    "estimated_conformity by a mean": Row(
        F.estimated_conformity,
        lambda sets: F.estimated_conformity(sets[0], mean_of(sets[1])),
        {"value": within(SHAPE._replace(order="follows", parts="joins"), COSINE)},
    ),
    "conformity_fit": _set(
        F.conformity_fit,
        slope=SHAPE,
        intercept=SHAPE,
        inverse_slope=SHAPE,
        inverse_intercept=SHAPE,
        pearson=within(SHAPE, COSINE),
    ),
    "conformity_kl": Row(
        F.conformity_kl,
        lambda sets: F.conformity_kl(F.conformity(sets[0], sets[1]), F.conformity(sets[1])),
        {"value": within(ANGLE, POSITIVE)},
        cost=2,
    ),
    "rank_correlation": Row(
        F.rank_correlation,
        lambda sets: F.rank_correlation(F.conformity(sets[0]), norms_of(sets[0]), resamples=20),
        {"correlation": within(SHAPE, COSINE), "low": DRAWN._replace(turn="same"), "high": DRAWN._replace(turn="same")},
        ties=False,
    ),
    "norm_statistics": _set(
        F.norm_statistics,
        mean=LENGTH,
        std=LENGTH,
        quantiles=LENGTH,
        centered_mean=LENGTH,
        centered_std=LENGTH,
        centered_quantiles=LENGTH,
        conformity_correlation=within(SHAPE, COSINE),
    ),
    "thin_shell": _set(F.thin_shell, mu=LENGTH, variance=SQUARE, mu_squared=SQUARE, ratio=SHAPE),
    "ellipsoid": _set(
        F.ellipsoid,
        variances=SQUARE._replace(turn="changes"),
        spectrum=SQUARE,
        rank=within(NUMBER, (1, 8)),
        condition=within(SHAPE, (1.0, math.inf)),
        participation_ratio=within(SHAPE, (1.0, 8.0)),
        permuted_participation_ratio=DRAWN,
    ),
    "tilt": _set(
        F.tilt,
        off_diagonal_ratio=AXES,
        diagonally_dominant=within(COLUMNS, SHARE),
        mean_abs_correlation=within(AXES, SHARE),
        permuted_off_diagonal_ratio=DRAWN,
        permuted_diagonally_dominant=within(FOLDS, SHARE),
        permuted_mean_abs_correlation=within(DRAWN, SHARE),
    ),
    "offset": _set(F.offset, within(SHAPE, POSITIVE)),
    "modality_gap": _pairs(
        F.modality_gap,
        gap=within(ANGLE, (0.0, 2.0)),
        raw_gap=within(LENGTH, POSITIVE),
        matched_cosine=within(ANGLE._replace(parts="averages"), COSINE),
        squared_gap=ANGLE,
        null=ANGLE,
        low=ANGLE,
        high=ANGLE,
    ),
    "modality_gap without pairs": Row(
        F.modality_gap,
        lambda sets: F.modality_gap(sets[0], sets[1], paired=False),
        {"gap": ANGLE, "raw_gap": LENGTH, "squared_gap": ANGLE, "null": ANGLE, "low": ANGLE, "high": ANGLE},
    ),
    "alignment": _pairs(F.alignment, within(ANGLE._replace(parts="averages"), (0.0, 4.0))),
    "uniformity": _set(F.uniformity, within(ANGLE, (-8.0, 0.0))),
    "nt_xent": Row(
        F.nt_xent, lambda sets: F.nt_xent(sets[0], sets[1], 10.0), {"value": within(ANGLE, POSITIVE)}, paired=2
    ),
    "shift": _set(F.shift, ROWS)._replace(
        call=lambda sets: F.shift(sets[0], 0.5), laws={"value": ROWS._replace(parts=None)}
    ),
    "shift by a mean": Row(F.shift, lambda sets: F.shift(sets[0], 0.5, mean_of(sets[1])), {"value": ROWS}),
    "shift_grid": Row(
        F.shift_grid,
        lambda sets: F.shift_grid(sets[0], sets[1], [0.5], [0.0, 0.25], 10.0),
        {
            "image_alphas": NUMBER,
            "text_alphas": NUMBER,
            "loss": SHAPE,
            "kl": SHAPE,
            "kl_lower_bound": NUMBER._replace(lengths=None),
            "pairs": NUMBER,
        },
        paired=2,
        cost=4,
    ),
    "shift_sweep": Row(
        F.shift_sweep,
        lambda sets: F.shift_sweep(sets[0], sets[1], [0.5], 10.0, resamples=20),
        {
            "alphas": NUMBER,
            **dict.fromkeys(("loss", "loss_low", "loss_high", "kl"), SHAPE),
            **dict.fromkeys(("loss_difference", "loss_difference_low", "loss_difference_high", "kl_difference"), SHAPE),
            **dict.fromkeys(
                ("kl_low", "kl_high", "kl_difference_low", "kl_difference_high"), SHAPE._replace(order=None)
            ),
            "kl_lower_bound": NUMBER._replace(lengths=None),
            "pairs": NUMBER,
        },
        paired=2,
        cost=8,
    ),
    "slerp": _pairs(F.slerp, ROWS)._replace(call=lambda sets: F.slerp(sets[0], sets[1], 0.3)),
    "vslerp": _pairs(F.vslerp, ROWS)._replace(
        call=lambda sets: F.vslerp(sets[0], sets[1], 0.3, mean_of(sets[2].flatten(0, 1)), 0.5)
    ),
    "whiten": Row(
        F.whiten,
        lambda sets: F.whiten(sets[0], *gaussian(sets[1]), 0.1),
        {"value": ROWS._replace(degree=0)},
    ),
    "log_likelihood": Row(
        F.log_likelihood,
        lambda sets: F.log_likelihood(sets[0], *gaussian(sets[1]), 0.1),
        {"value": SHAPE._replace(degree=None, order="follows", parts="joins")},
    ),
    "frechet_distance": _two(F.frechet_distance, within(SQUARE, POSITIVE)),
    "linear_separability": _two(
        F.linear_separability,
        accuracy=within(COLUMNS, SHARE),
        dimensions=COLUMNS,
        held_out_accuracy=within(FOLDS, SHARE),
        labels=FOLDS,
        label_accuracies=within(FOLDS, SHARE),
        held_out_recalls=within(FOLDS, SHARE),
    ),
    "cosine_mmd": _two(F.cosine_mmd, ANGLE),
    "mmd_halves": _two(F.mmd_halves, typicality=ANGLE, variety=ANGLE),
    "cmmd": _two(F.cmmd, within(ANGLE, POSITIVE)),
    "vendi_score": _set(F.vendi_score, within(ANGLE, (1.0, 8.0))),
    "nearest in a reference": _two(F.nearest, cosine=within(EACH_ANGLE, COSINE), index=EACH_ANGLE)._replace(ties=False),
    "nearest in the own set": _set(
        F.nearest, cosine=within(ANGLE._replace(order="follows"), COSINE), index=ANGLE._replace(order=None)
    )._replace(ties=False),
    "authenticity": _two(F.authenticity, within(ANGLE._replace(parts="averages"), SHARE))._replace(ties=False),
    "prdc": _two(
        F.prdc,
        precision=within(SHAPE._replace(parts="averages"), SHARE),
        recall=within(SHAPE, SHARE),
        density=within(SHAPE._replace(parts="averages"), POSITIVE),
        coverage=within(SHAPE, SHARE),
    )._replace(ties=False),
    "clip_score": _pairs(F.clip_score, within(EACH_ANGLE, (0.0, 100.0))),
    "ref_clip_score": Row(
        F.ref_clip_score, lambda sets: F.ref_clip_score(*sets), {"value": within(EACH_ANGLE, (0.0, 143.0))}, paired=3
    ),
}
