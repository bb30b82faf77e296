"""Short representations of what holds long lists or tensors, for notebooks and the interpreter."""

from __future__ import annotations

from pathlib import Path

from clipconformity.data.addresses import RemotePath


def format_brief(value: object, /, **about: object) -> str:
    """Return ``Name(key=value, ...)``, without what is None; a path or an address as a text, without secrets."""
    words = {
        name: str(one) if isinstance(one, Path | RemotePath) else one for name, one in about.items() if one is not None
    }
    return f"{type(value).__name__}({', '.join(f'{name}={one!r}' for name, one in words.items())})"
