"""Files at addresses are read as those of this machine: listed, opened in blocks, and refused in one line."""

from __future__ import annotations

import logging
import math
import re
import socket
import traceback
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from servers import serve

from clipconformity.data import places, read_embeddings, remote
from clipconformity.data.addresses import parse_place
from clipconformity.data.embeddings import Columns, open_embeddings
from clipconformity.data.formats import read_kind
from clipconformity.data.layout import find_embeddings, find_metadata, list_embedding_files
from clipconformity.data.limits import raise_limits

fsspec = pytest.importorskip("fsspec")
KINDS = ("http", "memory")
COUNT, DIM = 9_000, 6
ROWS = torch.randn(COUNT, DIM, generator=torch.Generator().manual_seed(0)) + 1


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def served(folder: Path, kind: str):
    """Give the address of a folder, once it is filled."""
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


@pytest.fixture
def web(tmp_path):
    pytest.importorskip("aiohttp", reason="https:// is read with aiohttp")
    with serve(tmp_path) as server:
        yield server


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


# --- listings ---------------------------------------------------------------------------------------------------------

NAMES = (
    "e10.npy", "e2.npz", "a/e1.safetensors", "b/e3.parquet", "b/c/e 4 ü.npy", "b/c/e[9].npy", "notes.txt", "README",
    "b/e.json", ".hidden.npy", ".cache/e4.npy", "metadata_0.parquet", "b/.d/e.npy", "e&amp;1.npy",
)  # fmt: skip
PATTERNS = (
    "", "a", "b/", "*", "*.npy", "e?.np*", "**/*.npy", "**", "b/**", "**/e[0-9].*", "*/e*", "b/*/", "*/*/*", ".*",
    ".c*/*", "b/c/e*", "**/c/*.npy", "e[9].npy", "[ab]/*",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_folders_and_patterns_name_the_same_files_in_the_same_order(kind, tmp_path):
    touch(tmp_path, *NAMES)
    with served(tmp_path, kind) as start:
        for pattern in PATTERNS:
            if kind == "http" and "?" in pattern:
                continue  # begins the query
            try:
                wanted = find_embeddings([tmp_path / pattern])
            except (ValueError, FileNotFoundError) as error:
                with pytest.raises(type(error), match="no embeddings in this folder|no file fits this pattern"):
                    find_embeddings([f"{start}/{pattern}"])
                continue
            found = find_embeddings([f"{start}/{pattern}"])
            assert [path.name for path in found.paths] == [path.name for path in wanted.paths], pattern
            assert found.names == wanted.names, pattern
            assert found.ignored == wanted.ignored, pattern
            listed = sorted(path.name for path in list_embedding_files(parse_place(f"{start}/{pattern}")))
            assert listed == sorted(path.name for path in list_embedding_files(tmp_path / pattern)), pattern


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_whose_name_is_a_pattern_is_that_file(kind, tmp_path):
    touch(tmp_path, "b/e[9].npy", "b/e9.npy")
    with served(tmp_path, kind) as start:
        assert [path.name for path in find_embeddings([f"{start}/b/e[9].npy"]).paths] == ["e[9].npy"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_named_as_those_of_files_here(kind, tmp_path):
    touch(tmp_path, "a/e0.npy", "a/e1.npy", "b/e0.npy", "b/e0.npz")
    with served(tmp_path, kind) as start:
        for places_ in (["a"], ["a/e0.npy", "b/e0.npy"], ["b"], ["b/e0.npy"]):
            here, there = ([f"{root}/{one}" for one in places_] for root in (tmp_path, start))
            assert find_embeddings(there).names == find_embeddings(here).names
        mixed = find_embeddings([tmp_path / "a/e0.npy", f"{start}/b/e0.npy"]).names
        assert len(set(mixed)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_of_clip_retrieval_is_known(kind, tmp_path):
    touch(tmp_path, *(f"img_emb/img_emb_{n}.npy" for n in (0, 2, 10)), "text_emb/text_emb_0.npy")
    touch(tmp_path, "metadata/metadata_2.parquet", "img_emb/metadata_10.parquet")
    with served(tmp_path, kind) as start:
        with pytest.raises(ValueError, match=r"images \(.*img_emb_0\.npy\) and of texts \(.*text_emb_0\.npy\); name"):
            find_embeddings([start])
        found = find_embeddings([start], "image").paths
        assert [path.name for path in found] == ["img_emb_0.npy", "img_emb_2.npy", "img_emb_10.npy"]
        beside = [find_metadata(path, needed=True) for path in found]
        assert [None if one is None else str(one) for one in beside] == [
            None,
            f"{start}/metadata/metadata_2.parquet",
            f"{start}/img_emb/metadata_10.parquet",
        ]


def test_a_page_is_followed_into_its_folder_alone(web, tmp_path):
    touch(tmp_path, "a/e.npy", "b/e.npy", "e.npy", "other/e.npy")
    assert [str(path) for path in find_embeddings([f"{web.url}/a/"]).paths] == [f"{web.url}/a/e.npy"]
    assert [path for _, path, _ in web.requests] == ["/a/"]


def test_endless_folders_and_pages_are_refused(web, monkeypatch):
    web.fail = lambda method, path: b"no page"
    with pytest.raises(ValueError, match="expected a page that lists a folder, got application/octet-stream"):
        find_embeddings([f"{web.url}/"])
    web.fail = lambda method, path: None
    monkeypatch.setattr(remote, "_ask_page", lambda system, place: ("text/html", b"<a href='again/'>more</a>"))
    with pytest.raises(ValueError, match="over 32 folders in each other; name the files, or a folder among them"):
        find_embeddings([f"{web.url}/"])
    with pytest.raises(ValueError, match="over 32 folders in each other"):
        find_embeddings([f"{web.url}/**/*.npy"])
    many = b"".join(b"<a href='%d.npy'>" % n for n in range(30))
    monkeypatch.setattr(remote, "_ask_page", lambda system, place: ("text/html", many))
    with raise_limits(["listed=20"]), pytest.raises(ValueError, match="30 files and folders at an address are over"):
        find_embeddings([f"{web.url}/"])


def test_a_page_without_end_is_not_held(web, tmp_path, monkeypatch):
    touch(tmp_path, *(f"a/e{n}.npy" for n in range(100)))
    monkeypatch.setattr(remote, "MAX_PAGE_BYTES", 1000)
    with pytest.raises(ValueError, match="a page of over 1,000 bytes lists no folder; name the files"):
        find_embeddings([f"{web.url}/a/"])


# --- reading ----------------------------------------------------------------------------------------------------------


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


def blocks(place, rows, first=None, begin=0):
    return list(open_embeddings(place).blocks(rows, first, begin=begin))


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_to_the_last_bit(kind, tmp_path):
    write_all(tmp_path)
    with served(tmp_path, kind) as start:
        for path in sorted(tmp_path.iterdir()):
            for cut in ((4096, None), (333, 5), (COUNT, None), (1000, 1, 7777), (64, None, COUNT - 3)):
                mine, theirs = blocks(f"{start}/{path.name}", *cut), blocks(path, *cut)
                assert len(mine) == len(theirs)
                for one, other in zip(mine, theirs, strict=True):
                    assert torch.equal(one.embeddings, other.embeddings), path.name
                    assert list(one.ids) == list(other.ids)
                    assert (one.groups is None) == (other.groups is None)
                    assert other.groups is None or torch.equal(one.groups, other.groups)
            whole, here = read_embeddings(f"{start}/{path.name}"), read_embeddings(path)
            assert torch.equal(whole.embeddings, here.embeddings)
            assert (whole.ids, whole.named) == (here.ids, here.named)


def test_a_file_is_read_in_blocks_that_are_large_and_few(web, tmp_path, monkeypatch):
    """The bytes of each request, and what Python holds at once: fsspec's block is among it, PyTorch's memory is not."""
    monkeypatch.setattr(remote, "ROW_BYTES", 2**20)
    for module in (places, __import__("clipconformity.data.formats", fromlist=["formats"])):
        monkeypatch.setattr(module, "ROW_BYTES", 2**20)
    rows = np.random.default_rng(0).normal(size=(200_000, 20)).astype("f4")  # 16 MB
    np.save(tmp_path / "e.npy", rows)
    shard = open_embeddings(f"{web.url}/e.npy")
    tracemalloc.start()
    total = torch.zeros(20, dtype=torch.float64)
    for block in shard.blocks(1000):  # 80 kB
        total += block.embeddings.double().sum(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.allclose(total.numpy(), rows.sum(0, dtype="f8"))
    asked = [re.fullmatch(r"bytes=(\d+)-(\d+)", one) for _, _, one in web.requests if one]
    sizes = [int(found[2]) - int(found[1]) + 1 for found in asked if found]
    assert max(sizes) <= 2**20 + 80_000
    assert len(sizes) <= math.ceil(rows.nbytes / 2**20) + 3
    assert web.sent <= rows.nbytes * 1.02 + 3 * remote.HEADER_BYTES
    assert peak < 6 * 2**20


def test_what_is_not_wanted_is_not_fetched(web, tmp_path):
    np.save(tmp_path / "e.npy", np.ones((2_000_000, 8), "f4"))  # 64 MB
    first = next(open_embeddings(f"{web.url}/e.npy").blocks(100))
    assert first.embeddings.shape == (100, 8)
    assert web.sent < remote.ROW_BYTES + 2**20
    web.sent = 0
    last = list(open_embeddings(f"{web.url}/e.npy").blocks(4096, begin=1_990_000))
    assert sum(len(block.ids) for block in last) == 10_000
    assert web.sent < remote.ROW_BYTES + 2**20


def test_short_columns_of_parquet_do_not_fetch_the_long_ones_again(web, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = np.random.default_rng(0).normal(size=(20_000, 256)).astype("f4")  # 20 MB, in five groups of rows
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 256)
    table = pa.table({"embedding": fixed, "id": [f"{n}.jpg" for n in range(20_000)]})
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=4000, compression="none", use_dictionary=False)
    size = (tmp_path / "e.parquet").stat().st_size
    found = list(open_embeddings(f"{web.url}/e.parquet").blocks(100))
    assert np.array_equal(torch.cat([block.embeddings for block in found]).numpy(), rows)
    assert [name for block in found for name in block.ids] == [f"{n}.jpg" for n in range(20_000)]
    assert web.sent < size + 5 * 1.3 * remote.COLUMN_BYTES + 2**20
    assert len(web.requests) < 25


def test_the_header_of_a_safetensors_file_is_all_that_is_copied(web, tmp_path):
    save_file({"embeddings": torch.ones(400_000, 8), "other": torch.ones(())}, tmp_path / "e.safetensors")
    place = parse_place(f"{web.url}/e.safetensors")
    assert (open_embeddings(place).count, read_kind(place)) == (400_000, None)
    assert web.sent < 2**19
    with places.copy_here(place) as copy:
        assert copy.read_bytes() == (tmp_path / "e.safetensors").read_bytes()
    assert not copy.parent.exists()


def test_files_in_memory_can_be_read_at_once(tmp_path):
    """fsspec gives one and the same file to all who open it, with one place in it."""
    np.save(tmp_path / "e.npy", np.arange(60, dtype="f4").reshape(30, 2))
    with served(tmp_path, "memory") as start:
        one, other = (open_embeddings(f"{start}/e.npy").blocks(3) for _ in range(2))
        for mine, theirs in zip(one, other, strict=True):
            assert torch.equal(mine.embeddings, theirs.embeddings)


# --- what goes wrong --------------------------------------------------------------------------------------------------

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
        (DeniedError(), remote.RemoteRefusedError, "access is refused .HTTP status 403.; .* where s3fs looks for them"),
        (NoCredentialsError(), remote.RemoteRefusedError, "access is refused; check"),
        (PermissionError("Forbidden"), remote.RemoteRefusedError, "access is refused"),
        (HttpError(), remote.RemoteConnectionError, "HTTP status 503"),
        (FileNotFoundError("s3://zoe:s3cret@b"), remote.RemoteMissingError, "no such file or folder there"),
        (raised(FileNotFoundError("x"), TimeoutError()), remote.RemoteConnectionError, "does not answer in time"),
        (raised(OSError("x"), socket.gaierror()), remote.RemoteConnectionError, "the host of s3:// is not known"),
        (
            ValueError("bad\nname s3://k:s3cret@b"),
            remote.RemoteError,
            r"\(ValueError: bad name s3://b\); check the addr",
        ),
        (RuntimeError("odd."), remote.RemoteConnectionError, r"cannot be read \(RuntimeError: odd\); check"),
    ],
)
def test_errors_of_the_packages_are_told_by_what_they_mean(error, kind, message):
    found = remote.explain(parse_place("s3://bucket/e.npy"), error)
    assert type(found) is kind
    assert re.search(message, str(found))
    assert "\n" not in str(found)
    assert "s3cret" not in str(found)


def test_what_a_package_says_of_an_address_with_secrets_is_not_repeated():
    place = parse_place("https://zoe:s3cret@host/e.npy?signature=token")
    found = remote.explain(place, RuntimeError("odd answer to zoe with s3cret for signature=token"))
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
        if when == "under way":
            next(found)
        np.save(tmp_path / "e.npy", ROWS.numpy() + 1)  # of the same shape and size
        with pytest.raises(ValueError, match=r"e\.npy: was replaced by another file while it was read"):
            shard.check_unchanged() if list(found) else None


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


def test_columns_are_chosen_at_addresses_too(tmp_path):
    np.savez(tmp_path / "e.npz", a=ROWS.numpy(), b=ROWS.numpy() + 1, of=np.arange(COUNT) // 2)
    with served(tmp_path, "memory") as start:
        [block] = open_embeddings(f"{start}/e.npz", Columns("b", None, "of")).blocks(COUNT)
        assert torch.equal(block.embeddings, ROWS + 1)
        assert torch.equal(block.groups, torch.arange(COUNT) // 2)
        with pytest.raises(ValueError, match=r"memory://box/e\.npz: expected one array or column"):
            open_embeddings(f"{start}/e.npz")
