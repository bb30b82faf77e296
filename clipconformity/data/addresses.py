"""Addresses of files on other machines: which are read, and how they are named and shown."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import quote, unquote
from urllib.request import url2pathname

from clipconformity.provenance import hide_secrets

PROTOCOLS = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "memory": "",
}
"""Protocols that are read, each with the package that fsspec reads it with.

All of them give the bytes of a file at a place, and nothing else. The others of fsspec are refused: ``reference``,
``zip``, ``dir`` and chains with ``::`` let a file say which other files are read, also on this machine; ``simplecache``
and its kind copy whole files; ``ftp`` sends passwords openly; ``ssh``, ``git`` and ``smb`` start programs or look for
keys.
"""
ALIASES = {"s3a": "s3", "gcs": "gs"}
WEB = ("http", "https")
LOCAL = "file"
"""Protocol of a path of this machine."""
_START = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
"""Start of an address, also of one that lost a slash as a path; a drive of Windows has one letter."""
_IN_BRACKETS = re.compile(r"//(?:[^/@]*@)?\[[^\]/]*\]")
"""A host given by its number in IPv6, which may have ``::``."""
_WEB_HOST = re.compile(r"(?:[^/?#@]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^/?#@:\[\]]+)(?::\d*)?")
_SENT = "%/:=&?~+!$,;'@()*[]#"
"""Characters of an address that are sent as they are; a signature holds for the very letters."""
_IN_NAME = "~!$&'()+,;=:@"
"""Those of the name of a file."""


@dataclass(frozen=True)
class RemotePath:
    """Path of a file or folder at an address; as a text it shows no user, password or query.

    It has those parts of ``pathlib.Path`` that name things. ``data/places.py`` has what asks for their content.

    Attributes:
        protocol: One of :data:`PROTOCOLS`.
        host: Of the web, with user, password and port; empty for the others, whose path begins with the bucket.
        path: Of the web with a slash in front, and quoted.
        query: Of the web, with its question mark.
        known: What was found there when it was first looked at.
    """

    protocol: str
    host: str
    path: str
    query: str = ""
    known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def text(self) -> str:
        """The whole address, with what may be secret: for its server alone, never for a message."""
        return f"{self.protocol}://{self.host}{self.path}{self.query}"

    @property
    def identity(self) -> tuple[str, ...]:
        """What names a file: all but user and password."""
        return self.protocol, self.host.rpartition("@")[2].lower(), self.path, self.query

    @property
    def spelled(self) -> PurePosixPath:
        """Its path from the protocol on, without quotes, as that of a local file would be."""
        path = unquote(self.path) if self.on_web else self.path
        return PurePosixPath(f"/{self.protocol}:/{self.identity[1]}/{path.lstrip('/')}")

    @property
    def on_web(self) -> bool:
        """Whether it is read by HTTP, where folders are only by convention."""
        return self.protocol in WEB

    @property
    def name(self) -> str:
        """The last part."""
        return self.spelled.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self.spelled.stem

    @property
    def suffix(self) -> str:
        """The suffix of the last part, with its point."""
        return self.spelled.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder, without the query, which is of the file alone."""
        return RemotePath(self.protocol, self.host, self.path.rstrip("/").rpartition("/")[0])

    @property
    def magic(self) -> bool:
        """Whether it has ``*``, ``[...]`` or ``?``; on the web the last begins the query."""
        return has_magic(self.path)

    def absolute(self) -> RemotePath:
        """It is."""
        return self

    def __truediv__(self, name: str) -> RemotePath:
        added = quote(name, safe=_IN_NAME) if self.on_web else name
        start = self.path.rstrip("/")
        return RemotePath(self.protocol, self.host, f"{start}/{added}" if start or self.on_web else added)

    def __str__(self) -> str:
        return hide_secrets(self.text)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"


Place: TypeAlias = "Path | RemotePath"
"""Where a file is: on this machine, or at an address."""


def is_address(place: object) -> bool:
    """Whether a text or path has the form of an address, on this machine or not."""
    return not isinstance(place, RemotePath) and _START.match(str(place)) is not None


def refuse_address(path: Path | str, what: str) -> None:
    """Refuse an address where files of this machine are meant.

    Args:
        path: What was given.
        what: What it should be, for the error.

    Raises:
        ValueError: If it is one.
    """
    if is_address(path) and not os.path.lexists(path):
        raise ValueError(
            f"{hide_secrets(str(path))}: expected {what} on this machine, got an address; embeddings, references and "
            "saved scores alone are read from addresses, and nothing is written to one."
        )


def parse_place(place: Place | str) -> Place:
    """Return a path, or the path of an address; ``file://`` is a path of this machine.

    Raises:
        ValueError: If it is an address of a protocol that is not read, a chain of several, or damaged.

    Example:
        >>> parse_place("https://ann:pass@host/img_emb_0.npy?token=1")
        RemotePath('https://host/img_emb_0.npy')
        >>> parse_place("file:///data/img_emb").as_posix()
        '/data/img_emb'
    """
    if isinstance(place, RemotePath):
        return place
    if isinstance(place, Path):
        if is_address(place) and not os.path.lexists(place):
            raise ValueError(f"{hide_secrets(str(place))}: an address in a Path loses a slash; give it as a text.")
        return place
    if "://" not in place or not (_START.match(place) or "::" in place):
        return Path(place)
    shown = hide_secrets(place)
    if not place.isprintable():
        raise ValueError(f"{shown!r}: an address with characters that cannot be printed; quote them as %..")
    if "::" in _IN_BRACKETS.sub("//host", place, count=1):
        raise ValueError(f"{shown}: a chain of protocols may read other files than it names; give one address.")
    return _parse_address(place, shown)


def _parse_address(text: str, shown: str) -> Place:
    protocol, _, rest = text.partition("://")
    protocol = ALIASES.get(protocol.lower(), protocol.lower())
    if protocol == LOCAL:
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(f"{shown}: expected file:///folder/file, or a path without file://.")
        return Path(url2pathname(slash + path))
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{shown}: {protocol}:// is not read; of addresses there are {', '.join(PROTOCOLS)}; or download it first."
        )
    if protocol not in WEB:
        path = rest.strip("/")
        if not path:
            raise ValueError(f"{shown}: names no file or folder; give its path.")
        return RemotePath(protocol, "", path)
    found = re.match(r"([^/?#]*)([^?#]*)(\?[^#]*)?", quote(rest, safe=_SENT))
    assert found is not None
    if _WEB_HOST.fullmatch(found[1]) is None:
        raise ValueError(
            f"{shown}: no valid host; expected {protocol}://host/path, with '/', ':', '@' and '?' of a password quoted "
            "as %2F, %3A, %40 and %3F."
        )
    return RemotePath(protocol, found[1], found[2] or "/", found[3] or "")
