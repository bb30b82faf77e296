"""Ranks that measure different things, or are gone, end with an error on every rank that is there."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import ellipsoid_rows, start_ranks

import clipconformity as cc
from clipconformity.metrics.ranks import check_ranks

DIM = 6
LIMIT = 5
"""Seconds that the process group waits."""

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def rows(seed: int, count: int = 60) -> torch.Tensor:
    return ellipsoid_rows(count, DIM, torch.Generator().manual_seed(seed))


def cast(metric: cc.EmbeddingNorm) -> cc.EmbeddingNorm:
    metric.evaluated_raw_sum = metric.evaluated_raw_sum.float()
    return metric


def shuffled(seed: int) -> torch.Tensor:
    return rows(0)[torch.randperm(60, generator=torch.Generator().manual_seed(seed))]


# What each of two ranks makes, and what the error calls it; None where they agree.
CASES = {
    "reference": (lambda rank: cc.ConformityKL(cc.ReferenceSet.fit(rows(rank))), "reference of rank 1 differs"),
    "count": (lambda rank: cc.ConformityKL(cc.ReferenceSet.fit(rows(0, 60 + rank))), "reference of rank 1 differs"),
    "one without": (
        lambda rank: cc.Conformity(cc.ReferenceSet.fit(rows(0))) if rank else cc.Conformity(embed_dim=DIM),
        "reference of rank 1 differs",
    ),
    "max_samples": (lambda rank: cc.EmbeddingNorm(embed_dim=DIM, max_samples=50 + rank), "options of rank 1 differ"),
    "neighbours": (
        lambda rank: cc.PRDC(cc.ReferenceSet.fit(rows(0)), k=3 + rank),
        "options of rank 1 differ",
    ),
    "dimension": (lambda rank: cc.EmbeddingNorm(embed_dim=DIM + rank), "options of rank 1 differ"),
    "class": (lambda rank: (cc.SelfConformity, cc.EmbeddingNorm)[rank](embed_dim=DIM), "class of rank 1 differs"),
    "dtypes": (
        lambda rank: cast(cc.EmbeddingNorm(embed_dim=DIM)) if rank else cc.EmbeddingNorm(embed_dim=DIM),
        "dtypes of rank 1 differ",
    ),
    "nothing": (lambda rank: cc.EmbeddingNorm(embed_dim=DIM), None),
    "the order of the reference's rows": (lambda rank: cc.ConformityKL(cc.ReferenceSet.fit(shuffled(rank))), None),
}


def differing(rank: int, folder: str) -> None:
    start(rank, folder)
    found = {}
    for case, (make, _) in CASES.items():
        metric = make(rank)
        metric.update(rows(7, 40)[:, :1].expand(-1, metric.embed_dim) + torch.arange(metric.embed_dim))
        try:
            metric.compute()
            found[case] = None
        except ValueError as error:
            found[case] = str(error)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def dying(rank: int, folder: str) -> None:
    start(rank, folder)
    group = dist.new_group(timeout=timedelta(seconds=LIMIT))
    metric = cc.EmbeddingNorm(embed_dim=DIM, process_group=group)
    metric.update(rows(rank))
    metric.compute()
    if rank == 1 and Path(folder).name == "dead":
        os._exit(0)
    if rank == 1:
        time.sleep(3 * LIMIT)  # alive, and elsewhere
        os._exit(0)
    metric.update(rows(2))
    began = time.monotonic()
    try:
        metric.compute()
        message = "none"
    except RuntimeError as error:
        message = str(error)
    (Path(folder) / "found").write_text(f"{time.monotonic() - began:.1f}\n{message}")
    os._exit(0)  # the group is broken


def start(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, str | None]]:
    folder = tmp_path_factory.mktemp("ranks")
    start_ranks(differing, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_ranks_that_differ_end_with_the_same_error_on_each(case, found):
    message = CASES[case][1]
    assert found[0][case] == found[1][case] or case == "class"  # whose name stands before it
    for rank in found:
        assert rank[case] is None if message is None else message in rank[case]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dead", "elsewhere"])
def test_where_a_rank_is_gone_the_others_end_within_the_limit_and_say_so(how, tmp_path):
    folder = tmp_path / how
    folder.mkdir()
    start_ranks(dying, (str(folder),), 2)
    seconds, message = (folder / "found").read_text().split("\n", 1)
    assert float(seconds) < LIMIT + 4
    assert "EmbeddingNorm: another rank took no part in this read-out" in message


def test_without_other_ranks_there_is_nothing_to_refuse():
    metric = cc.EmbeddingNorm(embed_dim=DIM)
    check_ranks(metric, lambda card, group: [card, card.clone()])
