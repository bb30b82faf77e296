"""Merging of references of different samples."""

from __future__ import annotations

import torch

from clipconformity.stream.moments import Moments
from clipconformity.stream.reference import ReferenceSet, reference_layout


def merge_references(first: ReferenceSet, second: ReferenceSet) -> ReferenceSet:
    """Merge two references; errors as of ``ReferenceSet.merge``."""
    if not isinstance(second, ReferenceSet):
        raise TypeError(f"other: expected a ReferenceSet, got {type(second).__name__}.")
    identified = first.encoder_id is not None and second.encoder_id is not None
    names = ("embed_dim", "modality", "normalized", "grouped")
    for name in names if identified else ("spec", *names):
        mine, theirs = getattr(first, name), getattr(second, name)
        if mine != theirs:
            raise ValueError(
                f"cannot merge references of different {name}: {mine!r} and {theirs!r}; "
                "build both with the same encoder and of the same kind."
            )
    if identified:
        first.provenance.check(second.provenance)
    if first.count == second.count and torch.equal(first.sketch.keys, second.sketch.keys):
        raise ValueError("cannot merge a reference with itself: every sample would count twice.")
    datasets = sorted({d for part in (first, second) for d in (part.dataset or "").split(" + ") if d})
    layouts = [part.moments.layout for part in (first, second)]
    layout = reference_layout(
        first.embed_dim,
        min(one.max_samples for one in layouts),
        unit_second_moment=all(one.unit_second_moment for one in layouts),
    )
    state = {name: first.moments.state[name] for name in layout.names()}
    both = Moments(layout, state, first.moments.names).merge(second.moments)
    return ReferenceSet(both, first.provenance, dataset=" + ".join(datasets) or None)
