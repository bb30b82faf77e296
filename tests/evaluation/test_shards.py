"""Shards of embeddings as a source: the same figures as of one file, and what is wrong is named."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from servers import replace_array

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.data import write_embeddings
from clipconformity.evaluation import build_reference, embedding_source, score, shards, write_per_sample

COUNT, DIM = 9_500, 12  # beyond two batches
ROWS = torch.randn(COUNT, DIM, generator=torch.Generator().manual_seed(0)) + 1
OTHER = torch.randn(400, DIM, generator=torch.Generator().manual_seed(1)) + 1.1
ENDS = [(COUNT,), (1, 2, 4096, 4097, COUNT), (*range(700, COUNT, 700), COUNT), (8192, COUNT)]


@pytest.fixture(scope="module")
def reference():
    return cc.ReferenceSet.fit(OTHER)


def parquet():
    """Give pyarrow with its writer."""
    pytest.importorskip("pyarrow.parquet")
    return pytest.importorskip("pyarrow")


def parts(ends):
    return [ROWS[start:end] for start, end in zip((0, *ends[:-1]), ends, strict=True)]


def write_shards(folder, ends, kinds=("npy",)):
    """Write the rows in files of several kinds, in turn."""
    folder.mkdir()
    for number, rows in enumerate(parts(ends)):
        path = folder / f"part_{number}.{kinds[number % len(kinds)]}"
        if path.suffix == ".npy":
            np.save(path, rows.numpy())
        elif path.suffix == ".npz":
            np.savez_compressed(path, embeddings=rows.numpy())
        elif path.suffix == ".parquet":
            pa = parquet()
            column = pa.FixedSizeListArray.from_arrays(pa.array(rows.numpy().ravel()), DIM)
            pa.parquet.write_table(pa.table({"embedding": column}), path, row_group_size=1000)
        else:
            save_file({"embeddings": rows.contiguous()}, path)
    return folder


def state(reference):
    return {name: reference.moments[name] for name in reference.moments.layout.shapes()}


@pytest.mark.parametrize("ends", ENDS, ids=len)
@pytest.mark.parametrize("kinds", [("npy",), ("npz", "safetensors", "npy"), ("parquet", "npy")], ids=str)
def test_figures_are_those_of_one_file_to_the_last_bit(ends, kinds, reference, tmp_path):
    pytest.importorskip("pyarrow.parquet" if "parquet" in kinds else "numpy")
    np.save(tmp_path / "one.npy", ROWS.numpy())
    one, many = [tmp_path / "one.npy"], [write_shards(tmp_path / "s", ends, kinds)]
    mine, theirs = (build_reference(embedding_source(paths)) for paths in (many, one))
    for name, value in state(theirs).items():
        assert torch.equal(state(mine)[name], value), name
    assert torch.equal(mine.conformities, theirs.conformities)
    found, wanted = (score(embedding_source(paths), reference, resamples=20) for paths in (many, one))
    assert torch.equal(found.conformities, wanted.conformities)
    assert torch.equal(found.norms, wanted.norms)
    assert {name: one.value for name, one in found.figures.items()} == {
        name: one.value for name, one in wanted.figures.items()
    }


def test_figures_are_those_of_the_rows(reference, tmp_path):
    """By brute force, from the rows that were written."""
    found = score(embedding_source([write_shards(tmp_path / "s", ENDS[2])]), reference, resamples=20)
    units = torch.nn.functional.normalize(ROWS.double(), dim=1)
    others = torch.nn.functional.normalize(OTHER.double(), dim=1)
    torch.testing.assert_close(found.conformities, (units @ others.T).mean(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.norms, ROWS.double().norm(dim=1), rtol=1e-12, atol=1e-12)
    assert found.ids == [f"part_{n}:{row}" for n, part in enumerate(parts(ENDS[2])) for row in range(len(part))]


def test_ids_and_groups_of_shards_are_those_of_one_stream(tmp_path):
    ids, groups = [f"{n}.png" for n in range(COUNT)], torch.arange(COUNT) // 3
    start = 0
    for number, rows in enumerate(parts(ENDS[1])):
        part = slice(start, start + len(rows))
        write_embeddings(tmp_path / f"{number}.safetensors", rows, ids=ids[part], groups=groups[part])
        start += len(rows)
    mine = build_reference(embedding_source([tmp_path]), max_samples=500)
    theirs = cc.ReferenceSet.fit(ROWS.split(4096), ids=ids, groups=groups, max_samples=500)
    for name, value in state(theirs).items():
        assert torch.equal(state(mine)[name], value), name
    assert mine.sample_ids == theirs.sample_ids


def test_a_file_with_names_and_one_without_are_each_read_as_they_are(tmp_path):
    write_embeddings(tmp_path / "a.safetensors", ROWS[:50], ids=[f"{n}.png" for n in range(50)])
    np.save(tmp_path / "b.npy", ROWS[50:80].numpy())
    batches = list(embedding_source([tmp_path]))
    assert [(len(batch.ids), batch.placed) for batch in batches] == [(50, False), (30, True)]
    assert [batch.ids[-1] for batch in batches] == ["49.png", "b:29"]


def test_groups_in_words_are_those_of_their_hashes(tmp_path):
    pa = parquet()
    words = [f"g{n // 4}" for n in range(200)]
    for number in range(2):
        part = slice(100 * number, 100 * number + 100)
        table = pa.table({"v": ROWS[part].numpy().tolist(), "of": words[part], "key": list(range(200))[part]})
        pa.parquet.write_table(
            table.cast(pa.schema([("v", pa.list_(pa.float32())), *list(table.schema)[1:]])),
            tmp_path / f"{number}.parquet",
        )
    source = embedding_source([tmp_path], column="v", ids="key", groups="of")
    theirs = cc.ReferenceSet.fit(ROWS[:200], ids=[str(n) for n in range(200)], groups=words)
    assert torch.equal(build_reference(source).moments["count"], theirs.moments["count"])


def test_a_file_that_is_replaced_while_a_part_of_its_rows_is_read_is_noticed(tmp_path):
    path = tmp_path / "e.npy"
    np.save(path, ROWS.numpy())
    batches = iter(shards.open_embedding_files([path], shards.Columns()).source(0, 8192).batches)
    next(batches)
    replace_array(path, ROWS.numpy() + 1)
    with pytest.raises(ValueError, match=r"e\.npy: was replaced by another file while it was read"):
        list(batches)


# --- clip-retrieval ---------------------------------------------------------------------------------------------------


def clip_retrieval(folder, count=3, metadata=True, normalized=True):
    pa = parquet()
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number in range(9, 9 + count):
        rows = ROWS[100 * number : 100 * number + 100]
        rows = torch.nn.functional.normalize(rows, dim=1) if normalized else rows
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", rows.half().numpy())
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", -rows.half().numpy())
        if metadata:
            names = [f"{n:09}.jpg" for n in range(100 * number, 100 * number + 100)]
            table = pa.table({"image_path": names, "caption": ["a dog"] * 100})
            pa.parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def test_a_folder_of_clip_retrieval_is_refused_as_normalised_unless_allowed(tmp_path):
    folder = clip_retrieval(tmp_path / "c")
    with pytest.raises(ValueError, match=r"img_emb_9\.npy: all 100 embeddings have norm 1: they were L2-normalised"):
        build_reference(embedding_source([folder / "img_emb"]))
    source = embedding_source([folder], modality="image")
    reference = build_reference(source, allow_normalized=True)
    assert (reference.count, reference.modality, reference.normalized) == (300, "image", True)
    assert source.remarks["rounded"] == {
        "float16": "each entry is rounded to 11 bits, 3 digits, and below 0.00006 to fewer"
    }
    assert source.remarks["files"] == {f"img_emb_{n}": 100 for n in (9, 10, 11)}
    assert sorted(reference.sample_ids) == [f"{n:09}.jpg" for n in range(900, 1200)]


def test_a_folder_without_metadata_is_read_in_the_order_of_its_numbers(tmp_path):
    folder = clip_retrieval(tmp_path / "c", metadata=False)
    (batch,) = embedding_source([folder / "text_emb"])
    assert [batch.ids[0], batch.ids[100], batch.ids[299]] == ["text_emb_9:0", "text_emb_10:0", "text_emb_11:99"]
    assert torch.equal(batch.embeddings, -torch.nn.functional.normalize(ROWS[900:1200], dim=1).half())


def test_metadata_of_another_length_are_refused(tmp_path):
    folder = clip_retrieval(tmp_path / "c")
    np.save(folder / "img_emb" / "img_emb_10.npy", ROWS[:99].numpy())
    with pytest.raises(ValueError, match=r"img_emb_10\.npy: damaged: 100 ids do not match its 99 embeddings"):
        embedding_source([folder / "img_emb"])


def test_without_pyarrow_metadata_are_passed_over_with_a_warning(tmp_path, monkeypatch):
    folder = clip_retrieval(tmp_path / "c", count=1)
    monkeypatch.setattr("clipconformity.data.layout.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="pyarrow, which reads the ids there, is not installed"):
        (batch,) = embedding_source([folder / "img_emb"])
    assert batch.ids[0] == "img_emb_9:0"


# --- what is wrong ----------------------------------------------------------------------------------------------------


def damaged(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


SPOILT = {
    "corrupt": (lambda path: path.write_bytes(b"\x93NUMPY\1\0 nothing"), "cannot be read as .npy"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is too short for it"),
    "empty": (lambda path: np.save(path, ROWS[:0].numpy()), "at least 1 samples, got 0"),
    "of no bytes": (lambda path: path.write_bytes(b""), "cannot be read as .npy"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_shard_that_cannot_be_read_is_named_before_any_row_is_read_or_left_out_by_choice(case, reference, tmp_path):
    spoil, message = SPOILT[case]
    folder = write_shards(tmp_path / "s", ENDS[1])
    spoil(folder / "part_3.npy")
    with pytest.raises(ValueError, match=message) as error:
        embedding_source([folder])
    assert "part_3.npy" in str(error.value)
    source = embedding_source([folder], skip_errors=True)
    found = score(source, reference, resamples=20)
    kept = torch.cat([part for number, part in enumerate(parts(ENDS[1])) if number != 3])
    assert torch.equal(found.norms, score_of(kept, reference, tmp_path).norms)
    assert source.skipped == found.remarks["skipped"]["files"]
    assert message in source.skipped[0]["reason"]
    assert ", of 4 files (part_0 1, part_1 1, part_2 4094, part_4 5403), 1 files left out." in source.summary


def score_of(rows, reference, folder):
    np.save(folder / "kept.npy", rows.numpy())
    return score(embedding_source([folder / "kept.npy"]), reference, resamples=20)


def test_damage_within_a_shard_stops_the_reading_or_ends_that_shard(reference, tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    np.save(folder / "a.npy", ROWS[:100].numpy())
    np.savez(folder / "b.npz", embeddings=ROWS.numpy())
    damaged(folder / "b.npz")
    with pytest.raises(ValueError, match=r"b\.npz: cannot be read as \.npz .*CRC"):
        score(embedding_source([folder]), reference, resamples=20)
    source = embedding_source([folder], skip_errors=True)
    found = score(source, reference, resamples=20)
    assert 3996 <= source.files[1].used < COUNT  # to the end, where the sum is compared
    assert len(found.ids) == 100 + source.files[1].used
    assert f" {source.files[1].used} of its rows are used." in source.skipped[0]["reason"]


def test_when_no_shard_can_be_read_that_is_told(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 1 files could be read, such as .*a\.npy: cannot be read"):
        embedding_source([tmp_path], skip_errors=True)


def test_mixed_dimensions_name_both_files(tmp_path):
    np.save(tmp_path / "a.npy", ROWS[:20].numpy())
    np.save(tmp_path / "b.npy", ROWS[:20, :5].numpy())
    with pytest.raises(ValueError, match=r"b\.npy has dimension 5 and .*a\.npy has dimension 12"):
        embedding_source([tmp_path])


def test_mixed_types_are_told_and_used(reference, tmp_path):
    np.save(tmp_path / "a.npy", ROWS[:50].numpy())
    np.save(tmp_path / "b.npy", ROWS[50:90].double().numpy())
    with pytest.warns(UserWarning, match=r"b\.npy holds float64, and .*a\.npy float32: both are used as they are"):
        source = embedding_source([tmp_path])
    torch.testing.assert_close(score(source, reference, resamples=20).norms, ROWS[:90].double().norm(dim=1))


def test_groups_in_some_files_alone_name_both_kinds(tmp_path):
    np.savez(tmp_path / "a.npz", embeddings=ROWS[:20].numpy(), groups=np.arange(20))
    np.save(tmp_path / "b.npy", ROWS[:20].numpy())
    with pytest.raises(
        ValueError, match=r"some files have groups and some have none: .*a\.npz has and .*b\.npy has not"
    ):
        embedding_source([tmp_path])


def test_a_normalised_shard_among_raw_ones_is_named(reference, tmp_path):
    folder = write_shards(tmp_path / "s", ENDS[3])
    np.save(folder / "part_0.npy", torch.nn.functional.normalize(ROWS[:8192], dim=1).numpy())
    with pytest.raises(ValueError, match=r"part_0\.npy, first 4096 rows: all 4096 embeddings have norm 1"):
        score(embedding_source([folder]), reference, resamples=20)
    with pytest.raises(ValueError, match=r"part_0\.npy, first 4096 rows: all 4096 embeddings have norm 1"):
        build_reference(embedding_source([folder], skip_errors=True))  # it is no damage
    assert build_reference(embedding_source([folder]), allow_normalized=True).count == COUNT


# --- the commands -----------------------------------------------------------------------------------------------------


def command(capsys, *words):
    status = main([str(word) for word in words])
    reported = capsys.readouterr()
    return status, reported


@pytest.mark.filterwarnings("default")
def test_the_commands_take_folders_patterns_and_columns(tmp_path, capsys):
    folder = write_shards(tmp_path / "s", ENDS[1], ("npy", "safetensors"))
    places = ([folder], [folder / "*"], sorted(folder.iterdir()))
    counts = []
    for number, place in enumerate(places):
        status, reported = command(
            capsys, "reference", "--embeddings", *place, "-o", tmp_path / f"{number}.safetensors"
        )
        assert status == 0, reported.err
        counts.append(json.loads(reported.out) | {"output": ""})
    assert counts[0] == counts[1] == counts[2]
    assert counts[0]["files"] == {"part_0": 1, "part_1": 1, "part_2": 4094, "part_3": 1, "part_4": 5403}
    out = tmp_path / "p.csv"
    given = ["--reference", tmp_path / "0.safetensors", "--per-sample", out, "--resamples", "20"]
    status, reported = command(capsys, "score", "--embeddings", folder / "part_*", *given)
    assert status == 0, reported.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["id"] for row in rows) == sorted(
        f"part_{n}:{k}" for n, part in enumerate(parts(ENDS[1])) for k in range(len(part))
    )
    assert [float(row["conformity"]) for row in rows] == sorted(
        (float(row["conformity"]) for row in rows), reverse=True
    )
    assert [int(row["rank"]) for row in rows] == list(range(1, COUNT + 1))


@pytest.mark.filterwarnings("default")
def test_against_and_compare_take_folders(tmp_path, capsys):
    folder = write_shards(tmp_path / "s", (100, 200, COUNT))
    np.save(tmp_path / "e.npy", OTHER.numpy())
    cc.ReferenceSet.fit(OTHER).save(tmp_path / "r.safetensors")
    given = ["--reference", tmp_path / "r.safetensors", "--resamples", 20]
    status, reported = command(capsys, "score", "--embeddings", tmp_path / "e.npy", "--against", folder, *given)
    assert status == 0, reported.err
    cosines = (
        torch.nn.functional.normalize(OTHER.double(), dim=1) @ torch.nn.functional.normalize(ROWS.double(), dim=1).T
    )
    assert json.loads(reported.out)["training_nearest_cosine"] == pytest.approx(
        float(cosines.max(1).values.mean()), abs=1e-6
    )
    status, reported = command(capsys, "compare", f"a={folder}", f"b={tmp_path}/e*.npy", *given, "--format", "json")
    assert status == 0, reported.err
    assert [run["count"] for run in json.loads(reported.out)["runs"].values()] == [COUNT, 400]


def test_a_shard_is_no_output_and_no_file_is_read_twice(tmp_path, capsys):
    folder = write_shards(tmp_path / "s", (100, COUNT))
    save_file({"embeddings": ROWS[:20].contiguous()}, folder / "z.safetensors")
    status, reported = command(
        capsys, "reference", "--embeddings", folder, "-o", folder / "z.safetensors", "--overwrite"
    )
    assert (status, "are the same file" in reported.err) == (2, True)
    status, reported = command(
        capsys, "reference", "--embeddings", folder, folder / "*_1.npy", "-o", tmp_path / "r.safetensors"
    )
    assert (status, "are the same file" in reported.err) == (2, True)


@pytest.mark.filterwarnings("default")
def test_the_commands_leave_a_broken_shard_out_by_choice(tmp_path, capsys):
    folder = write_shards(tmp_path / "s", ENDS[1])
    (folder / "part_2.npy").write_bytes(b"")
    words = ["reference", "--embeddings", folder, "-o", tmp_path / "r.safetensors"]
    status, reported = command(capsys, *words)
    assert (status, reported.err.count("\n"), "part_2.npy: cannot be read" in reported.err) == (2, 1, True)
    status, reported = command(capsys, *words, "--on-error", "skip")
    assert status == 0
    assert json.loads(reported.out)["skipped"]["count"] == 1
    assert "4 files (part_0 1, part_1 1, part_3 1, part_4 5403), 1 files left out." in reported.err


def test_per_sample_values_of_a_source_are_written_from_names_that_are_made_then(tmp_path, reference):
    found = score(embedding_source([write_shards(tmp_path / "s", ENDS[3])]), reference, resamples=20)
    write_per_sample(tmp_path / "p.csv", found)
    with (tmp_path / "p.csv").open(newline="") as file:
        by_id = {row["id"]: float(row["norm"]) for row in csv.DictReader(file)}
    assert by_id["part_1:0"] == pytest.approx(float(ROWS[8192].double().norm()), rel=1e-8)
    assert by_id["part_0:8191"] == pytest.approx(float(ROWS[8191].double().norm()), rel=1e-8)


# --- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import sys
from clipconformity.cli import main
assert main(sys.argv[1:]) == 0
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0], file=sys.stderr)
"""  # getrusage would give the most that the process which started this one held


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "parquet"])
def test_memory_does_not_grow_with_the_file(kind, tmp_path):
    """50 MB and 400 MB: what is used more is a few bytes a row."""
    peaks = []
    for count in (50_000, 400_000):
        rows = np.random.default_rng(0).standard_normal((count, 256), dtype=np.float32) + 1
        path = tmp_path / f"e{count}.{kind}"
        if kind == "npy":
            np.save(path, rows)
        elif kind == "npz":
            np.savez(path, embeddings=rows)
        elif kind == "safetensors":
            save_file({"embeddings": torch.from_numpy(rows)}, path)
        else:
            pa = parquet()
            column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 256)
            pa.parquet.write_table(pa.table({"embedding": column}), path)
        del rows
        out = str(tmp_path / f"r{count}.safetensors")
        run = subprocess.run(
            [sys.executable, "-c", PEAK, "reference", "--embeddings", str(path), "-o", out],
            capture_output=True, text=True, check=True, env=os.environ,
        )  # fmt: skip
        peaks.append(int(run.stderr.split()[-1]) * 1024)
    assert peaks[1] - peaks[0] < 64 * 2**20, peaks


def test_a_batch_ends_where_no_file_ends(tmp_path):
    folder = write_shards(tmp_path / "s", ENDS[2])
    sizes = [len(batch.ids) for batch in embedding_source([folder])]
    assert sizes == [shards.ROWS, shards.ROWS, COUNT - 2 * shards.ROWS]
