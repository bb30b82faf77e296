"""What goes wrong with files at addresses is told in one line, without secrets, and changes are noticed."""

from __future__ import annotations

import logging
import re
import socket
import traceback
import warnings

import numpy as np
import pytest
import torch
from servers import KINDS, ROWS, replace_array, serve, served, touch, write_all

from clipconformity.data import failures, places, remote
from clipconformity.data.addresses import parse_place
from clipconformity.data.embeddings import open_embeddings
from clipconformity.data.layout import find_embeddings

pytestmark = pytest.mark.usefixtures("web")


BAD = {
    "empty.npy": (b"", "cannot be read as .npy without unpickling (EOF"),
    "cut.npy": (-7, "and the file is too short for it"),
    "cut.npz": (-7, "cannot be read as .npz without unpickling"),
    "cut.safetensors": (-7, "cannot be read as .safetensors without unpickling"),
    "other.safetensors": (b"\xff" * 100, "cannot be read as .safetensors without unpickling"),
    "cut.parquet": (-7, "cannot be read as .parquet without unpickling"),
    "objects.npy": (np.array([[object()]]), "it holds object, not numbers"),
    "page.npy": (b"<html>welcome</html>", "cannot be read as .npy without unpickling (the magic string is not correct"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_refused_as_those_of_this_machine(name, kind, tmp_path):
    content, message = BAD[name]
    path = tmp_path / name
    if isinstance(content, int):
        (tmp_path / "whole").mkdir()
        whole = {one.suffix: one for one in sorted(write_all(tmp_path / "whole").iterdir())}.get(path.suffix)
        if whole is None:
            pytest.skip("pyarrow, which writes Parquet files, is not installed")
        content = whole.read_bytes()[:content]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=re.escape(message)) as here:
        open_embeddings(path)
    with served(tmp_path, kind) as start, pytest.raises(ValueError, match=re.escape(message)) as error:
        open_embeddings(f"{start}/{name}")
    assert str(error.value).startswith(f"{start}/{name}: ")
    assert str(error.value).removeprefix(start) == str(here.value).removeprefix(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_in_blocks_is_refused(kind, tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(ROWS.numpy()))
    torch.save(ROWS, tmp_path / "e.pt")
    with served(tmp_path, kind) as start:
        with pytest.raises(ValueError, match=r"f\.npy: NumPy wrote it by columns.*download it first, or save numpy"):
            open_embeddings(f"{start}/f.npy")
        with pytest.raises(ValueError, match=r"e\.pt: a \.pt file holds a pickle.*none is taken from an address"):
            open_embeddings(f"{start}/e.pt")


SECRETS = ("zoe", "s3cret", "signature", "token")
STATUSES = {
    401: (PermissionError, r"access is refused \(HTTP status 401\); check the address, and give credentials"),
    403: (PermissionError, r"access is refused \(HTTP status 403\)"),
    404: (FileNotFoundError, "no such file"),
    410: (FileNotFoundError, "no such file"),
    418: (OSError, r"the server refuses the request \(HTTP status 418\)"),
    429: (ConnectionError, r"the server fails \(HTTP status 429\); try again later"),
    500: (ConnectionError, r"the server fails \(HTTP status 500\)"),
    503: (ConnectionError, r"the server fails \(HTTP status 503\)"),
}


def check_failure(text: str, kind: type[Exception], message: str, act=open_embeddings) -> None:
    """One line that names the address, and nothing secret in it, nor in what Python would show below it."""
    with pytest.raises(kind, match=message) as error:
        act(text)
    shown = str(error.value) + "".join(traceback.format_exception(error.value, chain=True))
    assert "\n" not in str(error.value)
    start = re.sub(r"//.*@", "//", text.partition("?")[0])
    assert str(error.value).startswith(start)
    said = "\n".join(line for line in shown.splitlines() if not line.startswith("    "))  # but for the code itself
    assert not any(secret in said for secret in SECRETS)


@pytest.mark.parametrize("status", STATUSES)
def test_what_a_server_refuses_is_told_in_one_line(status, web, tmp_path):
    touch(tmp_path, "e.npy")
    kind, message = STATUSES[status]
    web.fail = lambda method, path: status
    address = f"{web.url.replace('//', '//zoe:s3cret@')}/e.npy?signature=token"
    check_failure(address, kind, message)
    assert len(web.requests) == (6 if kind is ConnectionError else 2)  # HEAD, then GET; and again what may pass


def test_a_failure_under_way_is_told_likewise_and_one_that_passes_is_not(web, tmp_path):
    np.save(tmp_path / "e.npy", np.ones((2_000_000, 4), "f4"))
    failures = iter([503, None, 500, 503, None, *[None] * 100])
    web.fail = lambda method, path: next(failures) if method == "GET" else None
    address = f"{web.url.replace('//', '//zoe:s3cret@')}/e.npy?signature=token"
    assert sum(len(block.ids) for block in open_embeddings(address).blocks(4096)) == 2_000_000
    shard = open_embeddings(address)
    found = shard.blocks(4096)
    next(found)
    web.fail = lambda method, path: 503
    check_failure(address, ConnectionError, r"the server fails \(HTTP status 503\)", lambda _: list(found))


def test_a_server_without_ranges_is_refused_and_no_file_is_held(tmp_path):
    pytest.importorskip("aiohttp", reason="https:// is read with aiohttp")
    np.save(tmp_path / "e.npy", np.ones((2_000_000, 8), "f4"))
    np.savez(tmp_path / "e.npz", embeddings=np.ones((200_000, 8), "f4"))
    with serve(tmp_path, ranges=False) as server:
        for name in ("e.npy", "e.npz"):
            message = r"the server gives whole files only, no blocks of them \(no HTTP ranges\)"
            check_failure(
                f"{server.url}/{name}", OSError, message, lambda text: list(open_embeddings(text).blocks(100))
            )


def test_a_server_that_tells_no_size_is_refused(tmp_path):
    pytest.importorskip("aiohttp", reason="https:// is read with aiohttp")
    touch(tmp_path, "e.npy")
    with serve(tmp_path, sizes=False) as server:
        check_failure(
            f"{server.url}/e.npy", OSError, "the server does not tell the size of the file; download it first"
        )


def test_no_server_and_no_answer_are_told_in_one_line(web, monkeypatch):
    monkeypatch.setattr(remote, "READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = f"http://zoe:s3cret@127.0.0.1:{port}/e.npy?token"
        check_failure(address, ConnectionError, f"the host 127.0.0.1:{port} does not answer in time")
    check_failure(address, ConnectionError, f"the host 127.0.0.1:{port} refuses the connection")
    check_failure("https://no-such-host.invalid/e.npy", ConnectionError, "the host no-such-host.invalid is not known")
    encrypted = f"https://127.0.0.1:{web.port}/e.npy"
    check_failure(encrypted, ConnectionError, "the certificate or the encryption of the host .* is not accepted")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    for protocol, package in (("s3", "s3fs"), ("gs", "gcsfs"), ("az", "adlfs"), ("https", "aiohttp")):
        message = rf"{protocol}:// is read with {package}, which cannot be imported .* `pip install {package}`"
        for skip in ("", "/*.npy", "/e.npy"):
            with pytest.raises(ImportError, match=message):
                find_embeddings([f"{protocol}://bucket/a{skip}"]) if skip != "/e.npy" else open_embeddings(
                    f"{protocol}://bucket/e.npy"
                )


class DeniedError(Exception):
    """As botocore's errors are."""

    response = {"ResponseMetadata": {"HTTPStatusCode": 403}}  # noqa: RUF012


class NoCredentialsError(Exception):
    """Another of botocore."""


class HttpError(Exception):
    """As gcsfs's are."""

    code = "503"


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            DeniedError(),
            failures.RemoteRefusedError,
            "refused .HTTP status 403.; .* where s3fs looks for them",
        ),
        (NoCredentialsError(), failures.RemoteRefusedError, "access is refused; check"),
        (PermissionError("Forbidden"), failures.RemoteRefusedError, "access is refused"),
        (HttpError(), failures.RemoteConnectionError, "HTTP status 503"),
        (FileNotFoundError("s3://zoe:s3cret@b"), failures.RemoteMissingError, "no such file or folder there"),
        (raised(FileNotFoundError("x"), TimeoutError()), failures.RemoteConnectionError, "does not answer in time"),
        (raised(OSError("x"), socket.gaierror()), failures.RemoteConnectionError, "the host of s3:// is not known"),
        (
            ValueError("bad\nname s3://k:s3cret@b"),
            failures.RemoteError,
            r"\(ValueError: bad name s3://b\); check the addr",
        ),
        (RuntimeError("odd."), failures.RemoteConnectionError, r"cannot be read \(RuntimeError: odd\); check"),
    ],
)
def test_errors_of_the_packages_are_told_by_what_they_mean(error, kind, message):
    found = failures.explain(parse_place("s3://bucket/e.npy"), error)
    assert type(found) is kind
    assert re.search(message, str(found))
    assert "\n" not in str(found)
    assert "s3cret" not in str(found)


