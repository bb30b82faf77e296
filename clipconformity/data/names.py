"""Names of many rows in little memory: a Python string takes about a hundred bytes."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload


@dataclass(frozen=True)
class Places(Sequence[str]):
    """Generated names of rows, ``STEM:ROW``, made on access.

    Attributes:
        stem: Name of the file of the rows.
        start: The first row.
        stop: The row after the last one.

    Example:
        >>> places = Places("e", 3, 6)
        >>> list(places), places[1:][0], places[-1]
        (['e:3', 'e:4', 'e:5'], 'e:4', 'e:5')
    """

    stem: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        rows = range(self.start, self.stop)[row]
        if isinstance(rows, int):
            return f"{self.stem}:{rows}"
        if rows.step != 1:
            return [f"{self.stem}:{one}" for one in rows]
        return Places(self.stem, rows.start, max(rows.start, rows.stop))

    def __iter__(self) -> Iterator[str]:
        return (f"{self.stem}:{row}" for row in range(self.start, self.stop))


@dataclass
class _Packed:
    """Concatenated names in UTF-8, and the end of each."""

    content: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q"))

    def append(self, name: str) -> None:
        self.content += name.encode("utf-8", "surrogatepass")
        self.ends.append(len(self.content))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = self.ends[row - 1] if row else 0
        return self.content[start : self.ends[row]].decode("utf-8", "surrogatepass")


class Names(Sequence[str]):
    """Growing list of row names: a few bytes a row beside the letters, and none for :class:`Places`.

    Example:
        >>> names = Names()
        >>> names.extend(["cat.png", "dog.png"])
        >>> names.extend(Places("e", 0, 10**9))
        >>> names[1], names[-1], len(names)
        ('dog.png', 'e:999999999', 1000000002)
    """

    def __init__(self) -> None:
        self._parts: list[Places | _Packed] = []
        self._starts: list[int] = []
        self._count = 0

    def extend(self, names: Sequence[str]) -> None:
        """Append names."""
        if isinstance(names, Names):
            for part in names._parts:
                self.extend(part if isinstance(part, Places) else [part[row] for row in range(len(part))])
            return
        if not len(names):
            return
        last = self._parts[-1] if self._parts else None
        if isinstance(names, Places):
            if isinstance(last, Places) and (last.stem, last.stop) == (names.stem, names.start):
                self._parts[-1] = Places(last.stem, last.start, names.stop)
            else:
                self._add(names)
        else:
            if not isinstance(last, _Packed):
                last = _Packed()
                self._add(last)
            for name in names:
                last.append(name)
        self._count += len(names)

    def _add(self, part: Places | _Packed) -> None:
        self._parts.append(part)
        self._starts.append(self._count)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        rows = range(self._count)[row]
        return self._at(rows) if isinstance(rows, int) else [self._at(one) for one in rows]

    def _at(self, row: int) -> str:
        number = bisect_right(self._starts, row) - 1
        return self._parts[number][row - self._starts[number]]

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from (part[row] for row in range(len(part)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        first = ", ".join(map(repr, self[:2]))
        return f"<{len(self)} names: {first}{', ...' if len(self) > 2 else ''}>"
