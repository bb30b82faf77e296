"""Every metric class holds the laws of its figures, and gives the same for any split and order of its stream."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from drawing import FACTORS, SEEDS, Shape, assert_equal, draw_rows, rotation, stretch
from hypothesis import given
from hypothesis import strategies as st
from laws import ANGLE, AXES, COLUMNS, LENGTH, SHAPE, SQUARE, Law
from torch import Tensor

import clipconformity as cc
from clipconformity import metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning"),
    pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning"),  # in few dimensions rows may be near by chance
]
every_class = pytest.mark.parametrize("name", metrics.__all__)

DEALT = Law(degree=None, lengths=None, turn=None)
"""Rests on buckets, folds or columns that rows of the reference are dealt to by their content."""


COMPARED = [
    name
    for name in metrics.__all__
    if {"reference", "embed_dim"} <= {*inspect.signature(getattr(metrics, name)).parameters}
]
"""Classes that take the rows of a reference by ``update`` too."""


def laws_of(law: Law, *keys: str) -> dict[str, Law]:
    return dict.fromkeys(keys, law)


def with_ends(*keys: str) -> list[str]:
    return [key + end for key in keys for end in ("_low", "_high")]


NORMS = [f"norm_{end}" for end in ("mean", "std", "q05", "q50", "q95")]
SHIFTS = ("typicality_shift", "variety_ratio", "spread_ratio")
CONFORMITY = [f"conformity_{end}" for end in ("mean", "std", "se", "q05", "q50", "q95")]
SPECTRUM = ("shell_ratio", "population_participation_ratio", "offset")
TILT = ("off_diagonal_ratio", "mean_abs_correlation")
LAWS = {
    **laws_of(ANGLE, *CONFORMITY, "self_conformity_mean", "self_conformity_se", *SHIFTS, "conformity_kl"),
    **laws_of(DEALT, *with_ends(*SHIFTS)),
    **laws_of(LENGTH, *NORMS, *(f"centered_{key}" for key in NORMS), "norm_se"),
    "norm_conformity_correlation": SHAPE,
    **laws_of(SHAPE, *SPECTRUM, *with_ends(*SPECTRUM), "spectrum_condition", "participation_ratio"),
    **laws_of(AXES, *TILT, *with_ends(*TILT)),
    "diagonally_dominant": COLUMNS,
    **laws_of(DEALT, *(f"permuted_{key}" for key in (*TILT, "diagonally_dominant", "participation_ratio"))),
    "shell_mu": LENGTH,
    "shell_variance": SQUARE,
    **laws_of(ANGLE, *(f"modality_gap{end}" for end in ("", "_se", "_low", "_high", "_null"))),
    **laws_of(ANGLE, "squared_modality_gap", "matched_cosine", "matched_cosine_se", "modality_kl"),
    "raw_modality_gap": LENGTH,
    "log_likelihood_mean": SHAPE._replace(degree=None),
    **laws_of(SHAPE, "log_likelihood_se", "log_likelihood_std", "whitened_norm_mean", "likelihood_shrinkage"),
    **laws_of(DEALT, "reference_log_likelihood", "log_likelihood_shift", *with_ends("log_likelihood_shift")),
    **laws_of(SHAPE, "precision", "recall", "density", "coverage"),
    **laws_of(ANGLE, *(f"{name}.value" for name in ("CLIPScore", "ConformityKL", "SelfConformity", "CMMD"))),
    **laws_of(ANGLE, "CosineMMD.value", "VendiScore.value"),
    "FrechetDistance.value": SQUARE,
}
"""By key; the value of a class that gives one number by the class."""


class Stream(NamedTuple):
    """The rows that a metric is given: of a reference, of images, and of the texts that belong to them."""

    reference: Tensor
    rows: Tensor
    partners: Tensor


def draw_stream(shape: Shape) -> Stream:
    apart = shape._replace(offset=shape.offset + 0.5)
    return Stream(
        draw_rows(shape, shape.seed, 2 * shape.count),
        draw_rows(apart, shape.seed + 1, shape.count),
        draw_rows(shape, shape.seed + 2, shape.count),
    )


shapes = st.builds(
    Shape,
    count=st.integers(16, 40),
    dim=st.integers(3, 8),
    seed=SEEDS,
    offset=st.sampled_from([0.0, 0.5, 2.0]),
    tails=st.booleans(),
    repeats=st.just(0),
)
TYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64])
GENERIC = Shape(40, 4, 0, 1.0, False, 0)


def law_of(name: str, key: str) -> Law:
    return LAWS.get(f"{name}.{key}") or LAWS[key]


def made(name: str, stream: Stream) -> Any:
    """Make a metric, with a reference where it takes one."""
    kind = getattr(metrics, name)
    if "reference" in inspect.signature(kind).parameters:
        return kind(cc.ReferenceSet.fit(stream.reference))
    return kind(embed_dim=stream.rows.shape[1])


def give(metric: Any, stream: Stream, chosen: Tensor) -> None:
    """Give one batch, its rows named by their place, so that what is dealt does not rest on their content."""
    update = inspect.signature(metric.update).parameters.values()
    sides = [one for one in update if one.kind is one.POSITIONAL_OR_KEYWORD]
    names = "ids" if "ids" in inspect.signature(metric.update).parameters else "groups"
    batch = (rows[chosen] for rows in (stream.rows, stream.partners)[: len(sides)])
    metric.update(*batch, **{names: [str(int(one)) for one in chosen]})


def values(metric: Any) -> dict[str, Tensor] | None:
    """Give the figures; None where they are refused."""
    try:
        found = metric.compute()
    except ValueError:
        return None
    return found if isinstance(found, dict) else {"value": found}


def whole(name: str, stream: Stream) -> dict[str, Tensor] | None:
    metric = made(name, stream)
    give(metric, stream, torch.arange(len(stream.rows)))
    return values(metric)


def compare(name: str, stream: Stream, changed: Stream, chosen: Callable[[Law], bool], factor: float = 1.0) -> None:
    before, after = whole(name, stream), whole(name, changed)
    assert (before is None) == (after is None), f"{name}: refused before or after alone"
    for key, value in (before or {}).items():
        law = law_of(name, key)
        if chosen(law):
            size = float(torch.linalg.vector_norm(stream.rows, dim=1).mean()) ** (law.degree or 0)
            assert_equal(after[key] / factor ** (law.degree or 0), value, f"{name}.{key}", rel=1e-4, size=size)


# --- the table is whole -----------------------------------------------------------------------------------------------


@every_class
def test_every_figure_has_its_law(name):
    found = whole(name, draw_stream(GENERIC))
    assert all(key in LAWS or f"{name}.{key}" in LAWS for key in found), found.keys()


def test_every_law_is_of_a_figure():
    keys = {(name, key) for name in metrics.__all__ for key in whole(name, draw_stream(GENERIC))}
    assert set(LAWS) <= {key for _, key in keys} | {f"{name}.{key}" for name, key in keys}


# --- what holds -------------------------------------------------------------------------------------------------------


@every_class
@given(
    shape=shapes, data=st.data(), dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64])
)
def test_any_split_and_order_of_a_stream_of_any_type(name, shape, data, dtype):
    stream = Stream(*(rows.to(dtype).double() for rows in draw_stream(shape)))
    metric = made(name, stream)
    order = torch.randperm(shape.count, generator=torch.Generator().manual_seed(data.draw(SEEDS)))
    batches = data.draw(st.lists(st.integers(0, shape.count), max_size=6))
    ends = [*sorted({*batches, 0, shape.count}), shape.count]  # the last batch is empty
    for start, end in itertools.pairwise(ends):
        part = Stream(stream.reference, stream.rows.to(dtype), stream.partners.to(dtype))
        give(metric, part, order[start:end])
    found, expected = values(metric), whole(name, stream)
    assert (found is None) == (expected is None)
    for key, value in (expected or {}).items():
        assert_equal(found[key], value, f"{name}.{key}", rel=1e-4)


@pytest.mark.parametrize("name", COMPARED)
@given(shape=shapes, data=st.data())
def test_real_rows_may_come_at_any_time(name, shape, data):
    """Without a reference, rows of both sides may be mixed in any order; the reference set of the same rows agrees."""
    stream = draw_stream(shape)
    metric = getattr(metrics, name)(embed_dim=shape.dim)
    real = [("real", part) for part in torch.arange(2 * shape.count).split(data.draw(st.integers(1, 30)))]
    evaluated = [("evaluated", part) for part in torch.arange(shape.count).split(data.draw(st.integers(1, 30)))]
    for side, part in data.draw(st.permutations(real + evaluated)):
        if side == "real":
            metric.update(stream.reference[part], real=True)
        else:
            give(metric, stream, part)
    found, expected = values(metric), whole(name, stream)
    assert (found is None) == (expected is None)
    for key, value in (expected or {}).items():
        assert_equal(found[key], value, f"{name}.{key}", rel=1e-4)


@given(shape=shapes, data=st.data())
def test_a_reference_does_not_depend_on_how_it_was_put_together(shape, data):
    rows = draw_stream(shape).reference
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(data.draw(SEEDS)))
    parts = rows[order].split(data.draw(st.integers(1, 40)))
    expected = cc.ReferenceSet.fit(rows)
    found = cc.ReferenceSet.fit(parts)
    merged = cc.ReferenceSet.fit(rows[: shape.count]).merge(cc.ReferenceSet.fit(rows[shape.count :]))
    for other in (found, merged):
        assert other.count == expected.count
        assert_equal(other.mean, expected.mean, "mean")
        assert_equal(other.covariance, expected.covariance, "covariance")
        assert_equal(other.conformities.sort().values, expected.conformities.sort().values, "conformities", rel=1e-5)


@every_class
@given(shape=shapes, factor=FACTORS)
def test_one_scale_for_all_rows(name, shape, factor):
    stream = draw_stream(shape)
    compare(name, stream, Stream(*(rows * factor for rows in stream)), lambda law: law.degree is not None, factor)


@every_class
@given(shape=shapes, seed=SEEDS)
def test_a_length_for_each_row(name, shape, seed):
    stream = draw_stream(shape)
    compare(name, stream, Stream(*stretch(stream, seed)), lambda law: law.lengths == "same")


@every_class
@given(shape=shapes, seed=SEEDS)
def test_a_rotation(name, shape, seed):
    stream, turn = draw_stream(shape), rotation(shape.dim, seed)
    compare(name, stream, Stream(*(rows @ turn for rows in stream)), lambda law: law.turn == "same")


@given(shape=shapes, factor=FACTORS)
def test_a_density_loses_the_logarithm_of_the_scale_in_every_dimension(shape, factor):
    stream = draw_stream(shape)
    found = whole("GaussianLikelihood", Stream(*(rows * factor for rows in stream)))["log_likelihood_mean"]
    expected = whole("GaussianLikelihood", stream)["log_likelihood_mean"] - shape.dim * math.log(factor)
    assert_equal(found, expected, "log_likelihood_mean", rel=1e-4)


# --- what must not hold -----------------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize("kind", ["lengths", "turn"])
def test_what_changes_is_noticed(name, kind):
    stream = draw_stream(GENERIC)
    changed = {
        "lengths": Stream(*stretch(stream, 1)),
        "turn": Stream(*(rows @ rotation(GENERIC.dim, 1) for rows in stream)),
    }
    before, after = whole(name, stream), whole(name, changed[kind])
    for key, value in before.items():
        if getattr(law_of(name, key), kind) == "changes":
            assert float((after[key] - value).abs()) > 1e-4 * float(value.abs()), key
