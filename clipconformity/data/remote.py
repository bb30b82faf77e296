"""What servers give by fsspec: blocks of files and listings of folders, and in one line why they do not."""

from __future__ import annotations

import errno
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from clipconformity.data.addresses import PROTOCOLS, RemotePath
from clipconformity.data.failures import RemoteConnectionError, RemoteMissingError, explain
from clipconformity.data.limits import RefusedError, check_limit

T = TypeVar("T")
ROW_BYTES = 2**23
"""Bytes that are fetched beyond those asked for where rows are read in their order.

A request takes 10 to 100 ms before its first byte comes, so that small ones leave a connection idle: fsspec's
``readahead`` makes requests of at least this size, however few bytes pyarrow, zipfile or a short block ask for. It
keeps nothing but the last of them, so that memory does not grow with the file. Caches of several blocks (``bytes``,
``blockcache``, ``background``) hold what is read once; ``all`` holds the file.
"""
COLUMN_BYTES = 2**20
"""The same of a column of Parquet with ids or groups: between its pieces lie those of the vectors."""
HEADER_BYTES = 2**16
"""The same of a header, and what is held of the end of a file, where formats have headers that are read backwards."""
CONNECT_SECONDS = 10
READ_SECONDS = 60
"""Longest time in which a web server sends nothing."""
PAUSES = (0.5, 2.0)
"""Seconds before a failed request is made again."""
MAX_PAGE_BYTES = 2**24
"""Largest page of a web server that lists a folder."""
MAX_DEPTH = 32
"""Of folders at an address; a web server may have endless ones."""
VERSIONS = (
    "ETag",
    "etag",
    "generation",
    "blob_id",
    "xet_hash",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "created",
)
"""What tells of a change of a file, by the names that the packages give it; the first that is there."""


def connect(place: RemotePath) -> Any:
    """Return fsspec's file system of an address.

    Raises:
        ImportError: If the package that reads it is not installed.
    """
    package = PROTOCOLS[place.protocol]
    try:
        import fsspec

        if package and find_spec(package) is None:
            raise ImportError(f"no package {package}")
        return fsspec.filesystem(place.protocol, use_listings_cache=False, **_list_settings(place))
    except ImportError as error:
        raise ImportError(
            f"{place}: {place.protocol}:// is read with {package or 'fsspec'}, which cannot be imported ({error}); "
            f"install it with `pip install {package or 'fsspec'}`."
        ) from None


def _list_settings(place: RemotePath) -> dict[str, Any]:
    if not place.on_web:
        return {}  # fsspec takes them from FSSPEC_... in the environment, and the packages from their own files
    import aiohttp

    # Not the whole of 300 seconds that aiohttp gives: a block may take longer on a slow line, and a dead server less.
    limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    client = {"timeout": limit, "trust_env": True, "headers": {"Accept-Encoding": "identity"}}
    return {"client_kwargs": client, "encoded": True}


def call(place: RemotePath, act: Callable[[Any], T]) -> T:
    """Ask a server, again after a failure that may pass.

    Args:
        place: What is asked for.
        act: Asks, with the file system.

    Raises:
        RemoteError: If it fails: one line that names the address, and nothing of its secrets.
        ImportError: As :func:`connect`.
    """
    for pause in (*PAUSES, None):
        try:
            with _hush(place):
                return act(connect(place))
        except ImportError:
            raise
        except Exception as error:
            failure = explain(place, error)
        if pause is None or not isinstance(failure, RemoteConnectionError):
            break
        time.sleep(pause)
    raise failure  # out of the handler, so that no trace shows what the package said of the whole address


@contextmanager
def _hush(place: RemotePath) -> Iterator[None]:
    """Keep packages from logging each failure with its traces and the whole address: what is wrong is said once."""
    loggers = [logging.getLogger(name) for name in ("fsspec", "asyncio", PROTOCOLS[place.protocol]) if name]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def find_info(place: RemotePath, *, fresh: bool = False) -> dict[str, Any] | None:
    """Find what a server says of a file or folder, as fsspec gives it; None where there is none.

    Args:
        place: The address.
        fresh: Ask anew, rather than take what was found when it was first looked at.
    """
    if fresh or "info" not in place.known:
        try:
            place.known["info"] = call(place, lambda system: _ask_info(system, place))
        except RemoteMissingError:
            place.known["info"] = None
    found: dict[str, Any] | None = place.known["info"]
    return found


def _ask_info(system: Any, place: RemotePath) -> dict[str, Any]:
    system.invalidate_cache(place.text)  # huggingface_hub keeps listings in spite of use_listings_cache
    return dict(system.info(place.text))


def read_version(info: dict[str, Any]) -> str:
    """Read what tells of a change of a file; empty where its server says nothing."""
    return next((str(info[name]) for name in VERSIONS if info.get(name)), "")


