"""One pass over raw embeddings: the accumulated state of both sides, checked when it is read out."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from clipconformity.functional.validation import check_same_dim
from clipconformity.stream.alignment import MeanScore, Partners, pair_buckets
from clipconformity.stream.checks import check_stream
from clipconformity.stream.chunks import RowValues
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.layout import SECOND_MOMENTS, Layout, State
from clipconformity.stream.moments import Moments
from clipconformity.stream.pending import Pending
from clipconformity.stream.reference import ReferenceSet, reference_layout
from clipconformity.stream.row_sample import Labels

Value = TypeVar("Value")
EVALUATED, REAL = "evaluated", "real"
MAX_SAMPLES = 10_000
"""Default number of rows kept for non-additive figures."""


class Needs(NamedTuple):
    """State that a read-out needs beside counts, sums and norms."""

    conformity: bool = False
    """Conformity to the reference: its histogram, and its values in the row sample."""
    rows: bool = False
    """Raw rows in the row sample."""
    second_moment: bool = False
    """The D x D second moment."""
    unit_second_moment: bool = False
    """The D x D second moment of the unit vectors."""
    reference: bool = False
    """A reference, or real rows."""
    partners: bool = False
    """Partners of each sample: the captions of an image, or the image of a caption."""
    references: bool = False
    """Reference captions of each sample, which is a caption."""

    def union(self, other: Needs) -> Needs:
        """Return the needs of both."""
        return Needs(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))


def choose_layouts(dim: int, needs: Needs, reference: ReferenceSet | None, max_samples: int) -> dict[str, Layout]:
    """Choose the layouts of both sides; there is a real side where a reference is needed and none is given.

    Raises:
        ValueError: If fewer than two rows are to be kept.
    """
    if max_samples < 2:
        raise ValueError(f"max_samples: expected at least 2, got {max_samples}.")
    kept = max_samples if needs.rows or needs.conformity else 0
    moments = {name: getattr(needs, name) for name in SECOND_MOMENTS}
    if needs.conformity and reference is not None:
        evaluated = reference.view(max_samples=kept, rows=needs.rows, **moments)
    else:
        evaluated = Layout(dim, max_samples=kept, **moments)
    if needs.reference and reference is None:
        return {EVALUATED: evaluated, REAL: reference_layout(dim, max_samples)}
    return {EVALUATED: evaluated}


class OverlapWarning(UserWarning):
    """Evaluated samples are also in the reference."""


class Stream:
    """Evaluated samples, and the reference or real samples that they are compared with.

    Args:
        sides: Layout of each side.
        reference: The reference, where one is given.
        allow_normalized: Accept L2-normalised embeddings.
        states: The state of each side; by default new ones.
        names: The ids behind the hashes of each side's row sample.
        pending: The batches of each side that wait to be added.

    Attributes:
        of_one_kind: Whether encoder and modality of both sides are known to agree.
    """

    def __init__(
        self,
        sides: dict[str, Layout],
        *,
        reference: ReferenceSet | None = None,
        allow_normalized: bool = False,
        states: dict[str, State] | None = None,
        names: dict[str, dict[int, str]] | None = None,
        pending: dict[str, Pending] | None = None,
    ) -> None:
        given, known, waiting = states or {}, names or {}, pending or {}
        self.sides = {
            side: Moments(layout, given.get(side), known.get(side), waiting.get(side)) for side, layout in sides.items()
        }
        self.reference = reference
        self.allow_normalized = allow_normalized
        self.of_one_kind = False
        self._real: ReferenceSet | None = None  # reference of the real rows, and comparison: until the next update
        self._contrast: Contrast | None = None
        self._once: dict[Hashable, Any] = {}  # values of read-outs, likewise

    @classmethod
    def open_against(
        cls,
        reference: ReferenceSet,
        needs: Needs,
        *,
        max_samples: int = MAX_SAMPLES,
        allow_normalized: bool = False,
    ) -> Stream:
        """Open a stream to be compared with a reference; normalised rows are allowed where the reference has them."""
        return cls(
            choose_layouts(reference.embed_dim, needs, reference, max_samples),
            reference=reference,
            allow_normalized=allow_normalized or reference.normalized,
        )

    @functools.cached_property
    def clip_scores(self) -> MeanScore:
        """Scores of the samples with partners."""
        return MeanScore()

    @functools.cached_property
    def ref_clip_scores(self) -> MeanScore:
        """Scores of the samples with reference captions."""
        return MeanScore()

    @property
    def evaluated(self) -> Moments:
        """The evaluated side, without checks."""
        return self.sides[EVALUATED]

    def update(
        self,
        embeddings: Tensor,
        *,
        real: bool = False,
        groups: Labels | None = None,
        ids: Sequence[object] | None = None,
        placed: bool = False,
        partners: Partners | None = None,
        values: bool = False,
    ) -> RowValues | None:
        """Accumulate rows ``(N, D)``; real ones are ignored where there is no such side. Options as ``Moments.update``.

        Partners of evaluated rows are given as ``partners``.

        Returns:
            With ``values`` norm and conformity of each row; else, and where the rows are left out, None.

        Raises:
            ValueError: If the dimension, groups or ids do not fit.
        """
        side = REAL if real else EVALUATED
        if side not in self.sides:
            return None
        other = "the stream" if self.reference is None else "the reference"
        check_same_dim(embeddings, self.sides[side].layout.dim, "batch", other)
        self._real = self._contrast = None
        self._once.clear()
        if partners is not None and len(embeddings):
            bucket = pair_buckets(embeddings, groups, None if placed else ids)
            self.clip_scores.update(partners.clip_scores(embeddings), bucket)
            if partners.references is not None:
                self.ref_clip_scores.update(partners.ref_clip_scores(embeddings), bucket)
        if values:
            return self.sides[side].update_with_values(embeddings, groups, ids, placed=placed)
        self.sides[side].update(embeddings, groups, ids, placed=placed)
        return None

    def merge(self, other: Stream) -> Stream:
        """Join two streams of different samples that are compared with one reference into a new one."""
        joined = Stream({}, reference=self.reference, allow_normalized=self.allow_normalized or other.allow_normalized)
        joined.sides = {name: side.merge(other.sides[name]) for name, side in self.sides.items()}
        for name in ("clip_scores", "ref_clip_scores"):
            setattr(joined, name, getattr(self, name).merge(getattr(other, name)))
        return joined

    def read_side(self, side: str = EVALUATED, min_samples: int = 2) -> Moments:
        """Return a side after checking its rows.

        Raises:
            ValueError: If there are too few rows, or some that are zero, NaN, infinite, out of range or normalised.
        """
        check_stream(self.sides[side], self.allow_normalized, min_samples)
        return self.sides[side]

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference or any real row, valid or not."""
        return self.reference is not None or (REAL in self.sides and self.sides[REAL].started)

    def get_reference(self) -> ReferenceSet | None:
        """Return the reference, or the one made of the real rows; None without either."""
        if REAL in self.sides and self.sides[REAL].started:
            if self._real is None:
                self._real = ReferenceSet.from_moments(self.read_side(REAL), allow_normalized=self.allow_normalized)
            return self._real
        return self.reference

    def contrast(self, name: str) -> Contrast:
        """Compare the evaluated samples with the reference.

        Raises:
            ValueError: If there is no reference; ``name`` is the caller's.
        """
        if self._contrast is None:
            self._contrast = Contrast.build(self.read_side(), self.require_reference(name))
            if self._contrast.overlap.rows:
                warnings.warn(self._contrast.overlap.notes()[0], OverlapWarning, stacklevel=2)
        return self._contrast

    def require_reference(self, name: str) -> ReferenceSet:
        """Return the reference, which must be there.

        Raises:
            ValueError: If there is no reference; ``name`` is the caller's.
        """
        reference = self.get_reference()
        if reference is None:
            raise ValueError(
                f"{name}: there is no reference; give one at construction, or real rows by update(..., real=True)."
            )
        return reference

    def cache(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Compute a value that read-outs use several times, and keep it until the next update."""
        if key not in self._once:
            self._once[key] = make()
        found: Value = self._once[key]
        return found

    @property
    def exact(self) -> bool:
        """Whether non-additive figures use every sample so far rather than the row sample."""
        kept = [(float(side.total), side.layout.max_samples) for side in self.sides.values()]
        return all(total <= size or size == 0 for total, size in kept)
