"""What every metric class must hold, as claims about a function that makes one.

A class of the package is covered once it stands in ``clipconformity.metrics.__all__``. One of another package:
``for claim in CLAIMS.values(): claim(lambda **options: Mine(reference, **options))``.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import ellipsoid_rows
from torch import Tensor, nn

import clipconformity as cc
from clipconformity import metrics

DIM = 8
COUNT = 150
Make = Callable[..., Any]
CLAIMS: dict[str, Callable[[Make], None]] = {}
CLASSES = tuple(metrics.__all__)


def claim(check: Callable[[Make], None]) -> Callable[[Make], None]:
    """Put a check among the claims, under its name."""
    CLAIMS[check.__name__] = check
    return check


@lru_cache(maxsize=1)
def reference() -> cc.ReferenceSet:
    return cc.ReferenceSet.fit(ellipsoid_rows(400, DIM, torch.Generator().manual_seed(1)))


@lru_cache(maxsize=1)
def rows() -> Tensor:
    return ellipsoid_rows(COUNT, DIM, torch.Generator().manual_seed(2), offset=1.2)


@lru_cache(maxsize=1)
def partners() -> Tensor:
    """Rows of the other modality, for a metric of pairs."""
    return ellipsoid_rows(COUNT, DIM, torch.Generator().manual_seed(5), offset=1.1)


def maker(name: str) -> Make:
    """Say how a class is made: with a reference where it takes one."""
    kind = getattr(metrics, name)
    if "reference" in inspect.signature(kind).parameters:
        return lambda **options: kind(reference(), **options)
    return lambda **options: kind(embed_dim=DIM, **options)


def batch(metric: Any, part: slice | Tensor, cast: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, ...]:
    """Give the rows that one update takes: one batch, or two of pairs."""
    positional = [
        one for one in inspect.signature(metric.update).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    return tuple(cast(values[part]) for values in (rows(), partners())[: len(positional)])


def feed(
    metric: Any, part: slice | Tensor = slice(None), size: int = 64, call: str = "update", cast=lambda x: x
) -> Any:
    """Give a metric its rows in batches."""
    whole = torch.arange(COUNT)[part]
    for indices in whole.split(size):
        getattr(metric, call)(*batch(metric, indices, cast))
    return metric


def numbers(value: Any) -> dict[str, float]:
    return {k: float(v) for k, v in value.items()} if isinstance(value, dict) else {"value": float(value)}


def assert_same(found: Any, expected: Any, *, rel: float = 1e-5, nan_ok: bool = False) -> None:
    """Compare two values, standard errors and intervals too."""
    found, expected = numbers(found), numbers(expected)
    assert set(found) == set(expected)
    assert nan_ok or all(map(math.isfinite, expected.values())), expected
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=rel, abs=1e-6, nan_ok=nan_ok), key


@claim
def batches_do_not_matter(make: Make) -> None:
    whole = feed(make(), size=COUNT).compute()
    for size in (1, 7, 64):
        assert_same(feed(make(), size=size).compute(), whole)


@claim
def order_does_not_matter(make: Make) -> None:
    whole = feed(make()).compute()
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(4))
    for order in (rows().norm(dim=1).argsort(), shuffled):
        assert_same(feed(make(), order).compute(), whole)


@claim
def order_does_not_matter_beyond_the_row_sample(make: Make) -> None:
    whole = feed(make(max_samples=60)).compute()
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(4))
    assert_same(feed(make(max_samples=60), shuffled, size=17).compute(), whole)


@claim
def an_empty_batch_changes_nothing(make: Make) -> None:
    expected = feed(make(), size=50).compute()
    for place in range(4):
        metric = make()
        for number in range(4):
            if number == place:
                metric.update(*batch(metric, slice(0, 0)))
            if number < 3:
                metric.update(*batch(metric, slice(50 * number, 50 * number + 50)))
        assert numbers(metric.compute()) == numbers(expected), place


@claim
def forward_is_update_and_the_value_of_the_batch(make: Make) -> None:
    metric = make()
    for part in (slice(0, 90), slice(90, COUNT)):
        assert_same(metric(*batch(metric, part)), feed(make(), part, size=COUNT).compute())
    assert_same(metric.compute(), feed(make(), size=90).compute())


@claim
def a_forward_that_is_too_small_is_nan_and_loses_nothing(make: Make) -> None:
    metric = feed(make(), slice(0, COUNT - 1))
    assert all(map(math.isnan, numbers(metric(*batch(metric, slice(COUNT - 1, COUNT)))).values()))
    assert_same(metric.compute(), feed(make()).compute())


@claim
def reset_forgets_everything(make: Make) -> None:
    metric = feed(make(max_samples=60), slice(0, 100))
    metric.compute()
    metric.reset()
    found = feed(metric, slice(80, COUNT)).compute()
    assert numbers(found) == numbers(feed(make(max_samples=60), slice(80, COUNT)).compute())


@claim
def a_copy_goes_on_by_itself(make: Make) -> None:
    for copied in (lambda m: m.clone(), copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        for computed in (False, True):
            metric = feed(make(), slice(0, 80))
            before = numbers(feed(make(), slice(0, 80)).compute())
            if computed:
                metric.compute()
            other = feed(copied(metric), slice(80, COUNT))
            assert_same(other.compute(), feed(make(), size=80).compute())
            assert numbers(metric.compute()) == before
            other.reset()
            feed(metric, slice(80, COUNT))
            assert_same(metric.compute(), feed(make(), size=80).compute())


@claim
def compute_can_be_called_twice_and_between_updates(make: Make) -> None:
    metric = feed(make(), slice(0, 100))
    first = numbers(metric.compute())
    assert first == numbers(feed(make(), slice(0, 100)).compute())
    assert numbers(metric.compute()) == first
    feed(metric, slice(100, COUNT))
    second = numbers(metric.compute())
    assert second != first
    assert_same(second, feed(make(), size=100).compute())


@claim
def states_stay_float64_whatever_a_parent_is_cast_to(make: Make) -> None:
    expected = numbers(feed(make(), size=80).compute())
    for cast in (
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.float(),
    ):
        metric = feed(make(), slice(0, 80))
        cast(nn.Sequential(metric, nn.Linear(2, 2)))
        assert_same(feed(metric, slice(80, COUNT)).compute(), expected, rel=1e-9)
        metric = make()
        metric.set_dtype(torch.float16)
        assert_same(feed(metric, size=80).compute(), expected, rel=1e-9)


@claim
def half_precision_rows_are_taken_as_they_are(make: Make) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        found = feed(make(), cast=lambda x, dtype=dtype: x.to(dtype))
        # The same rows, rounded beforehand.
        assert_same(found.compute(), feed(make(), cast=lambda x, dtype=dtype: x.to(dtype).float()).compute())


@claim
def autocast_changes_nothing(make: Make) -> None:
    expected = feed(make()).compute()
    for call in ("update", "forward"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = feed(make(), call=call).compute()
        assert numbers(found) == numbers(expected)


@claim
def inference_mode_can_come_and_go(make: Make) -> None:
    """Lightning validates in it; a metric may be made, fed, reset and read on either side."""
    expected = numbers(feed(make(), size=50).compute())
    for made_inside in (False, True):
        for call in ("update", "forward"):
            with torch.inference_mode(made_inside):
                metric = make()
            for _ in range(2):
                for number in range(3):
                    with torch.inference_mode(number != 1):
                        feed(metric, slice(50 * number, 50 * number + 50), call=call)
                assert numbers(metric.compute()) == expected
                with torch.inference_mode():
                    metric.reset()
                    copied = copy.deepcopy(metric)
            for other in (metric, copied):
                assert numbers(feed(other, size=50).compute()) == expected


@claim
def gradients_are_not_kept(make: Make) -> None:
    metric = feed(make(), cast=lambda x: x.clone().requires_grad_())
    value = metric.compute()
    assert not any(v.requires_grad for v in (value.values() if isinstance(value, dict) else [value]))
    assert_same(value, feed(make()).compute())


@claim
def values_are_scalars_of_one_type(make: Make) -> None:
    value = feed(make()).compute()
    for one in value.values() if isinstance(value, dict) else [value]:
        assert isinstance(one, Tensor)
        assert (one.shape, one.dtype) == ((), torch.float32)


# --- several ranks, all classes in one start of the processes ---------------------------------------------------------

SHARES = {
    2: {"uneven": (110, 40), "one empty": (0, COUNT)},
    3: {"uneven": (90, 1, 59), "one empty": (70, 0, 80)},
}


def worker(rank: int, world: int, folder: str) -> None:
    """What a rank finds: by kind of share and class, the value of all ranks, then its own rows gone on alone."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # of the empty rank
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {}
    for kind, sizes in SHARES[world].items():
        start = sum(sizes[:rank])
        for name in CLASSES:
            metric = feed(maker(name)(), slice(start, start + sizes[rank])) if sizes[rank] else maker(name)()
            found[kind, name] = [numbers(metric.compute())]
            feed(metric, slice(start, start + sizes[rank]) if rank else slice(0, 0))  # a state given back goes on
            found[kind, name].append(numbers(metric.compute()))
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