def test_what_a_package_says_of_an_address_with_secrets_is_not_repeated():
    place = parse_place("https://zoe:s3cret@host/e.npy?signature=token")
    found = failures.explain(place, RuntimeError("odd answer to zoe with s3cret for signature=token"))
    assert str(found) == "https://host/e.npy: cannot be read (RuntimeError); check the address and the connection."


def test_nothing_is_logged_or_warned_of_and_loggers_are_as_before(web, caplog):
    level = logging.getLogger("fsspec").level
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        check_failure(f"{web.url}/none.npy", FileNotFoundError, "no such file")
    assert caplog.records == []
    assert logging.getLogger("fsspec").level == level


# --- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["http", "here"])
@pytest.mark.parametrize("when", ["before", "under way"])
def test_a_file_that_is_replaced_while_it_is_read_is_noticed(when, kind, tmp_path):
    np.save(tmp_path / "e.npy", ROWS.numpy())
    with served(tmp_path, "http") as start:
        shard = open_embeddings(tmp_path / "e.npy" if kind == "here" else f"{start}/e.npy")
        found = shard.blocks(1000)
        given = [next(found)] if when == "under way" else []
        replace_array(tmp_path / "e.npy", ROWS.numpy() + 1)
        with pytest.raises(ValueError, match=r"e\.npy: was replaced by another file while it was read"):
            places.check_unchanged(shard.path, shard.stamps) if given else next(found)


def test_a_stamp_is_the_size_and_what_the_server_says_of_changes(tmp_path):
    np.save(tmp_path / "e.npy", ROWS.numpy())
    size = (tmp_path / "e.npy").stat().st_size
    for tags in (True, False):
        with serve(tmp_path, tags=tags) as server:
            stamp = places.look_up(parse_place(f"{server.url}/e.npy"))
        assert stamp.size == size
        assert bool(stamp.version) == tags
    named = [{"ETag": '"a"', "mtime": 3}, {"generation": "7"}, {"LastModified": 5}, {"blob_id": "b", "size": 1}, {}]
    assert [remote.read_version(info) for info in named] == ['"a"', "7", "5", "b", ""]
