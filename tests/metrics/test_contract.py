"""Every metric class holds the contract."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from contract import CLAIMS, CLASSES, COUNT, SHARES, assert_same, feed, maker, numbers, worker
from helpers import start_ranks

import clipconformity as cc

every_class = pytest.mark.parametrize("name", CLASSES)


@every_class
@pytest.mark.parametrize("claim", CLAIMS)
def test_every_class_holds(claim, name):
    CLAIMS[claim](maker(name))


def test_every_public_metric_class_is_covered():
    """Guard: what the package shows as a metric and what the contract goes over are the same."""
    from torchmetrics import Metric, MetricCollection

    public = {name for name in cc.__all__ if isinstance(getattr(cc, name), type)}
    assert {name for name in public if issubclass(getattr(cc, name), Metric | MetricCollection)} == set(CLASSES)


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory) -> tuple[int, list[dict]]:
    if not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    folder = tmp_path_factory.mktemp(f"contract{request.param}")
    start_ranks(worker, (request.param, str(folder)), request.param)
    return request.param, [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@every_class
@pytest.mark.parametrize("kind", ["uneven", "one empty"])
def test_every_rank_gives_what_one_process_gives(kind, name, ranks):
    world, found = ranks
    first = SHARES[world][kind][0]
    expected = feed(maker(name)()).compute()
    again = feed(feed(maker(name)()), slice(first, COUNT)).compute()
    for rank in found:
        assert_same(rank[kind, name][0], expected)
        assert_same(rank[kind, name][1], again)
        assert rank[kind, name] == found[0][kind, name]


def test_the_values_compared_differ_between_the_shares():
    """Guard: a rank that gave its own rows' value would be seen."""
    for name in CLASSES:
        assert numbers(feed(maker(name)(), slice(0, 110)).compute()) != numbers(feed(maker(name)()).compute())