class RemoteFile(io.RawIOBase):
    """An open file at an address.

    It keeps its own place in the file, since fsspec's files in memory share one, and so that a request can be repeated.

    Args:
        place: The file.
        size: Of it, in bytes.
        ahead: Bytes that are fetched beyond those asked for.
    """

    def __init__(self, place: RemotePath, size: int, ahead: int) -> None:
        super().__init__()
        self._place, self._size, self._ahead = place, size, ahead
        self._position = 0
        self._file: Any = None
        self._end: bytes | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the place in the file."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to another place, without a request."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as a file does, which zipfile relies on
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes, and return the number of bytes.

        Raises:
            RemoteError: As :func:`call`.
        """
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._position)
        if wanted <= 0:
            return 0
        found = self._read_end(wanted) if self._position >= self._last else self._read(self._position, wanted)
        view[: len(found)] = found
        self._position += len(found)
        return len(found)

    @property
    def _last(self) -> int:
        """Where the end of the file begins that is held once it was read."""
        return max(0, self._size - HEADER_BYTES)

    def _read_end(self, wanted: int) -> bytes:
        if self._end is None:
            self._end = self._read(self._last, self._size - self._last)
        start = self._position - self._last
        return self._end[start : start + wanted]

    def _read(self, start: int, wanted: int) -> bytes:
        return call(self._place, lambda system: self._fetch(system, start, wanted))

    def _fetch(self, system: Any, start: int, wanted: int) -> bytes:
        if self._file is None:
            size = {"size": self._size} if self._place.on_web else {}  # else it would ask for it again
            self._file = system.open(
                self._place.text, "rb", block_size=self._ahead, cache_type="readahead", cache_options={}, **size
            )
        self._file.seek(start)
        found: bytes = self._file.read(wanted)
        return found[:wanted]

    def close(self) -> None:
        """Close it, and with it what was fetched ahead."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def list_children(folder: RemotePath) -> list[RemotePath]:
    """List the files and folders in a folder; a folder of the web ends in a slash.

    Raises:
        RemoteError: As :func:`call`.
        ValueError: If there are too many, or it is a page without links.
    """
    if folder.on_web:
        return _list_links(folder)
    entries = call(folder, lambda system: _ask_entries(system, folder))
    check_limit(folder, "listed", len(entries))
    own = folder.path.strip("/")
    found = {}
    for entry in entries:
        path = str(entry["name"]).strip("/")
        name = path.rpartition("/")[2]
        if path != own and name not in ("", ".", ".."):  # stores keep empty files in place of folders
            child = folder / name
            child.known["info"] = dict(entry)
            found[name] = child
    return list(found.values())


def _ask_entries(system: Any, folder: RemotePath) -> list[dict[str, Any]]:
    system.invalidate_cache(folder.text)
    return list(system.ls(folder.text, detail=True))


class _Links(HTMLParser):
    """The links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take up a link."""
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _list_links(folder: RemotePath) -> list[RemotePath]:
    """List the links of a page that lead right into its folder; fsspec's listing follows others, and has no bound."""
    place = RemotePath(folder.protocol, folder.host, folder.path.rstrip("/") + "/", folder.query)
    kind, page = call(place, lambda system: _ask_page(system, place))
    if len(page) > MAX_PAGE_BYTES:
        raise RefusedError(f"{place}: a page of over {MAX_PAGE_BYTES:,} bytes lists no folder; name the files.")
    if "html" not in kind.lower():
        raise ValueError(f"{place}: expected a page that lists a folder, got {kind or 'another file'}; name the files.")
    links = _Links()
    links.feed(page.decode("utf-8", "replace"))
    base = f"{place.protocol}://{place.identity[1]}{place.path}"
    names = {}
    for link in links.found:
        try:
            parts = urlsplit(urljoin(base, link))
        except ValueError:
            continue
        start, name = parts.path[: len(place.path)], parts.path[len(place.path) :]
        inside = (parts.scheme, parts.netloc.lower(), start) == (place.protocol, place.identity[1], place.path)
        if inside and name.rstrip("/").count("/") == 0 and unquote(name).strip("/") not in ("", ".", ".."):
            names[name.rstrip("/")] = name
    check_limit(place, "listed", len(names))
    found = [RemotePath(place.protocol, place.host, place.path + name) for name in names.values()]
    for child in found:
        child.known["folder"] = child.path.endswith("/")
    return found


def _ask_page(system: Any, place: RemotePath) -> tuple[str, bytearray]:
    """Read the type of a page, and the page, as far as it is not too large."""
    page = bytearray()
    with system.open(place.text, "rb", block_size=0, size=1) as file:
        while len(page) <= MAX_PAGE_BYTES and (part := file.read(2**16)):
            page += part
        return file.r.headers.get("Content-Type", ""), page
