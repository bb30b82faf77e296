"""A user's code, for mypy alone: `make types` checks it strictly, and nothing runs it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

import clipconformity as cc
from clipconformity.evaluation import Figure, Score, Verdict, embedding_source, score


def kl_with_interval(reference: cc.ReferenceSet, embeddings: Tensor) -> tuple[float, float]:
    metric = cc.ConformityKL(reference, encoder="tiny")
    metric.update(embeddings, ids=["a", "b"])
    interval: cc.Interval = metric.interval(resamples=100)
    low, high = metric.interval()
    floor: float = metric.noise_floor()
    return max(low, interval.low, floor), min(high, interval.high)


def figures_of(path: Path, reference: cc.ReferenceSet) -> dict[str, float]:
    result: Score = score(embedding_source([path]), reference, metrics=("frechet",))
    figure: Figure = result.figures["frechet"]
    verdict: Verdict = result.verdicts["variety"]
    known = {} if figure.value is None else {"frechet": figure.value}
    return known | {"kl": result.conformity_kl, "effect": verdict.effect}


def neighbours_of(reference: cc.ReferenceSet, image: Tensor, text: Tensor) -> list[str]:
    metric = cc.PRDC(reference, k=3)
    metric.update(image, ids=["a", "b"])
    precision: cc.Interval = metric.intervals()["precision"]
    pairs = cc.CLIPScore(embed_dim=4)
    pairs.update(image, text)
    value: Tensor = pairs.compute()
    found = cc.functional.nearest(image, reference)
    return metric.off_manifold() if precision.low < pairs.interval().high + value else [str(found.cosine)]


def values(reference: cc.ReferenceSet, embeddings: Tensor) -> dict[str, Tensor]:
    metrics = cc.ConformityMetrics(reference, intervals=True)
    metrics.update(embeddings)
    low, high = metrics.interval()
    found: dict[str, Tensor] = metrics.compute()
    return found if low < high else {}
