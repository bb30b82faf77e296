"""Redrawn rows that leave the window of a divergence, which holds the observed ones."""

from __future__ import annotations

import pytest
import torch

from clipconformity import functional as F
from clipconformity.functional.density import CELLS
from clipconformity.functional.divergence import Side, compute_plug_in, make_grid, plan_readout


@pytest.mark.parametrize(("place", "edge"), [(0, "first"), (0.1, "first"), (0.9, "last"), (1, "last")])
def test_rows_beyond_the_window_count_in_its_outermost_cell(place, edge):
    generator = torch.Generator().manual_seed(0)
    evaluated, reference = torch.randn(2, 40, generator=generator, dtype=torch.float64)
    grid = make_grid(reference)
    sides = [Side(grid.counts(rows), 40.0) for rows in (evaluated, reference)]
    readout = plan_readout(*sides)
    outermost = {"first": readout.first, "last": readout.last - 1}[edge] * readout.factor + 1
    outside = round(place * (CELLS + 1))
    assert outside // readout.factor < readout.first or outside // readout.factor > readout.last

    def with_rows_at(cell: int, count: int) -> torch.Tensor:
        cells = grid.locate(evaluated)
        cells[:count] = cell
        histogram = torch.bincount(cells, minlength=CELLS + 2).double()
        return compute_plug_in(readout, histogram[None], sides[1].counts[None]).forward

    for count in (3, 40):  # 40 are all, and once gave NaN
        assert torch.equal(with_rows_at(outside, count), with_rows_at(outermost, count))
        assert bool(with_rows_at(outside, count).isfinite().all())


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_the_intervals_of_a_sweep_over_few_pairs_are_finite():
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 12, 2, generator=generator, dtype=torch.float64)
    for seed in range(5):
        sweep = F.shift_sweep(
            image, text, [0.0, 0.5], 10.0, resamples=50, generator=torch.Generator().manual_seed(seed)
        )
        for key, value in sweep._asdict().items():
            assert bool(torch.as_tensor(value).isfinite().all()), key
