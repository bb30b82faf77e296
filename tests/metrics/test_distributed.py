"""Two and three gloo ranks, with uneven and empty shares, against one process."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import ellipsoid_rows, start_ranks
from torch import Tensor

import clipconformity as cc

DIM = 10
SHARES = {2: (240, 60), 3: (170, 0, 130)}
EMPTY_FIRST = {2: (0, 300), 3: (0, 1, 299)}
CASES = (("uneven", False), ("uneven", True), ("empty first", True))

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def rows() -> Tensor:
    return ellipsoid_rows(300, DIM, torch.Generator().manual_seed(1), offset=1.2)


def reference_rows() -> Tensor:
    return ellipsoid_rows(600, DIM, torch.Generator().manual_seed(2))


def groups() -> Tensor:
    return torch.arange(300) // 3


def metrics() -> dict[str, object]:
    reference = cc.ReferenceSet.fit(reference_rows())
    return {
        "conformity": cc.Conformity(reference),
        "own set": cc.Conformity(embed_dim=DIM),
        "own set beyond the sample": cc.Conformity(embed_dim=DIM, max_samples=50),
        "kl": cc.ConformityKL(reference),
        "kl to real rows": cc.ConformityKL(embed_dim=DIM),
        "norms": cc.EmbeddingNorm(embed_dim=DIM),
        "norms beyond the sample": cc.EmbeddingNorm(embed_dim=DIM, max_samples=50),
        "prdc": cc.PRDC(reference),
        "prdc beyond the sample": cc.PRDC(reference, max_samples=50),
        "collection": cc.ConformityMetrics(reference),
    }


def feed(metric, name: str, part: slice, real_part: slice, grouped: bool) -> None:
    """Give a metric its share in batches of 64; an empty share gives no update at all."""
    share, ids = rows()[part], groups()[part]
    for start in range(0, len(share), 64):
        batch = slice(start, start + 64)
        metric.update(share[batch], groups=ids[batch] if grouped else None)
    if name == "kl to real rows" and len(reference_rows()[real_part]):
        metric.update(reference_rows()[real_part], real=True)


def read(metric) -> dict[str, object]:
    """Everything that a metric can be asked for."""
    value = metric.compute()
    result = dict(value) if isinstance(value, dict) else {"value": value}
    if isinstance(metric, cc.Conformity):
        result["histogram"], result["edges"] = metric.histogram()
        result["exact"] = torch.tensor(float(metric.exact))
    if isinstance(metric, cc.ConformityKL):
        result["reverse"] = metric.reverse()
        result["low"], result["high"] = map(torch.tensor, metric.interval(resamples=20))
        result["floor"] = torch.tensor(metric.noise_floor(resamples=20))
        result["lower bound"] = torch.tensor(float(metric.is_lower_bound))
    return result


def everything(part: slice, real_part: slice, grouped: bool) -> dict[str, dict[str, object]]:
    found = {}
    for name, metric in metrics().items():
        feed(metric, name, part, real_part, grouped)
        found[name] = read(metric)
    return found


def grouping(grouped: bool) -> str:
    return "groups" if grouped else "no groups"


def shares(sizes: tuple[int, ...], rank: int) -> slice:
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The ``compute`` method of metric")  # of the empty rank
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {}
    for kind, grouped in CASES:
        sizes = {"uneven": SHARES, "empty first": EMPTY_FIRST}[kind][world]
        real_sizes = tuple(reversed([2 * n for n in sizes]))
        part, real = shares(sizes, rank), shares(real_sizes, rank)
        found[f"{kind}, {grouping(grouped)}"] = everything(part, real, grouped)
    metric = metrics()["conformity"]
    feed(metric, "conformity", shares(SHARES[world], rank), slice(0, 0), False)
    metric.compute()
    found["exact"] = metric.exact
    found["own count"] = metric.evaluated_count.sum()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="session", params=[2, 3])
def ranks(request, tmp_path_factory) -> tuple[int, list[dict]]:
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    start_ranks(worker, (request.param, str(folder)), request.param)
    return request.param, [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="session")
def alone() -> dict[bool, dict]:
    """What one process gives, without and with groups."""
    return {grouped: everything(slice(None), slice(None), grouped) for grouped in (False, True)}


@pytest.mark.parametrize(("kind", "grouped"), CASES)
@pytest.mark.parametrize("name", list(metrics()))
def test_every_rank_gives_what_one_process_gives(name, kind, grouped, ranks, alone):
    _, found = ranks
    for rank in found:
        for key, value in alone[grouped][name].items():
            given = rank[f"{kind}, {grouping(grouped)}"][name][key]
            assert given.shape == value.shape, key
            loose = not grouped and (key.endswith("_se") or key in ("low", "high"))
            # Rows without groups are dealt to buckets as they come, on each rank anew.
            tolerance = {"rel": 0.3, "abs": 0.03} if loose else {"rel": 1e-5, "abs": 1e-6}
            assert given.flatten().tolist() == pytest.approx(value.flatten().tolist(), **tolerance), key


def test_all_ranks_agree(ranks):
    _, found = ranks
    for rank in found[1:]:
        for case, results in found[0].items():
            if case in ("own count", "exact"):
                continue
            for name, values in results.items():
                for key, value in values.items():
                    assert torch.equal(value, rank[case][name][key]), (case, name, key)


def test_read_outs_give_the_states_back(ranks):
    world, found = ranks
    assert [int(rank["own count"]) for rank in found] == list(SHARES[world])


def test_the_values_compared_are_finite(alone):
    """Guard of the comparison above."""
    for results in alone.values():
        assert all(math.isfinite(float(v.sum())) for values in results.values() for v in values.values())
