"""The read-outs, one file a metric: what lies here, or is an entry point of ``clipconformity.metrics``, is found."""

from __future__ import annotations

import inspect
import pkgutil
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType

from clipconformity.stream.readouts.base import Direction, Field, ReadOut

ENTRY_POINTS = "clipconformity.metrics"
"""Group of the entry points by which other packages add theirs: each names a subclass of ``ReadOut``."""

__all__ = ["ENTRY_POINTS", "Direction", "Field", "ReadOut", "read_outs"]


@lru_cache(maxsize=1)
def read_outs() -> dict[str, ReadOut]:
    """Every read-out that is installed, by name.

    Raises:
        TypeError: If an entry point names something else than a subclass of ``ReadOut``.
        ValueError: If two read-outs have the same name, or two fields of different meaning have.
    """
    found: list[ReadOut] = []
    for module in sorted(part.name for part in pkgutil.iter_modules(__path__)):
        found += _of_module(import_module(f"{__name__}.{module}"))
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        kind = point.load()
        if not (inspect.isclass(kind) and issubclass(kind, ReadOut)):
            raise TypeError(f"entry point {point.name!r} of {ENTRY_POINTS}: expected a ReadOut class, got {kind!r}.")
        found.append(kind())
    _check_names(found)
    return {one.name: one for one in found}


def _of_module(module: ModuleType) -> list[ReadOut]:
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and issubclass(kind, ReadOut)]
    return [kind() for kind in kinds if kind.__module__ == module.__name__ and not inspect.isabstract(kind)]


def _check_names(found: list[ReadOut]) -> None:
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two read-outs have one name: {', '.join(sorted(n for n in names if names.count(n) > 1))}.")
    fields: dict[str, Field] = {}
    for one in found:
        for field in one.fields:
            if fields.setdefault(field.name, field) != field:
                raise ValueError(f"field {field.name!r} of read-out {one.name!r} has another meaning elsewhere.")
