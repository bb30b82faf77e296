"""Files at addresses, for tests: a web server, with or without what may go wrong, and fsspec's memory."""

from __future__ import annotations

import html
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

COUNT, DIM = 9_000, 6
ROWS = torch.randn(COUNT, DIM, generator=torch.Generator().manual_seed(0)) + 1
KINDS = ("http", "memory")


@dataclass
class FileServer:
    """A running server.

    Attributes:
        folder: What it serves.
        ranges: Whether it gives parts of files.
        tags: Whether it tells of changes.
        sizes: Whether it tells the sizes of files.
        fail: Gives the status that the request of a method and path ends with, or what is sent in place of a file; None
            lets it pass.
        requests: Method, path with query, and range of each request.
        sent: Bytes of content that were sent.
        authorization: What was sent with the requests to log in.
    """

    folder: Path
    ranges: bool = True
    tags: bool = True
    sizes: bool = True
    fail: Callable[[str, str], int | bytes | None] = lambda method, path: None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: int = 0
    authorization: set[str | None] = field(default_factory=set)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def replace_array(path: Path, rows: np.ndarray) -> None:
    """Write an array over another, of the same size; its time differs also where a clock is coarse."""
    before = path.stat().st_mtime_ns
    np.save(path, rows)
    os.utime(path, ns=(before + 10**9, before + 10**9))


@contextmanager
def serve(folder: Path, **settings: Any) -> Iterator[FileServer]:
    server = FileServer(folder, **settings)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"told": server}))
    listener.daemon_threads = True
    server.port = listener.server_port
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: FileServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        told, asked = self.told, self.headers.get("Range")
        told.requests.append((self.command, self.path, asked))
        told.authorization.add(self.headers.get("Authorization"))
        found = told.fail(self.command, unquote(urlsplit(self.path).path))
        path = told.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if isinstance(found, int):
            self._send(found, b"")
        elif isinstance(found, bytes):
            self._send(200, found)
        elif path.is_dir():
            self._send(200, _make_page(path, urlsplit(self.path).path), kind="text/html; charset=utf-8")
        elif path.is_file():
            self._send_file(path, asked)
        else:
            self._send(404, b"nothing here")

    def _send_file(self, path: Path, asked: str | None) -> None:
        size = path.stat().st_size
        first, last, status, headers = 0, size - 1, 200, {}
        if self.told.tags:
            headers["ETag"] = f'"{path.stat().st_mtime_ns:x}-{size:x}"'
        if self.told.ranges and asked is not None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
            assert found is not None, asked
            first, last, status = int(found[1]), min(int(found[2]), last), 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        with path.open("rb") as file:
            file.seek(first)
            self._send(
                status, file.read(last - first + 1) if self.command == "GET" else b"", size=last - first + 1, **headers
            )

    def _send(
        self,
        status: int,
        content: bytes,
        kind: str = "application/octet-stream",
        size: int | None = None,
        **headers: str,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.told.sizes:
            self.send_header("Content-Length", str(len(content) if size is None else size))
        else:
            self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(content)
                self.told.sent += len(content)
            except (BrokenPipeError, ConnectionResetError):  # who asked wanted no more
                self.close_connection = True


def _make_page(folder: Path, path: str) -> bytes:
    """The page of a folder, as servers make it: with links to the folder above, elsewhere, and to other orders."""
    names = [f"{one.name}/" if one.is_dir() else one.name for one in sorted(folder.iterdir())]
    others = ["../", "/", "?C=M;O=A", f"http://elsewhere.example{path}x.npy", "/other/e.npy", "http://["]
    links = [*others, *map(quote, names)]
    return "".join(f'<a href="{html.escape(link)}">{html.escape(link)}</a>\n' for link in links).encode()


@contextmanager
def served(folder: Path, kind: str) -> Iterator[str]:
    """Give the address of a folder, as it is now, of one of ``KINDS``."""
    if kind == "http":
        pytest.importorskip("aiohttp", reason="https:// is read with aiohttp")
        with serve(folder) as server:
            yield server.url
        return
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/box/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield "memory://box"
    system.store.clear()


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def write_all(folder: Path) -> Path:
    """Write the rows in every format, with groups and ids where it has them."""
    rows = ROWS.numpy()
    groups, ids = np.arange(COUNT) // 7, [f"row {n}, ü" for n in range(COUNT)]
    np.save(folder / "plain.npy", rows)
    np.save(folder / "other-bytes.npy", rows.astype(">f8"))
    np.savez(folder / "stored.npz", embeddings=rows, groups=groups)
    np.savez_compressed(folder / "packed.npz", embeddings=rows, groups=groups)
    np.savez_compressed(folder / "columns.npz", embeddings=np.asfortranarray(rows))
    save_file({"a": torch.ones(3), "embeddings": ROWS, "groups": torch.from_numpy(groups)}, folder / "e.safetensors")
    save_file({"embeddings": ROWS.half()}, folder / "half.safetensors")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return folder
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIM)
    pq.write_table(
        pa.table({"embedding": fixed, "id": ids, "groups": groups}), folder / "e.parquet", row_group_size=700
    )
    pq.write_table(pa.table({"embedding": rows.tolist(), "id": ids}), folder / "lists.parquet", row_group_size=5000)
    return folder
