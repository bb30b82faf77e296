"""Joining states of different samples: two references into one, many things two at a time, and none of them twice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Generic, TypeVar

import torch

from clipconformity.data.results import list_first
from clipconformity.data.untrusted import format_value
from clipconformity.stream.moments import Moments
from clipconformity.stream.reference import ReferenceSet, reference_layout

T = TypeVar("T")
MAX_COMMON_SHARE = 0.1
"""Share of rows that two references have in common above which they are thought to be of the same samples."""


class Tree(Generic[T]):
    """Join many things two at a time, as they come: of n of them log2(n) are held, and each is joined log2(n) times.

    What comes out depends on their order alone, not on who joined them.

    Args:
        join: Joins two neighbours, the earlier one first.

    Example:
        >>> tree = Tree(lambda first, second: f"({first}{second})")
        >>> for letter in "abcde":
        ...     tree.add(letter)
        >>> tree.joined()
        '(((ab)(cd))e)'
    """

    def __init__(self, join: Callable[[T, T], T]) -> None:
        self._join = join
        self._held: list[tuple[int, T]] = []

    def add(self, one: T) -> None:
        """Add the next one."""
        size = 1
        while self._held and self._held[-1][0] == size:
            one, size = self._join(self._held.pop()[1], one), 2 * size
        self._held.append((size, one))

    def joined(self) -> T | None:
        """Give all that came as one; None of nothing."""
        if not self._held:
            return None
        found = self._held[-1][1]
        for _, earlier in self._held[-2::-1]:
            found = self._join(earlier, found)
        return found


class Merging(Generic[T]):
    """Join files of different samples two at a time, and refuse what counts a sample twice by the names of the files.

    Args:
        join: Joins the content of two neighbours.
        made_of: Says what pieces a content holds.
        what: What they are, for messages.
    """

    def __init__(self, join: Callable[[T, T], T], made_of: Callable[[T], Sequence[Piece]], what: str) -> None:
        self._tree = Tree(join)
        self._made_of, self._what = made_of, what
        self._known: list[tuple[object, Sequence[Piece]]] = []

    def add(self, path: object, content: T) -> None:
        """Add the next one.

        Raises:
            ValueError: If it holds a piece of one that came before, or cannot be joined with others.
        """
        pieces = self._made_of(content)
        for other, theirs in self._known:
            for part, whole, held in ((other, path, (theirs, pieces)), (path, other, (pieces, theirs))):
                if set(held[0]) < set(held[1]):
                    raise ValueError(
                        f"cannot merge {self._what}: {part} is in {whole} already, and its samples would count twice; "
                        "leave it out."
                    )
            try:
                refuse_twice(theirs, pieces)
            except ValueError as error:
                raise ValueError(f"cannot merge {self._what} {other} and {path}: {error}") from None
        self._known.append((path, pieces))
        self._tree.add(content)

    def joined(self) -> T:
        """Give all that came as one, which is at least one."""
        if lacking := [*find_missing_shares(piece for _, pieces in self._known for piece in pieces)]:
            warnings.warn(lacking[0], stacklevel=3)
        found = self._tree.joined()
        assert found is not None
        return found


@dataclass(frozen=True)
class Piece:
    """A file that others were merged into, or that holds one share of some samples: by this it is known again.

    Attributes:
        identity: Checksum of its statistics and rows; None of the file itself that says so.
        work: Checksum of all samples of which it holds a share, and of what was done with them.
        share: Number of the share, from 1 on.
        shares: Number of shares that the samples were cut into.
    """

    identity: str | None = None
    work: str | None = None
    share: int | None = None
    shares: int | None = None

    def __str__(self) -> str:
        return f"shard {self.share}/{self.shares}" if self.work else f"the file with the checksum {self.identity!s:.12}"


def list_pieces(made_of: Sequence[Piece], identity: Callable[[], str]) -> tuple[Piece, ...]:
    """Say what a file holds, each piece with its checksum; a file that says nothing is one piece."""
    if made_of and all(piece.identity is not None for piece in made_of):
        return tuple(made_of)
    own = identity()
    return tuple(Piece(piece.identity or own, *astuple(piece)[1:]) for piece in made_of or (Piece(),))


def refuse_twice(first: Sequence[Piece], second: Sequence[Piece]) -> None:
    """Refuse to merge what holds the same piece.

    Raises:
        ValueError: If a piece is in both, or both hold shares of the same samples that were cut otherwise.
    """
    known = {piece.identity for piece in first if piece.identity}
    cuts = {piece.work: piece.shares for piece in first if piece.work}
    shares = {(piece.work, piece.share) for piece in first if piece.work}
    for piece in second:
        if piece.identity in known or (piece.work, piece.share) in shares:
            raise ValueError(f"{piece} is in both: its samples would count twice; leave it out of one.")
        if piece.work in cuts and cuts[piece.work] != piece.shares:
            raise ValueError(
                f"the same samples were cut into {cuts[piece.work]} shards for one and into {piece.shares} for the "
                "other: some would count twice; merge shards of one cut."
            )


def find_missing_shares(pieces: Iterable[Piece]) -> Iterator[str]:
    """Say which shards of a cut are missing, for a warning."""
    there: dict[tuple[str | None, int], set[int]] = {}
    for piece in pieces:
        if piece.work and piece.shares and piece.share:
            there.setdefault((piece.work, piece.shares), set()).add(piece.share)
    for (_, shares), found in there.items():
        if lacking := [str(number) for number in range(1, shares + 1) if number not in found]:
            which = f"shard {lacking[0]} is" if len(lacking) == 1 else f"shards {list_first(lacking)} are"
            yield f"{len(found)} of {shares} shards are there, {which} missing: what comes out is of those alone."


def format_pieces(pieces: Sequence[Piece]) -> list[list[Any]]:
    """Give pieces as plain values, for a file."""
    return [list(astuple(piece)) for piece in pieces]


def parse_pieces(found: Any) -> tuple[Piece, ...]:
    """Read what :func:`format_pieces` gave.

    Raises:
        ValueError: If it is something else.
    """
    kinds = (str, str, int, int)
    if not isinstance(found, list) or not all(isinstance(one, list) and len(one) == len(kinds) for one in found):
        raise ValueError(f"made_of is {format_value(found)}")
    for one in found:
        whole = all(value is None or type(value) is kind for value, kind in zip(one, kinds, strict=True))
        reported = [value is not None for value in one[1:]]
        if not whole or any(reported) != all(reported) or (all(reported) and not 1 <= one[2] <= one[3]):
            raise ValueError(f"made_of holds {format_value(one)}")
    return tuple(Piece(*one) for one in found)


def identify_reference(reference: ReferenceSet) -> tuple[Piece, ...]:
    """Say what a reference holds."""
    from clipconformity.stream.reference_file import reference_identity

    return list_pieces(reference.made_of, lambda: reference_identity(reference))


def _warn_of_common_rows(first: ReferenceSet, second: ReferenceSet) -> None:
    """Warn where the row samples have many rows in common, but for sets that repeat themselves, such as captions."""
    mine, theirs = (one.sketch.keys for one in (first, second))
    largest = min(mine.max(), theirs.max())  # up to it both samples hold all rows that there are
    fewer, more = sorted((one[one <= largest] for one in (mine, theirs)), key=len)
    common = int(torch.isin(fewer, more).sum())
    repeated = max(float(one.sketch.copies.double().mean()) - 1 for one in (first, second))
    if common > MAX_COMMON_SHARE * len(fewer) and repeated < MAX_COMMON_SHARE:
        warnings.warn(
            f"{common} of {len(fewer)} rows of one reference are also in the other, and count twice; merge references "
            "of different samples.",
            stacklevel=4,
        )


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
    if first.count == second.count and all(
        torch.equal(getattr(first.sketch, part), getattr(second.sketch, part)) for part in ("keys", "copies")
    ):
        raise ValueError("cannot merge a reference with itself: every sample would count twice.")
    pieces = [identify_reference(part) for part in (first, second)]
    try:
        refuse_twice(*pieces)
    except ValueError as error:
        raise ValueError(f"cannot merge these references: {error}") from None
    _warn_of_common_rows(first, second)
    datasets = sorted({d for part in (first, second) for d in (part.dataset or "").split(" + ") if d})
    layout = reference_layout(first.embed_dim, min(first.max_samples, second.max_samples))
    state = {name: first.moments.state[name] for name in layout.names()}
    both = Moments(layout, state, first.moments.names).merge(second.moments)
    made_of = (*pieces[0], *pieces[1])
    return ReferenceSet(both, first.provenance, dataset=" + ".join(datasets) or None, made_of=made_of)
