"""Files of embeddings, taken in by parts: each part is the state of a block of rows, and the states are joined."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clipconformity import __version__
from clipconformity.cli.parts import Job, Parts, cut, digest
from clipconformity.cli.sources import get_embedding_settings
from clipconformity.data.strict_json import to_json

if TYPE_CHECKING:
    from clipconformity.evaluation import Source
    from clipconformity.evaluation.scoring import AccumulatedSamples, Scoring
    from clipconformity.evaluation.shards import FileSource
    from clipconformity.stream.moments import Moments
    from clipconformity.stream.reference import ReferenceSet

S = TypeVar("S")
ROWS = 2**18
"""Rows of a part; a whole number of batches, so that the parts change no batch."""
MOST = 4096
"""Parts of a job; of more rows they are larger."""
READ = "read"
"""Entry of a part's metadata with what came of each file."""


@dataclass(frozen=True)
class State(Generic[S]):
    """What a part came to.

    Attributes:
        content: The state of its rows.
        used: How many rows came of each file, by the number of this.
        damage: What was wrong with a file, likewise.
    """

    content: S
    used: dict[int, int]
    damage: dict[int, str]


@dataclass(frozen=True)
class TakingIn(Generic[S]):
    """How rows become states.

    Attributes:
        settings: What a state depends on beside the rows.
        take_in: Reads a source into a state.
        write: Writes a state, with entries for its metadata.
        read: Reads one.
    """

    settings: tuple[object, ...]
    take_in: Callable[[Source], S]
    write: Callable[[Path, S, Mapping[str, str]], None]
    read: Callable[[Path], S]

    def job(self, source: FileSource) -> Job[State[S]]:
        """Cut the rows of a source into parts."""
        spans = [(source.first + a, source.first + b) for a, b in cut(source.count, ROWS, MOST)]
        about = digest(__version__, *map(str, self.settings))
        return Job(
            keys=[digest(about, [source.identify(*piece) for piece in source.opened.pieces(*span)]) for span in spans],
            sizes=[stop - start for start, stop in spans],
            make=lambda numbers, advance: self._make(source, spans, numbers, advance),
            write=self._write,
            read=self._read,
        )

    def _make(
        self,
        source: FileSource,
        spans: list[tuple[int, int]],
        numbers: Iterable[int],
        advance: Callable[[int], None],
    ) -> Iterator[State[S]]:
        for number in numbers:
            part = source.opened.source(*spans[number])
            part.progress = advance
            part.allow_normalized = source.allow_normalized
            content = self.take_in(part)
            used = {place: file.used for place, file in enumerate(part.files) if file.used}
            yield State(content, used, {place: file.damage for place, file in enumerate(part.files) if file.damage})

    def _write(self, path: Path, state: State[S], further: Mapping[str, str]) -> None:
        self.write(path, state.content, {READ: to_json([[*state.used.items()], [*state.damage.items()]]), **further})

    def _read(self, path: Path) -> State[S]:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            used, damage = json.loads(file.metadata()[READ])
        return State(self.read(path), dict(used), dict(damage))


def take_in_parts(parts: Parts, source: FileSource, taking: TakingIn[S], join: Callable[[S, S], S]) -> S:
    """Take in the rows of a source by parts, and join their states two at a time.

    Returns:
        The state of all rows, on the first process.

    Raises:
        ShareDone: On every other one.
        ValueError: If no row could be read.
    """
    from clipconformity.evaluation.shards import damaged
    from clipconformity.stream.merging import Tree

    made = parts.run(taking.job(source))
    parts.leave()
    tree = Tree(join)
    for state in made:
        tree.add(state.content)
        for place, used in state.used.items():
            source.files[place].used += used
            source.used += used
        for place, damage in state.damage.items():
            source.files[place].damage = source.files[place].damage or damage
    spoiled = [place for place, file in enumerate(source.files) if file.damage]
    source.skipped.extend(damaged(source.opened.shards[place], source.files[place]) for place in spoiled)
    found = tree.joined()
    if found is None or not source.used:
        raise ValueError(source.nothing_read)
    return found


def build_moments(parts: Parts, source: FileSource, max_samples: int, settings: Mapping[str, object]) -> Moments:
    """Accumulate what a reference is made of; errors as of :func:`take_in_parts`."""
    from clipconformity.evaluation.sources import accumulate
    from clipconformity.stream.moments import Moments
    from clipconformity.stream.reference import reference_layout
    from clipconformity.stream.reference_file import read_part, write_part

    layout = reference_layout(source.opened.shards[0].dim, max_samples)

    def take_in(part: Source) -> Moments:
        return accumulate([part], max_samples)[0] or Moments(layout)

    taking = TakingIn(("reference", max_samples, sorted(settings.items())), take_in, write_part, read_part)
    return take_in_parts(parts, source, taking, Moments.merge)


def take_in_scored(
    options: argparse.Namespace,
    parts: Parts,
    source: Source,
    reference: ReferenceSet,
    settings: Mapping[str, Any],
    hold: bool = False,
) -> tuple[Scoring, AccumulatedSamples]:
    """Take in samples to be scored, by parts where they are of files of embeddings; errors as of ``score``.

    Args:
        options: Of the command.
        parts: Where what is finished is kept.
        source: The samples.
        reference: What they are compared with.
        settings: Metrics, and whether L2-normalised embeddings are taken.
        hold: Whether the rows are held, to be compared with further sets.

    Raises:
        ShareDone: On every process but the first.
    """
    from clipconformity.evaluation.scoring import Scoring
    from clipconformity.evaluation.shards import FileSource

    allowed = settings["allow_normalized"]
    scoring = Scoring.of(source, reference, settings["metrics"], allow_normalized=allowed, hold=hold)
    if isinstance(source, FileSource):
        return scoring, _take_in_scored(parts, source, scoring, get_embedding_settings(options))
    parts.leave()
    taken = scoring.take_in(source)
    if not len(taken.rows.ids):
        raise ValueError(source.nothing_read)
    return scoring, taken


def _take_in_scored(
    parts: Parts, source: FileSource, scoring: Scoring, settings: Mapping[str, object]
) -> AccumulatedSamples:
    """Take in samples to be scored; errors as of :func:`take_in_parts`."""
    from clipconformity.evaluation.saved import read_saved, write_taken
    from clipconformity.evaluation.scoring import join_taken
    from clipconformity.stream.reference_file import reference_identity

    source.allow_normalized = scoring.allow_normalized
    metrics = [one.name for one in scoring.chosen]

    def write(path: Path, taken: AccumulatedSamples, further: Mapping[str, str]) -> None:
        write_taken(path, taken, metrics, further)

    identity = reference_identity(scoring.reference)
    taking: TakingIn[Any] = TakingIn(
        ("score", metrics, scoring.hold, identity, sorted(settings.items())),
        scoring.take_in,
        write,
        lambda path: read_saved(path, scoring.reference, part=True).taken,
    )
    taken: AccumulatedSamples = take_in_parts(parts, source, taking, join_taken)
    taken.stream.allow_normalized = scoring.allow_normalized
    return taken._replace(provenance=source.provenance, differs=scoring.differs, remarks=source.remarks)
