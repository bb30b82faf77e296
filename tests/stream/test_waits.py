"""What an update asks of a device: on one without values nothing can be read, so an update that waits for one fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import ellipsoid_rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipconformity import ReferenceSet
from clipconformity.stream.chunks import CHUNK, MAX_DEVICE_ROWS, MAX_ROWS, _fit_rows, max_rows
from clipconformity.stream.layout import Layout
from clipconformity.stream.moments import Moments

DIM, BATCH = 16, 5000
"""More rows in a batch than are worked through at once on a device."""
EMPTY = torch.device("meta")


class Crossings(TorchDispatchMode):
    """Note each operation that takes something from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors if tensor.ndim}) > 1:
            self.found.append(str(func))
        return result


@pytest.fixture
def layouts(generator: torch.Generator) -> Iterator[dict[str, Layout]]:
    rows = ellipsoid_rows(300, DIM, generator)
    plain, grouped = ReferenceSet.fit(rows), ReferenceSet.fit(rows, groups=torch.arange(300) // 3)
    everything = {"second_moment": True, "unit_second_moment": True, "max_samples": 10 * BATCH, "rows": True}
    return {
        "alone": Layout(DIM),
        "beside a reference": plain.view(),
        "everything": plain.view(**everything),
        "beside a reference with groups": grouped.view(**everything),
    }


@pytest.mark.parametrize("size", [100, BATCH])
@pytest.mark.parametrize("name", ["alone", "beside a reference", "everything", "beside a reference with groups"])
def test_an_update_on_a_device_neither_waits_for_it_nor_copies(layouts, name, size):
    """The first batch brings the reference's direction to the device, and no later one brings anything."""
    moments = Moments(layouts[name], layouts[name].zeros(EMPTY))
    counted = []
    for _ in range(3):
        with Crossings() as crossings:
            for batch in torch.empty(BATCH, DIM, device=EMPTY).split(size):
                moments.update(batch)
            moments.flush()
        counted.append(len(crossings.found))
    assert counted[0] <= 2
    assert counted[1:] == [0, 0]


@pytest.mark.parametrize("placed", [False, True])
def test_an_update_with_ids_does_not_wait_either(layouts, placed):
    """Their hashes go to the device, and do not come back."""
    moments = Moments(layouts["everything"], layouts["everything"].zeros(EMPTY))
    ids = [f"row {n}" for n in range(BATCH)]
    moments.update(torch.empty(BATCH, DIM, device=EMPTY), ids=ids, placed=placed)
    for start in range(0, 300, 100):
        moments.update(torch.empty(100, DIM, device=EMPTY), ids=ids[start : start + 100], placed=placed)
    assert sorted(moments.names.values()) == sorted(ids)


def test_the_sample_is_cut_once_as_many_rows_came_as_it_keeps(layouts):
    """The one wait: of so many batches one."""
    layout = ReferenceSet.fit(ellipsoid_rows(300, DIM, torch.Generator().manual_seed(0))).view(max_samples=2 * BATCH)
    moments = Moments(layout, layout.zeros(EMPTY))
    for _ in range(3):
        moments.update(torch.empty(BATCH, DIM, device=EMPTY))
    with pytest.raises(NotImplementedError, match="unique"):
        moments.update(torch.empty(BATCH, DIM, device=EMPTY))


@pytest.mark.parametrize(
    ("free", "rows"), [(80 * 2**30, MAX_DEVICE_ROWS), (2 * 2**30, 2**31 // (64 * 1024 * 8)), (2**20, CHUNK)]
)
def test_rows_are_added_at_once_as_the_memory_of_a_device_allows(free, rows, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (free, 2 * free))
    _fit_rows.cache_clear()
    assert {max_rows(1024, torch.device("cuda", 0)) for _ in range(3)} == {rows}
    assert len(asked) == 1
    assert max_rows(1024, torch.device("cpu")) == MAX_ROWS
    _fit_rows.cache_clear()


@pytest.mark.parametrize(
    "ask", [lambda t: t.sum().item(), lambda t: t[t > 0], lambda t: bool(t.any()), lambda t: t.cpu()]
)
def test_a_wait_would_be_seen(ask):
    with pytest.raises((RuntimeError, NotImplementedError)):
        ask(torch.empty(3, device=EMPTY))
