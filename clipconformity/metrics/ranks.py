"""Checks that the metrics of all ranks agree, before any state is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_sum

if TYPE_CHECKING:
    from clipconformity.metrics.base import EmbeddingMetric
    from clipconformity.stream.reference import ReferenceSet

PARTS = ("class", "options", "dtypes", "reference")
"""Parts that must agree, in the order of the card: a hash for each, but several figures for the reference."""
TOLERANCE = 1e-6
"""Relative tolerance: references built from the same rows on different ranks differ in the last bits."""


def check_ranks(metric: EmbeddingMetric, gather: Callable[..., list[Tensor]], process_group: Any = None) -> None:
    """Refuse ranks whose metrics differ, with the same error on every rank.

    Args:
        metric: The metric of this rank.
        gather: Returns the tensors of all ranks for a tensor and a group, as torchmetrics' ``gather_all_tensors``.
        process_group: The group; by default the metric's own.

    Raises:
        ValueError: If class, options, dtypes or reference differ between ranks; names the rank.
        RuntimeError: If a rank does not take part, because it has died or does not call this.
    """
    try:
        cards = [card.cpu() for card in gather(_describe_rank(metric), group=process_group or metric.process_group)]
    except RuntimeError as error:
        raise RuntimeError(
            f"{type(metric).__name__}: another rank took no part in this read-out within the time that the process "
            "group allows: it has died, or does not call it. The time is that of init_process_group(timeout=...). "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    hashes = len(PARTS) - 1
    allowed = TOLERANCE * cards[0].abs()
    allowed[:hashes] = 0
    for rank, card in enumerate(cards):
        apart = (card - cards[0]).abs() > allowed
        if bool(apart.any()):
            part = PARTS[min(int(apart.nonzero()[0]), hashes)]
            raise ValueError(
                f"{type(metric).__name__}: the {part} of rank {rank} {'differ' if part in PARTS[1:3] else 'differs'} "
                "from that of rank 0; make the metric in the same way on every rank."
            )


def _describe_rank(metric: EmbeddingMetric) -> Tensor:
    """Describe a rank's metric in numbers, ``(8,)`` float64."""
    sums = [getattr(metric, name) for name, kind in metric._reductions.items() if kind is dim_zero_sum]
    readout = None  # ModalityGap has none
    if hasattr(metric, "readout"):
        readout = metric.readout.name, sorted(vars(metric.readout).items())
    hashed = (
        f"{type(metric).__module__}.{type(metric).__qualname__}",
        repr((metric.embed_dim, metric.max_samples, metric.allow_normalized, readout)),
        repr(sorted({str(one.dtype) for one in sums})),
    )
    numbers = [float(int.from_bytes(hashlib.blake2b(word.encode(), digest_size=6).digest(), "big")) for word in hashed]
    return torch.tensor([*numbers, *_describe_reference(metric.reference)], dtype=torch.float64, device=sums[0].device)


def _describe_reference(reference: ReferenceSet | None) -> list[float]:
    """Return figures that identify a reference; none is near 0, where rounding would matter."""
    if reference is None:
        return [0.0] * 5
    figures = [float(reference.count)]
    for mean in (reference.mean, reference.unit_mean):
        direction = torch.linspace(-1, 1, len(mean), dtype=torch.float64)
        figures += [float(mean.norm()), float(mean @ direction + 2 * mean.norm() * direction.norm())]
    return figures
