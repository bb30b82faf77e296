"""Files at addresses are read as those of this machine: listed, and opened in blocks, to the last bit."""

from __future__ import annotations

import math
import re
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from servers import COUNT, KINDS, ROWS, served, touch, write_all

from clipconformity.data import formats, places, read_embeddings, remote
from clipconformity.data.addresses import parse_place
from clipconformity.data.embeddings import Columns, open_embeddings
from clipconformity.data.formats import read_kind
from clipconformity.data.layout import find_embeddings, find_metadata, list_embedding_files
from clipconformity.data.limits import raise_limits

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
    for module in (places, formats):
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


def test_columns_are_chosen_at_addresses_too(tmp_path):
    np.savez(tmp_path / "e.npz", a=ROWS.numpy(), b=ROWS.numpy() + 1, of=np.arange(COUNT) // 2)
    with served(tmp_path, "memory") as start:
        [block] = open_embeddings(f"{start}/e.npz", Columns("b", None, "of")).blocks(COUNT)
        assert torch.equal(block.embeddings, ROWS + 1)
        assert torch.equal(block.groups, torch.arange(COUNT) // 2)
        with pytest.raises(ValueError, match=r"memory://box/e\.npz: expected one array or column"):
            open_embeddings(f"{start}/e.npz")
