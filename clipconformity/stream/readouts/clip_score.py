"""CLIPScore of samples with partners of the other modality, and RefCLIPScore of captions with references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from clipconformity.stream.alignment import MeanScore
from clipconformity.stream.pairs import LeftOut, Without
from clipconformity.stream.readouts.base import Batch, Field, ReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Needs, Stream


class CLIPScoreReadOut(ReadOut):
    """How well images and texts of pairs match."""

    name = "clip_score"
    needs = Needs(partners=True)
    value = "clip_score"
    fields = (
        Field("clip_score", "mean of 100 max(cosine, 0) over pairs", "", "higher", error="clip_score_se"),
        Field("clip_score_se", "standard error of the CLIPScore"),
    )

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the exact mean and its standard error."""
        return self.read_sums(self.sum_scores(stream))

    def left_out(self, stream: Stream) -> dict[str, LeftOut]:
        """Return the mean."""
        whole, left, count = (part.cpu() for part in self.sum_scores(stream).leave_out_buckets())
        return {self.name: LeftOut(Without.from_one_side(whole, left), (count,))}

    def sum_scores(self, stream: Stream) -> MeanScore:
        """Return the sums to be read."""
        return stream.clip_scores

    def read_sums(self, scores: MeanScore) -> dict[str, Tensor]:
        """Compute the fields from sums."""
        found = scores.estimate()
        return {self.name: found.value, f"{self.name}_se": found.error}

    def columns(self, batch: Batch, reference: ReferenceSet) -> Mapping[str, Sequence[float | str]]:
        """Return the score of each row."""
        assert batch.partners is not None
        return {self.name: batch.partners.clip_scores(batch.embeddings).tolist()}


class RefCLIPScoreReadOut(CLIPScoreReadOut):
    """How well captions match their image and human captions."""

    name = "ref_clip_score"
    needs = Needs(partners=True, references=True)
    value = "ref_clip_score"
    fields = (
        Field("ref_clip_score", "mean RefCLIPScore, percent", "", "higher", error="ref_clip_score_se"),
        Field("ref_clip_score_se", "standard error of the RefCLIPScore"),
    )

    def sum_scores(self, stream: Stream) -> MeanScore:
        """Return the sums to be read."""
        return stream.ref_clip_scores

    def columns(self, batch: Batch, reference: ReferenceSet) -> Mapping[str, Sequence[float | str]]:
        """Return the score of each row."""
        assert batch.partners is not None
        return {self.name: batch.partners.ref_clip_scores(batch.embeddings).tolist()}
