"""``--shard I/N``: the share of the samples of a job that never talks to the others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from clipconformity.stream.merging import Piece

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")


class Shard(NamedTuple):
    """One share of the samples."""

    number: int
    """From 1 on."""
    shards: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/N``.

        Raises:
            ValueError: If it is something else, or I is not within 1 to N.
        """
        found = _SHARD.fullmatch(text)
        shard = None if found is None else cls(int(found[1]), int(found[2]))
        if shard is None or not 1 <= shard.number <= shard.shards:
            raise ValueError(f"--shard: expected I/N with I from 1 to N, such as 2/8, got {text!r}.")
        return shard

    def span(self, count: int, size: int) -> tuple[int, int]:
        """Give its first sample, and that behind its last; between shards whole batches are cut.

        Args:
            count: Number of samples.
            size: Of a batch. The last one may be larger: what is left over goes with it.

        Raises:
            ValueError: If there are fewer batches than shards.
        """
        units = max(1, count // size)
        if self.shards > units:
            raise ValueError(
                f"--shard: {count} samples in batches of {size} can be cut into at most {units} "
                f"{'shard' if units == 1 else 'shards'}, got {self.shards}; ask for fewer."
            )
        first = units * (self.number - 1) // self.shards * size
        last = count if self.number == self.shards else units * self.number // self.shards * size
        return first, last

    def piece(self, *parts: object) -> Piece:
        """Say which share of what it is.

        Args:
            parts: What identifies all of the samples, and what encodes them.
        """
        from clipconformity.cli.parts import digest
        from clipconformity.stream.merging import Piece

        return Piece(None, digest(*parts), self.number, self.shards)
