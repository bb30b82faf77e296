"""Arrays read in blocks are those that NumPy, safetensors and pyarrow read whole."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipconformity.data.embeddings import Columns, open_embeddings, read_embeddings
from clipconformity.data.limits import LimitError
from clipconformity.data.stored import read_bytes, split_rows

ROWS = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0)) + 1
IDS = [f"row {n}, ü" for n in range(1000)]


def npy(folder, array):
    np.save(folder / "e.npy", array)
    return folder / "e.npy"


def npz(folder, array, save=np.savez):
    save(folder / "e.npz", embeddings=array, groups=np.arange(len(array)) // 7)
    return folder / "e.npz"


def safetensors(folder, dtype=torch.float32):
    save_file(
        {"a": torch.ones(3), "embeddings": ROWS.to(dtype), "groups": torch.arange(1000) // 7}, folder / "e.safetensors"
    )
    return folder / "e.safetensors"


def parquet(folder, rows=ROWS, kind="fixed", groups_of_rows=170, **columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    array, dim = rows.numpy(), rows.shape[1]
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), dim)
    else:
        kinds = {"list": (pa.ListArray, np.int32), "large": (pa.LargeListArray, np.int64)}
        made, places = kinds[kind]
        column = made.from_arrays(pa.array(np.arange(0, array.size + 1, dim, dtype=places)), pa.array(array.ravel()))
    pq.write_table(pa.table({"embedding": column, **columns}), folder / "e.parquet", row_group_size=groups_of_rows)
    return folder / "e.parquet"


MADE = {
    "npy": lambda folder: npy(folder, ROWS.numpy()),
    "npy of other bytes": lambda folder: npy(folder, ROWS.numpy().astype(">f4")),
    "npy by columns": lambda folder: npy(folder, np.asfortranarray(ROWS.numpy())),
    "npy by columns of other bytes": lambda folder: npy(folder, np.asfortranarray(ROWS.numpy().astype(">f8"))),
    "npy of three axes": lambda folder: npy(folder, ROWS.numpy()[:, None]),
    "npy of three axes by columns": lambda folder: npy(folder, np.asfortranarray(ROWS.numpy()[:, None])),
    "npz": lambda folder: npz(folder, ROWS.numpy()),
    "npz, compressed": lambda folder: npz(folder, ROWS.numpy().astype("f8"), np.savez_compressed),
    "npz by columns": lambda folder: npz(folder, np.asfortranarray(ROWS.numpy())),
    "safetensors": safetensors,
    "parquet": parquet,
    "parquet of lists": lambda folder: parquet(folder, kind="list"),
    "parquet of large lists": lambda folder: parquet(folder, kind="large"),
}
every_kind = pytest.mark.parametrize("kind", MADE)


@every_kind
@pytest.mark.parametrize(("rows", "first"), [(4096, None), (1000, None), (333, None), (64, 5), (999, 1), (1, None)])
def test_blocks_are_the_rows_in_their_order(kind, rows, first, tmp_path):
    shard = open_embeddings(MADE[kind](tmp_path))
    blocks = list(shard.blocks(rows, first))
    sizes = [len(block.embeddings) for block in blocks]
    assert torch.equal(torch.cat([block.embeddings for block in blocks]).float(), ROWS)
    assert [name for block in blocks for name in block.ids] == [f"e:{n}" for n in range(1000)]
    cuts = [0, *range(first or rows, 1000, rows), 1000]
    assert sizes == [after - before for before, after in pairwise(cuts)]
    if shard.grouped:
        assert torch.equal(torch.cat([block.groups for block in blocks]), torch.arange(1000) // 7)
    assert (shard.count, shard.dim, shard.grouped) == (1000, 6, "npz" in kind or kind == "safetensors")


@every_kind
@pytest.mark.parametrize("begin", [1, 169, 170, 171, 512, 999, 1000])
def test_blocks_from_a_row_on_are_those_of_the_rest(kind, begin, tmp_path):
    shard = open_embeddings(MADE[kind](tmp_path))
    blocks = list(shard.blocks(100, 7, begin=begin))
    empty = torch.empty(0, 6)
    assert torch.equal(torch.cat([empty, *(block.embeddings.float() for block in blocks)]), ROWS[begin:])
    assert [name for block in blocks for name in block.ids] == [f"e:{n}" for n in range(begin, 1000)]
    cuts = [begin, *range(begin + 7, 1000, 100), 1000] if begin < 1000 else []
    assert [len(block.ids) for block in blocks] == [after - before for before, after in pairwise(cuts)]
    if shard.grouped and blocks:
        assert torch.equal(torch.cat([block.groups for block in blocks]), torch.arange(begin, 1000) // 7)


@every_kind
def test_a_file_read_whole_is_the_same(kind, tmp_path):
    found = read_embeddings(MADE[kind](tmp_path))
    assert torch.equal(found.embeddings.float(), ROWS)
    assert found.embeddings.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_type_of_safetensors_is_read_in_blocks(dtype, tmp_path):
    shard = open_embeddings(safetensors(tmp_path, dtype))
    assert shard.dtype == dtype
    assert torch.equal(torch.cat([block.embeddings for block in shard.blocks(77)]), ROWS.to(dtype))


def test_blocks_do_not_share_memory(tmp_path):
    for kind in ("npy", "npz", "safetensors", "parquet"):
        first, second, *_ = (block.embeddings for block in open_embeddings(MADE[kind](tmp_path)).blocks(100))
        second.zero_()
        assert torch.equal(first, ROWS[:100])


@pytest.mark.parametrize(("count", "rows", "first"), [(0, 4, None), (10, 4, None), (10, 4, 1), (3, 4, 9), (8, 4, 4)])
def test_steps_cover_every_row_once(count, rows, first):
    parts = list(split_rows(count, rows, first))
    assert [n for part in parts for n in range(part.start, part.stop)] == list(range(count))
    assert all(before.stop == after.start for before, after in pairwise(parts))


class Slow(io.BytesIO):
    """Gives a few bytes at a time, as a large read of a disk may."""

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:3])


def test_bytes_that_come_a_few_at_a_time_are_all_read():
    content = bytes(range(100))
    assert bytes(read_bytes(Slow(content), 100).numpy()) == content
    with pytest.raises(ValueError, match="it ends 20 bytes too early"):
        read_bytes(Slow(content), 120)


# --- columns of Parquet ----------------------------------------------------------------------------------------------


def test_ids_and_groups_come_from_the_usual_columns(tmp_path):
    shard = open_embeddings(parquet(tmp_path, image_path=IDS, groups=[n // 3 for n in range(1000)]))
    assert (shard.named, shard.grouped) == (True, True)
    blocks = list(shard.blocks(300))
    assert [name for block in blocks for name in block.ids] == IDS
    assert torch.cat([block.groups for block in blocks]).tolist() == [n // 3 for n in range(1000)]
    later = list(shard.blocks(300, begin=333))
    assert [name for block in later for name in block.ids] == IDS[333:]


def test_ids_and_groups_come_from_the_columns_that_are_told(tmp_path):
    pa = pytest.importorskip("pyarrow")
    words = pa.array([f"g{n // 3}" for n in range(1000)]).dictionary_encode()
    path = parquet(tmp_path, id=IDS, number=list(range(1000)), place=words)
    blocks = list(open_embeddings(path, Columns(None, "number", "place")).blocks(300))
    assert [name for block in blocks for name in block.ids] == [str(n) for n in range(1000)]
    assert [name for block in blocks for name in block.groups] == [f"g{n // 3}" for n in range(1000)]


def test_another_column_of_embeddings_is_read_by_its_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    other = pa.FixedSizeListArray.from_arrays(pa.array((ROWS * 2).numpy().ravel()), 6)
    path = parquet(tmp_path, other=other)
    assert torch.equal(read_embeddings(path, column="other").embeddings, ROWS * 2)
    assert torch.equal(read_embeddings(path).embeddings, ROWS)
    np.savez(tmp_path / "e.npz", a=ROWS.numpy(), b=ROWS.numpy() + 1)
    assert torch.equal(read_embeddings(tmp_path / "e.npz", column="b").embeddings, ROWS + 1)


def test_half_precision_is_read_as_it_is(tmp_path):
    assert torch.equal(read_embeddings(parquet(tmp_path, ROWS.half())).embeddings, ROWS.half())


def columns(folder, **values):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(values), folder / "e.parquet")
    return folder / "e.parquet"


VECTORS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
BAD = {
    "no column": (
        {"a": VECTORS, "b": VECTORS},
        r"expected one array or column, or one named 'embeddings', got \['a', 'b'\]",
    ),
    "ragged": (
        {"embedding": [[1.0, 2.0], [3.0], [1.0]]},
        "the lists of the column 'embedding' are not all of 2 numbers",
    ),
    "null row": ({"embedding": [[1.0, 2.0], None, [1.0, 2.0]]}, "1 rows of the column 'embedding' are null"),
    "null number": ({"embedding": [[1.0, 2.0], [None, 2.0]]}, "1 numbers of the column 'embedding' are null"),
    "null id": ({"embedding": VECTORS, "id": ["a", None, "c"]}, "1 rows of the column 'id' are null"),
    "long id": ({"embedding": VECTORS, "id": ["a", "b" * 10_001, "c"]}, "10,001 characters of a caption"),
    "no numbers": ({"embedding": ["a", "b"]}, "expected floating-point raw embeddings, got a column of texts"),
    "scalars": ({"embedding": [1.0, 2.0]}, r"expected shape \(N, D\), got \(2,\)"),
    "whole numbers": ({"embedding": [[1, 2], [3, 4]]}, "expected floating-point raw embeddings, got torch.int64"),
    "empty": ({"embedding": [[1.0]][:0]}, r"e\.parquet: "),
    "groups": ({"embedding": VECTORS, "groups": [1.0, 2.0, 3.0]}, "groups: expected whole numbers, got torch.float64"),
}


@pytest.mark.parametrize("case", BAD)
def test_columns_that_are_no_embeddings_are_refused_in_one_line(case, tmp_path):
    values, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        list(open_embeddings(columns(tmp_path, **values)).blocks(2))
    assert str(tmp_path / "e.parquet") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("end", [0, 4, 0.5, -1])
def test_a_truncated_parquet_file_is_refused(end, tmp_path):
    path = parquet(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(end * len(content)) if isinstance(end, float) else end])
    with pytest.raises(ValueError, match=r"e\.parquet: cannot be read as \.parquet"):
        open_embeddings(path)


def test_damage_that_shows_only_in_the_rows_names_the_file(tmp_path):
    path = npz(tmp_path, ROWS.numpy())
    content = bytearray(path.read_bytes())
    content[5000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"e\.npz: cannot be read as \.npz .*CRC-32"):
        list(open_embeddings(path).blocks(100))
    with pytest.raises(ValueError, match=r"e\.npz: cannot be read as \.npz .*CRC-32"):
        read_embeddings(path)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path):
    shard = open_embeddings(npy(tmp_path, ROWS.numpy()))
    npy(tmp_path, ROWS[:10].numpy())
    with pytest.raises(ValueError, match=r"e\.npy: was replaced by another file"):
        next(shard.blocks(100))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"e\.parquet: .*pip install 'clipconformity\[parquet\]'"):
        open_embeddings(tmp_path / "e.parquet")


def test_a_pyarrow_that_may_run_code_is_refused(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path)
    monkeypatch.setattr(pa, "__version__", "14.0.0")
    with pytest.raises(ValueError, match=r"pyarrow 14\.0\.0 may run code that a file holds .*14\.0\.1 or newer"):
        open_embeddings(path)


def test_a_parquet_file_that_grows_without_bounds_is_refused(tmp_path):
    path = parquet(tmp_path, torch.zeros(2**14, 2**10, dtype=torch.float64), groups_of_rows=2**14)
    assert path.stat().st_size < 2**20
    with pytest.raises(LimitError, match=r"e\.parquet: .* times the size of its file.* limit of 20"):
        open_embeddings(path)
