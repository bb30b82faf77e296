"""The read-outs, one file a metric: those of this folder and of the entry points ``clipconformity.metrics``."""

from __future__ import annotations

import inspect
import pkgutil
from abc import ABCMeta
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import NamedTuple, TypeGuard

from clipconformity.stream.pairs import LeftOut, Without
from clipconformity.stream.readouts.base import Batch, Direction, Field, ReadOut
from clipconformity.stream.stream import Needs, Stream

ENTRY_POINTS = "clipconformity.metrics"
"""Group of the entry points of other packages: each names a subclass of ``ReadOut``."""
RESERVED = frozenset(
    {
        "by",
        "count",
        "details",
        "exact",
        "measured",
        "notes",
        "reference",
        "reference_conformity_std",
        "reference_self_conformity",
        "reference_self_conformity_se",
        "requirements",
        "skipped",
        "truncated",
        "verdict",
        "verdicts",
    }
)
"""Keys of a score's JSON that are not figures, which no field may use."""

__all__ = [
    "ENTRY_POINTS",
    "RESERVED",
    "Batch",
    "Direction",
    "Field",
    "LeftOut",
    "Needs",
    "ReadOut",
    "Stream",
    "Without",
    "failed_read_outs",
    "read_outs",
]


class _Found(NamedTuple):
    """The installed read-outs."""

    by_name: dict[str, ReadOut]
    failed: dict[str, str]
    """Entry points whose import failed, by name, each with the error in a line."""


def read_outs() -> dict[str, ReadOut]:
    """Every installed read-out by name, without those of :func:`failed_read_outs`.

    Raises:
        TypeError: If an entry point does not name a complete subclass of ``ReadOut``.
        ValueError: If two read-outs have the same name, two fields of different meaning have, or a declaration is
            wrong.
    """
    return _find().by_name


def failed_read_outs() -> dict[str, str]:
    """Entry points whose import fails, by name, each with its package and the reason in a line.

    They are left out, so that one broken package does not stop every score; a request by name raises the error.

    Raises:
        TypeError: As :func:`read_outs`.
        ValueError: As :func:`read_outs`.
    """
    return _find().failed


@lru_cache(maxsize=1)
def _find() -> _Found:
    found: list[tuple[str, ReadOut]] = []
    own: list[Field] = []
    for module in sorted(part.name for part in pkgutil.iter_modules(__path__)):
        content = import_module(f"{__name__}.{module}")
        own += getattr(content, "FIELDS", ())  # modules without a read-out, such as modality_gap
        found += [("clipconformity", one) for one in _find_in_module(content)]
    failed = {}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            kind = point.load()
        except Exception as error:  # another package may fail in any way
            reason = " ".join(str(error).split()) or "no reason given"
            failed[point.name] = (
                f"{_name_entry_point(point)} cannot be imported ({type(error).__name__}: {reason[:200]})"
            )
            continue
        found.append((_name_entry_point(point), _make_read_out(point, kind)))
    _check_names(found, own)
    return _Found({one.name: one for _, one in found}, failed)


def _name_entry_point(point: EntryPoint) -> str:
    package = "an unknown package" if point.dist is None else f"package {point.dist.name!r}"
    return f"entry point {point.name!r} of {package}"


def _make_read_out(point: EntryPoint, kind: object) -> ReadOut:
    """Make the read-out of an entry point, after checking its declaration."""
    if not _is_kind(kind):
        raise TypeError(f"{_name_entry_point(point)}: expected a subclass of ReadOut, got {kind!r}.")
    if inspect.isabstract(kind):
        raise TypeError(f"{_name_entry_point(point)}: {kind.__name__} has no method 'read'.")
    if getattr(kind, "name", None) != point.name:
        raise ValueError(
            f"{_name_entry_point(point)}: its ReadOut is called {getattr(kind, 'name', None)!r}; "
            "give both the same name."
        )
    fields = getattr(kind, "fields", ())
    if not (isinstance(fields, tuple) and fields and all(isinstance(field, Field) for field in fields)):
        raise TypeError(f"{_name_entry_point(point)}: expected 'fields' to be a tuple of Field, got {fields!r}.")
    for problem in _find_problems(kind):
        raise ValueError(f"{_name_entry_point(point)}: {problem}.")
    return kind()


def _find_problems(kind: type[ReadOut]) -> Iterator[str]:
    """Find what is wrong with a declaration."""
    if kind.name == "all" or not kind.name.isidentifier():
        yield f"name {kind.name!r}: expected a name such as 'rare_tail', other than 'all'"
    there = {field.name for field in kind.fields}
    for field in kind.fields:
        if not field.name.isidentifier() or not field.about:
            yield f"field {field.name!r}: expected a name such as 'rare_tail', and in 'about' what it is"
        if field.name in RESERVED:
            yield f"field {field.name!r}: the JSON of a score has this key already"
        for name in (field.error, *(field.interval or ())):
            if name is not None and name not in there:
                yield f"field {field.name!r}: its error or interval {name!r} is none of the fields"
    if kind.value is not None and kind.value not in there:
        yield f"value {kind.value!r} is none of the fields"


def _is_kind(kind: object) -> TypeGuard[type[ReadOut]]:
    """Whether it is a subclass of ``ReadOut``; for Python 3.10 an alias such as ``tuple[int]`` is a class too."""
    return isinstance(kind, ABCMeta) and issubclass(kind, ReadOut)


def _find_in_module(module: ModuleType) -> list[ReadOut]:
    kinds = filter(_is_kind, vars(module).values())
    return [kind() for kind in kinds if kind.__module__ == module.__name__ and not inspect.isabstract(kind)]


def _check_names(found: list[tuple[str, ReadOut]], own: list[Field]) -> None:
    """Refuse two read-outs of one name, and two fields of one name that differ."""
    homes: dict[str, str] = {}
    fields = {field.name: (field, "clipconformity") for field in own}
    for home, one in found:
        if one.name in homes:
            raise ValueError(f"{home}: read-out {one.name!r} is in {homes[one.name]} already; choose another name.")
        homes[one.name] = home
        for field in one.fields:
            other, whose = fields.setdefault(field.name, (field, f"read-out {one.name!r} of {home}"))
            if other != field:
                raise ValueError(f"{home}: field {field.name!r} is {other.about!r} in {whose}; choose another name.")
