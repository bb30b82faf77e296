"""Every public function holds the laws of ``laws.TABLE``, on sets that hypothesis draws."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import pytest
import torch
from drawing import FACTORS, SEEDS, Shape, assert_equal, draw_rows, rotation, shapes, stretch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import TABLE, Law, Row, Sets, outputs
from torch import Tensor

from clipconformity import functional as F
from clipconformity.functional import contrastive, likelihood, linalg, ranks, sweep

Check: TypeAlias = Callable[..., None]
pytestmark = [
    pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning"),
    pytest.mark.filterwarnings("ignore::clipconformity.functional.SingularWarning"),
]
every_row = pytest.mark.parametrize("name", TABLE)


def of_every_row(table: Mapping[str, Row] = TABLE, /, **drawn: st.SearchStrategy) -> Callable[[Check], Check]:
    """Make a check of a row and what is drawn for it a test of every row; a slow row has fewer cases."""

    def as_test(check: Check) -> Check:
        @pytest.mark.parametrize("name", table)
        def test(name: str) -> None:
            cases = max(2, settings().max_examples // TABLE[name].cost)

            @settings(max_examples=cases)
            @given(**drawn)
            def check_cases(**values: object) -> None:
                check(name, **values)

            check_cases()

        test.__doc__ = check.__doc__
        return test

    return as_test


UNPAIRED = {name: row for name, row in TABLE.items() if row.paired == 1}
IN_PARTS = {name: row for name, row in TABLE.items() if any(law.parts for law in row.laws.values())}


def draw_sets(shape: Shape, ties: bool = True) -> Sets:
    """The sets that a function may be given."""
    shape = shape if ties else shape._replace(repeats=0)
    further = draw_rows(shape, shape.seed + 2, 2 * shape.count).view(shape.count, 2, shape.dim)
    other = shape._replace(offset=shape.offset + 0.5)
    return draw_rows(shape, shape.seed, shape.count), draw_rows(other, shape.seed + 1, shape.count), further


def attempt(row: Row, sets: Sets) -> dict[str, Tensor] | None:
    """Give the outputs; None where the input is refused, as a set of equal conformities is by a fit."""
    try:
        return outputs(row, sets)
    except ValueError:
        return None


def compare(name: str, sets: Sets, changed: Sets, expect, chosen=lambda law: True, rel: float = 1e-6) -> None:
    """Compare the outputs of changed sets with what a law expects of those of the sets."""
    row = TABLE[name]
    before, after = attempt(row, sets), attempt(row, changed)
    assert (before is None) == (after is None), f"{name}: refused before or after alone"
    if before is None:
        return
    assert before.keys() == after.keys(), name
    lengths = float(torch.linalg.vector_norm(sets[0], dim=1).mean())
    for key, law in row.laws.items():
        if key in before and chosen(law):
            size = lengths ** (law.degree or 0)
            assert_equal(after[key], expect(before[key], law), f"{name}.{key}", rel, size)


# --- the table is whole -----------------------------------------------------------------------------------------------


def test_every_public_function_has_its_laws():
    public = {name for name in F.__all__ if inspect.isfunction(getattr(F, name))}
    assert {row.function.__name__ for row in TABLE.values()} == public


@every_row
def test_every_output_has_its_law(name):
    generic = draw_sets(Shape(40, 4, 0, 1.0, False, 0))
    assert outputs(TABLE[name], generic).keys() == TABLE[name].laws.keys()


def test_a_law_of_every_kind_is_claimed_somewhere():
    """Guard: a kind without an output would be tested on nothing."""
    laws = [law for row in TABLE.values() for law in row.laws.values()]
    assert {law.degree for law in laws} == {None, 0, 1, 2}
    assert {law.lengths for law in laws} == {None, "same", "changes"}
    assert {law.turn for law in laws} == {None, "same", "turns", "changes"}
    assert {law.order for law in laws} == {None, "same", "follows"}
    assert {law.parts for law in laws} == {None, "joins", "averages"}


# --- what holds -------------------------------------------------------------------------------------------------------


@of_every_row(shape=shapes, factor=FACTORS)
def test_one_scale_for_all_rows(name, shape, factor):
    sets = draw_sets(shape, TABLE[name].ties)
    scaled = tuple(rows * factor for rows in sets)
    compare(
        name,
        scaled,
        sets,
        lambda value, law: value / factor**law.degree,
        lambda law: law.degree is not None,
    )


@of_every_row(shape=shapes, seed=SEEDS)
def test_a_length_for_each_row(name, shape, seed):
    sets = draw_sets(shape, TABLE[name].ties)
    compare(name, sets, stretch(sets, seed), lambda value, law: value, lambda law: law.lengths == "same")


@of_every_row(shape=shapes, seed=SEEDS)
def test_a_rotation(name, shape, seed):
    sets = draw_sets(shape, TABLE[name].ties)
    turn = rotation(shape.dim, seed)
    compare(
        name,
        sets,
        tuple(rows @ turn for rows in sets),
        lambda value, law: value @ turn if law.turn == "turns" else value,
        lambda law: law.turn in ("same", "turns"),
    )


@of_every_row(shape=shapes, seed=SEEDS)
def test_another_order(name, shape, seed):
    sets = draw_sets(shape, TABLE[name].ties)
    order = torch.randperm(shape.count, generator=torch.Generator().manual_seed(seed))
    compare(
        name,
        sets,
        chosen_rows(TABLE[name], sets, order),
        lambda value, law: value[order] if law.order == "follows" else value,
        lambda law: law.order is not None,
    )


@of_every_row(UNPAIRED, shape=shapes, seed=SEEDS)
def test_another_order_of_the_reference(name, shape, seed):
    sets = draw_sets(shape, TABLE[name].ties)
    order = torch.randperm(shape.count, generator=torch.Generator().manual_seed(seed))
    row = TABLE[name]
    before, after = attempt(row, sets), attempt(row, (sets[0], sets[1][order], sets[2]))
    assert (before is None) == (after is None)
    for key, law in row.laws.items():
        if before is not None and key in before and law.order is not None:
            found = order[after[key]] if key == "index" and name == "nearest in a reference" else after[key]
            assert_equal(found, before[key], f"{name}.{key}")


@of_every_row(IN_PARTS, shape=shapes, data=st.data())
def test_in_parts(name, shape, data):
    """Any split of the evaluated rows; a part may be of one row where the function takes one."""
    row = TABLE[name]
    sets = draw_sets(shape, row.ties)
    least = 6 if name == "prdc" else 1
    ends, place = [], 0
    while shape.count - place >= 2 * least:
        place += data.draw(st.integers(least, max(least, shape.count - place - least)))
        ends.append(place)
    sizes = [b - a for a, b in zip([0, *ends], [*ends, shape.count], strict=True)]
    whole = outputs(row, sets)
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    parts = [outputs(row, chosen_rows(row, sets, slice(a, a + size))) for a, size in zip(starts, sizes, strict=True)]
    for key, law in row.laws.items():
        if law.parts == "joins":
            assert_equal(torch.cat([part[key] for part in parts]), whole[key], f"{name}.{key}")
        elif law.parts == "averages":
            found = sum(part[key].double() * size for part, size in zip(parts, sizes, strict=True)) / shape.count
            assert_equal(found, whole[key], f"{name}.{key}")


def chosen_rows(row: Row, sets: Sets, chosen: slice | Tensor) -> Sets:
    """Some of the evaluated rows, with their partners where they have some."""
    return tuple(rows[chosen] if place < row.paired else rows for place, rows in enumerate(sets))


@of_every_row(shape=shapes)
def test_bounds(name, shape):
    for dtype in (torch.float32, torch.float64):
        sets = tuple(rows.to(dtype) for rows in draw_sets(shape))
        for key, value in (attempt(TABLE[name], sets) or {}).items():
            low, high = TABLE[name].laws[key].bounds
            assert bool((value >= low).all()), (name, key, value)
            assert bool((value <= high).all()), (name, key, value)


# --- types of numbers -------------------------------------------------------------------------------------------------


@of_every_row(shape=shapes, dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_taken_as_it_is(name, shape, dtype):
    halves = tuple(rows.to(dtype) for rows in draw_sets(shape))
    compare(name, halves, tuple(rows.float() for rows in halves), lambda value, law: value)


@of_every_row(shape=shapes)
def test_results_have_the_precision_of_their_input(name, shape):
    sets = tuple(rows.float() for rows in draw_sets(shape))
    for dtype in (torch.float32, torch.float64):
        found = attempt(TABLE[name], tuple(rows.to(dtype) for rows in sets)) or {}
        assert {value.dtype for value in found.values() if value.is_floating_point()} <= {dtype}, name


@of_every_row(shape=shapes)
def test_float32_is_near_float64(name, shape):
    sets = tuple(rows.float() for rows in draw_sets(shape, TABLE[name].ties))
    compare(name, sets, tuple(rows.double() for rows in sets), lambda value, law: value, rel=2e-3)


# --- how it is computed -----------------------------------------------------------------------------------------------


@of_every_row(shape=shapes)
def test_inputs_are_left_as_they_were_and_the_result_is_the_same_again(name, shape):
    sets = draw_sets(shape)
    kept = tuple(rows.clone() for rows in sets)
    first, second = attempt(TABLE[name], sets), attempt(TABLE[name], sets)
    assert all(torch.equal(rows, before) for rows, before in zip(sets, kept, strict=True))
    assert (first is None) == (second is None)
    for key, value in (first or {}).items():
        assert torch.equal(value, second[key]) or bool(value.isnan().any()), (name, key)


@of_every_row(shape=shapes)
def test_rows_need_not_lie_side_by_side(name, shape):
    sets = draw_sets(shape, TABLE[name].ties)
    spread = tuple(torch.stack([rows, -rows], -1)[..., 0] for rows in sets)
    assert not any(rows.is_contiguous() for rows in spread)
    compare(name, sets, spread, lambda value, law: value)


@of_every_row(shape=shapes, rows=st.integers(1, 7))
def test_blocks_of_any_size(name, shape, rows):
    sets = draw_sets(shape, TABLE[name].ties)
    whole = attempt(TABLE[name], sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linalg, "BLOCK_ROWS", rows)
        patch.setattr(likelihood, "BLOCK", rows)
        patch.setattr(contrastive, "BLOCK_ENTRIES", rows * shape.count)
        patch.setattr(ranks, "CHUNK_ENTRIES", rows * shape.count)
        patch.setattr(sweep, "CHUNK_ENTRIES", rows * shape.count)
        found = attempt(TABLE[name], sets)
    assert (found is None) == (whole is None)
    for key, value in (whole or {}).items():
        if TABLE[name].laws[key].order is not None:
            assert_equal(found[key], value, f"{name}.{key}")


# --- what must not hold -----------------------------------------------------------------------------------------------

GENERIC = Shape(40, 4, 0, 1.0, False, 0)


def claims(kind: str) -> list[tuple[str, str]]:
    return [
        (name, key) for name, row in TABLE.items() for key, law in row.laws.items() if getattr(law, kind) == "changes"
    ]


@pytest.mark.parametrize(("name", "key"), claims("lengths"))
def test_lengths_count(name, key):
    assert_changes(name, key, stretch(draw_sets(GENERIC), 1))


@pytest.mark.parametrize(("name", "key"), claims("turn"))
def test_axes_count(name, key):
    assert_changes(name, key, tuple(rows @ rotation(GENERIC.dim, 1) for rows in draw_sets(GENERIC)))


def assert_changes(name: str, key: str, changed: Sets) -> None:
    before, after = (outputs(TABLE[name], sets)[key] for sets in (draw_sets(GENERIC), changed))
    assert float((before - after).abs().max()) > 1e-3 * float(before.abs().max()), (before, after)


# --- laws of single functions -----------------------------------------------------------------------------------------


@given(shape=shapes, factor=FACTORS)
def test_a_density_loses_the_logarithm_of_the_scale_in_every_dimension(shape, factor):
    row, sets = TABLE["log_likelihood"], draw_sets(shape)
    found = outputs(row, tuple(rows * factor for rows in sets))["value"]
    assert_equal(found, outputs(row, sets)["value"] - shape.dim * math.log(factor), "log_likelihood")


@given(shape=shapes)
def test_what_is_symmetric(shape):
    x, y, _ = draw_sets(shape)
    for function in (F.alignment, F.nt_xent, F.frechet_distance, F.cosine_mmd, F.cmmd, F.clip_score):
        assert_equal(function(y, x), function(x, y), function.__name__)
    there, back = F.mmd_halves(x, y), F.mmd_halves(y, x)
    assert_equal(there.variety, -back.variety, "variety")
    assert_equal(F.slerp(y, x, 0.7), F.slerp(x, y, 0.3), "slerp")
    gap, other = F.modality_gap(x, y), F.modality_gap(y, x)
    for key in gap._fields:
        assert_equal(getattr(other, key), getattr(gap, key), key)


@given(shape=shapes)
def test_precision_and_recall_change_places(shape):
    x, y, _ = draw_sets(shape, ties=False)
    there, back = F.prdc(x, y, 3), F.prdc(y, x, 3)
    assert (float(there.precision), float(there.recall)) == (float(back.recall), float(back.precision))


@given(shape=shapes, a=st.floats(0.1, 10), b=st.floats(-5, 5))
def test_a_divergence_does_not_depend_on_the_units(shape, a, b):
    x, y, _ = draw_sets(shape)
    p, q = F.conformity(x, y), F.conformity(y)
    assert_equal(F.conformity_kl(a * p + b, a * q + b), F.conformity_kl(p, q), "conformity_kl", rel=1e-4)


@given(seed=SEEDS, count=st.integers(10, 60))
def test_ranks_do_not_depend_on_the_units_and_turn_with_the_sign(seed, count):
    x, y = torch.randn(2, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = F.rank_correlation(x, y + x, resamples=20)
    for same in (
        F.rank_correlation(x.exp(), (y + x) ** 3, resamples=20),
        F.rank_correlation(3 * x - 1, y + x, resamples=20),
    ):
        for key in found._fields:
            assert_equal(getattr(same, key), getattr(found, key), key)
    turned = F.rank_correlation(-x, y + x, resamples=20)
    assert_equal(turned.correlation, -found.correlation, "correlation")


@given(shape=shapes, times=st.integers(2, 4))
def test_what_is_a_mean_does_not_count_repeats(shape, times):
    x, y, _ = draw_sets(shape)
    assert_equal(F.conformity(x, y.repeat(times, 1)), F.conformity(x, y), "conformity")
    assert_equal(F.vendi_score(x.repeat(times, 1)), F.vendi_score(x), "vendi_score")
    assert_equal(F.alignment(x.repeat(times, 1), y.repeat(times, 1)), F.alignment(x, y), "alignment")
    assert_equal(F.cmmd(x.repeat(times, 1), y), F.cmmd(x, y), "cmmd")


def test_the_laws_can_be_broken(monkeypatch):
    """Guard: a function that counts lengths, axes or places is noticed by each test."""
    wrong = {
        test_a_length_for_each_row: lambda sets: sets[0].norm(dim=1).mean(),
        test_one_scale_for_all_rows: lambda sets: sets[0].norm(dim=1).mean(),
        test_a_rotation: lambda sets: sets[0].abs().sum(),
        test_another_order: lambda sets: sets[0][0, 0],
        test_another_order_of_the_reference: lambda sets: sets[1][0, 0],
        test_blocks_of_any_size: lambda sets: torch.tensor(float(linalg.BLOCK_ROWS)),
        test_bounds: lambda sets: torch.tensor(2.0),
        test_half_precision_is_taken_as_it_is: lambda sets: torch.tensor(float(sets[0].element_size())),
        test_results_have_the_precision_of_their_input: lambda sets: torch.zeros((), dtype=torch.float16),
        test_float32_is_near_float64: lambda sets: torch.tensor(float(sets[0].element_size())),
    }
    for check, call in wrong.items():
        law = Law(bounds=(-1.0, 1.0))
        monkeypatch.setitem(TABLE, "wrong", Row(F.conformity, call, {"value": law}))
        with pytest.raises(AssertionError):
            check("wrong")
