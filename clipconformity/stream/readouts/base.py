"""Base of read-outs: needs of a stream, fields, and methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.resampling import Interval
from clipconformity.stream.alignment import Partners
from clipconformity.stream.pairs import LeftOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.row_sample import Sample
from clipconformity.stream.stream import Needs, Stream

Direction = Literal["higher", "lower", "neither"]
"""Which way a figure is better, if any."""


class Field(NamedTuple):
    """A figure that a read-out gives.

    Attributes:
        name: Its key, the same in a metric's dict, in JSON, CSV and report; unique in the library.
        about: What it is, in a few words.
        unit: Unit of the value: ``"nats"``, ``"cosine"``, ``"reference std"``, or ``""`` where it has none.
        better: Which values are better, if either.
        error: Key of its standard error.
        interval: Keys of the ends of its 95% interval.
        compared: Whether it needs a reference.
        computed: Whether ``compute`` returns it; the others need resamples and come from :meth:`ReadOut.resample`.
    """

    name: str
    about: str
    unit: str = ""
    better: Direction = "neither"
    error: str | None = None
    interval: tuple[str, str] | None = None
    compared: bool = False
    computed: bool = True

    def with_interval(self, covers: str = "", *, drawn: bool = False) -> tuple[Field, Field, Field]:
        """Return the field with its 95% interval, whose ends are the fields ``NAME_low`` and ``NAME_high``.

        Args:
            covers: Covered quantity, such as ``"of the populations"``.
            drawn: Whether the ends are not ``computed``, although the value is.
        """
        low, high = (f"{self.name}_{end}" for end in Interval._fields)
        about = f"end of the 95% interval of {self.name} {covers}".rstrip()
        end = self._replace(better="neither", computed=self.computed and not drawn)
        ends = end._replace(name=low, about=f"low {about}"), end._replace(name=high, about=f"high {about}")
        return self._replace(interval=(low, high)), *ends


class Batch(NamedTuple):
    """Rows of a batch."""

    embeddings: Tensor
    """Raw, ``(N, D)``."""
    partners: Partners | None = None
    """Partners of each row, where the samples are pairs."""


def read_sample(stream: Stream) -> Sample:
    """Give the rows of the evaluated side's sample on the CPU, read once for all read-outs."""
    return stream.cache("row_sample", lambda: stream.read_side().good_sample().cpu())


class ReadOut(ABC):
    """A metric without torchmetrics: fields by name, computed from a stream.

    Attributes:
        name: Name for ``score --metrics`` and the registry.
        fields: The fields that it returns.
        needs: State that the stream must accumulate.
        min_samples: Smallest number of rows for a value.
        value: The field that is the scalar value of a metric; None where the value is a dict of all fields.
    """

    name: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    needs: ClassVar[Needs] = Needs()
    min_samples: ClassVar[int] = 2
    value: str | None = None

    @abstractmethod
    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the fields that are ``computed``, as scalars.

        Raises:
            ValueError: If the stream holds too few samples, or some that cannot be read.
        """

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the other fields, as scalars; by default none.

        Raises:
            ValueError: As :meth:`read`, or if nothing can be resampled.
        """
        return {}

    def figures(self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return all fields, as scalars.

        Raises:
            ValueError: As :meth:`read` and :meth:`resample`.
        """
        return self.read(stream) | self.resample(stream, resamples=resamples, generator=generator)

    def left_out(self, stream: Stream) -> Mapping[str, LeftOut]:
        """Return figures by name, whole and without each bucket, for comparing two runs; by default none.

        Other figures have an interval, but no difference of two runs.
        """
        return {}

    def notes(self, stream: Stream) -> list[str]:
        """Return notes on these samples for the reader of the figures, a sentence each; by default none."""
        return []

    def details(self, stream: Stream) -> Mapping[str, Any]:
        """Return details such as ids of samples: a bounded number of plain values; by default none."""
        return {}

    def columns(self, batch: Batch, reference: ReferenceSet) -> Mapping[str, Sequence[float | str]]:
        """Return columns of the per-sample CSV, a value for each row of a batch; by default none."""
        return {}

    def names(self, compared: bool) -> list[str]:
        """Names of the fields that :meth:`read` returns, with or without a reference; always with the single value."""
        there = [
            one for one in self.fields if one.computed and (compared or not one.compared or one.name == self.value)
        ]
        return [one.name for one in there]
