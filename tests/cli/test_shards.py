"""Jobs that never talk: each takes its share by ``--shard I/N``, and ``merge`` and ``score --saved`` join them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clipconformity import ReferenceSet
from clipconformity.cli import main
from clipconformity.cli.shards import Shard
from clipconformity.data import read_embeddings
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.stream.layout import SECOND_MOMENTS

# As the commands show them.
pytestmark = pytest.mark.filterwarnings("always")
IMAGES = ["--images", "coco/val2017", "--batch-size", "4", "--encoder", "tiny", "--quiet"]
CAPTIONS = ["--captions", "c.json", "--batch-size", "4", "--encoder", "tiny", "--quiet"]


@pytest.fixture
def rows(tmp_path, monkeypatch) -> np.ndarray:
    random = np.random.default_rng(0)
    rows = (random.normal(size=(30_000, 5)) + 1).astype("f4")
    np.save(tmp_path / "a.npy", rows[:9000])
    np.save(tmp_path / "b.npy", rows[9000:])
    np.save(tmp_path / "r.npy", (random.normal(size=(800, 5)) + 1).astype("f4"))
    monkeypatch.chdir(tmp_path)
    assert main(["reference", "--embeddings", "r.npy", "-o", "r.safetensors", "--quiet"]) == 0
    return rows


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_coco_scenes(folder / "coco", sample_scenes(30, seed=0), captions_per_image=2, seed=0)
    shutil.copy(folder / "coco" / "annotations" / "captions_val2017.json", folder / "c.json")
    return folder


def reference(shard: str, output: str, *more: str) -> int:
    command = ["reference", "--embeddings", "a.npy", "b.npy", "--max-samples", "300", "--quiet", "-o", output, *more]
    return main([*command, *(["--shard", shard] if shard else [])])


def shards(count: int) -> list[str]:
    names = [f"s{number}.safetensors" for number in range(1, count + 1)]
    for number, name in enumerate(names, start=1):
        assert reference(f"{number}/{count}", name) == 0
    return names


def equal(one: ReferenceSet, other: ReferenceSet) -> None:
    """Equal to 1e-9, second moments of float32 rows to 1e-7, and of the same rows."""
    assert torch.equal(one.sample.keys, other.sample.keys)
    assert one.sample_ids == other.sample_ids
    for name, tensor in one.moments.state.items():
        if isinstance(tensor, torch.Tensor):
            near = 1e-7 * float(tensor.abs().max()) if name in SECOND_MOMENTS else 1e-9
            found = [side.moments.get_sum(name) for side in (one, other)]
            torch.testing.assert_close(*found, rtol=1e-12, atol=near)


@pytest.mark.parametrize(("count", "size"), [(10, 4), (3, 4), (1000, 1), (99, 7), (12_345, 64)])
def test_shards_are_all_samples_once_in_whole_batches(count, size):
    for number in (1, 2, 5, max(1, count // size)):
        if number > max(1, count // size):
            continue
        spans = [Shard(each, number).span(count, size) for each in range(1, number + 1)]
        assert [spans[0][0], *(stop for _, stop in spans)] == [*(start for start, _ in spans), count]
        assert all(start % size == 0 and stop > start for start, stop in spans)


def test_more_shards_than_batches_are_refused():
    with pytest.raises(ValueError, match="10 samples in batches of 4 can be cut into at most 2 shards, got 3"):
        Shard(1, 3).span(10, 4)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ValueError, match="expected I/N with I from 1 to N"):
        Shard.parse(text)


@pytest.mark.parametrize("order", [1, -1])
def test_shards_of_a_reference_merge_to_that_of_all(order, rows):
    assert reference("", "one.safetensors") == 0
    names = shards(3)
    assert sum(ReferenceSet.load(name).count for name in names) == 30_000
    assert main(["merge", *names[::order], "-o", "all.safetensors"]) == 0
    equal(ReferenceSet.load("one.safetensors"), ReferenceSet.load("all.safetensors"))


def test_no_shard_is_counted_twice_by_whatever_way(rows, capsys):
    first, second, third = shards(3)
    assert main(["merge", first, second, "-o", "two.safetensors"]) == 0
    assert "2 of 3 shards are there, shard 3 is missing: what comes out is of those alone" in capsys.readouterr().err
    shutil.copy(second, "copy.safetensors")
    for files in ((first, third, first), (second, "copy.safetensors"), ("two.safetensors", third, second)):
        twice = [*files]
        assert main(["merge", *twice, "-o", "bad.safetensors"]) == 2
        reported = capsys.readouterr().err
        assert "twice" in reported or "are the same file" in reported, reported
        if files[0] == "two.safetensors":
            assert f"{second} is in two.safetensors already, and its samples would count twice" in reported
        assert not Path("bad.safetensors").exists()
    assert reference("2/3", "again.safetensors") == 0  # made once more
    assert main(["merge", "two.safetensors", "again.safetensors", "-o", "bad.safetensors"]) == 2
    reported = capsys.readouterr().err
    assert "cannot merge references: again.safetensors is in two.safetensors already" in reported
    assert main(["merge", second, third, "-o", "end.safetensors"]) == 0
    assert reference("2/3", "fewer.safetensors", "--max-samples", "200") == 0  # of the same samples, and another file
    for other in ("end.safetensors", "fewer.safetensors"):
        capsys.readouterr()
        assert main(["merge", "two.safetensors", other, "-o", "bad.safetensors"]) == 2
        reported = capsys.readouterr().err
        assert f"cannot merge references two.safetensors and {other}: shard 2/3 is in both" in reported
    assert main(["merge", "two.safetensors", third, "-o", "all.safetensors"]) == 0
    assert "shards are there" not in capsys.readouterr().err
    assert reference("", "one.safetensors") == 0
    equal(ReferenceSet.load("one.safetensors"), ReferenceSet.load("all.safetensors"))


def test_shards_of_another_cut_are_refused(rows, capsys):
    assert reference("1/2", "half.safetensors") == 0
    assert reference("2/3", "third.safetensors") == 0
    assert main(["merge", "half.safetensors", "third.safetensors", "-o", "bad.safetensors"]) == 2
    assert "the same samples were cut into 2 shards for one and into 3 for the other" in capsys.readouterr().err


def test_a_file_without_shards_is_known_again_in_what_it_was_merged_into(rows, capsys):
    for name in ("a", "b", "r"):
        assert main(["reference", "--embeddings", f"{name}.npy", "-o", f"{name}1.safetensors", "--quiet"]) == 0
    assert main(["merge", "a1.safetensors", "b1.safetensors", "-o", "ab.safetensors"]) == 0
    assert main(["merge", "ab.safetensors", "r1.safetensors", "-o", "abr.safetensors"]) == 0
    assert len(ReferenceSet.load("abr.safetensors").made_of) == 3
    for name in ("a1", "b1", "r1"):
        assert main(["merge", "abr.safetensors", f"{name}.safetensors", "-o", "bad.safetensors"]) == 2
        assert "its samples would count twice" in capsys.readouterr().err
    with pytest.raises(ValueError, match="cannot merge these references: the file with the checksum"):
        ReferenceSet.load("abr.safetensors").merge(ReferenceSet.load("b1.safetensors"))


def test_hundreds_of_files_merge_to_that_of_all(rows):
    names = []
    for number in range(240):
        part = ReferenceSet.fit(torch.from_numpy(rows[number * 125 : (number + 1) * 125]), max_samples=300)
        names.append(f"p{number}.safetensors")
        part.save(names[-1])
    assert main(["merge", *names, "-o", "all.safetensors", "--quiet"]) == 0
    equal(ReferenceSet.fit(torch.from_numpy(rows), max_samples=300), ReferenceSet.load("all.safetensors"))


@pytest.mark.parametrize("metrics", ["conformity,vendi,cmmd", pytest.param("all", marks=pytest.mark.slow)])
def test_saved_shards_are_scored_as_one(metrics, rows, capsys):
    command = ["score", "--embeddings", "a.npy", "b.npy", "--reference", "r.safetensors", "--quiet"]
    figures = ["--resamples", "5"]
    assert main([*command, "--metrics", metrics, *figures]) == 0
    one = json.loads(capsys.readouterr().out)
    names = []
    for number in (1, 2, 3):
        names.append(f"s{number}.safetensors")
        assert main([*command, "--metrics", metrics, "--shard", f"{number}/3", "--save", names[-1]]) == 0
        reported = json.loads(capsys.readouterr().out)
        assert reported["shard"] == f"{number}/3"
    saved = ["score", "--reference", "r.safetensors", *figures, "--saved"]
    assert main([*saved, *names[::-1]]) == 0
    together = json.loads(capsys.readouterr().out)
    assert main(["merge", *names[1:], "-o", "m.safetensors", "--reference", "r.safetensors", "--quiet"]) == 0
    capsys.readouterr()
    assert main([*saved, "m.safetensors", names[0]]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert one["count"] == 30_000
    numbers = {name: value for name, value in one.items() if isinstance(value, (int, float))}
    assert len(numbers) > 20
    for found in (together, merged):
        assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-9, abs=1e-12)
        assert found["verdict"] == one["verdict"]
    for twice in ([names[0], names[0]], ["m.safetensors", names[2], names[0]]):
        assert main([*saved, *twice]) == 2
        reported = capsys.readouterr().err
        assert "s3.safetensors is in m.safetensors already" in reported or "are the same file" in reported


def test_saved_scores_of_other_options_or_another_reference_are_refused(rows, capsys):
    command = ["score", "--embeddings", "a.npy", "--quiet", "--reference"]
    assert main(["reference", "--embeddings", "b.npy", "-o", "other.safetensors", "--quiet"]) == 0
    for name, more in (("s1", "1/2"), ("s2", "2/2")):
        assert main([*command, "r.safetensors", "--shard", more, "--save", f"{name}.safetensors"]) == 0
    assert main([*command, "r.safetensors", "--metrics", "vendi", "--shard", "2/2", "--save", "v.safetensors"]) == 0
    assert main([*command, "other.safetensors", "--shard", "2/2", "--save", "o.safetensors"]) == 0
    saved = ["score", "--reference", "r.safetensors", "--saved", "s1.safetensors"]
    assert main([*saved, "v.safetensors"]) == 2
    assert "cannot merge saved scores of different metrics" in capsys.readouterr().err
    assert main([*saved, "o.safetensors"]) == 2
    assert "o.safetensors: scored against the reference" in capsys.readouterr().err
    assert main(["merge", "s1.safetensors", "s2.safetensors", "-o", "m.safetensors"]) == 2
    assert "--reference: give the reference that the saved scores were scored against" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--report", "r.html"], ["--per-sample", "p.csv"], ["--require", "norm_mean>=1"], []]
)
def test_what_needs_all_samples_is_refused_for_a_shard(option, rows, capsys):
    command = ["score", "--embeddings", "a.npy", "--reference", "r.safetensors", "--shard", "1/2", *option]
    assert main([*command, *(["--save", "s.safetensors"] if option else [])]) == 2
    reported = capsys.readouterr().err
    assert (f"{option[0]}: is of all samples" if option else "give --save FILE.safetensors") in reported


@pytest.mark.parametrize("kind", [IMAGES, CAPTIONS], ids=["images", "captions"])
def test_embedded_shards_are_the_embeddings_of_all_bit_for_bit(kind, scenes, tmp_path, monkeypatch, capsys):
    for one in scenes.iterdir():
        (tmp_path / one.name).symlink_to(one)
    monkeypatch.chdir(tmp_path)
    assert main(["embed", *kind, "-o", "one.safetensors"]) == 0
    names = []
    for number in (1, 2, 3):
        names.append(f"e{number}.safetensors")
        assert main(["embed", *kind, "-o", names[-1], "--shard", f"{number}/3"]) == 0
    assert main(["merge", *names, "-o", "all.safetensors"]) == 0
    one, merged = read_embeddings("one.safetensors"), read_embeddings("all.safetensors")
    assert torch.equal(one.embeddings, merged.embeddings)
    assert one.ids == merged.ids
    assert (one.groups is None) == (kind is IMAGES)
    assert one.groups is None or torch.equal(one.groups, merged.groups)
    capsys.readouterr()
    assert main(["reference", "--embeddings", *names, "-o", "r.safetensors", "--quiet"]) == 0
    assert main(["reference", *kind, "-o", "whole.safetensors"]) == 0
    equal(ReferenceSet.load("r.safetensors"), ReferenceSet.load("whole.safetensors"))
    assert main(["reference", "--embeddings", *names[:2], "-o", "few.safetensors"]) == 0
    assert "2 of 3 shards are there" in capsys.readouterr().err
    shutil.copy(names[1], "copy.safetensors")
    assert main(["reference", "--embeddings", *names, "copy.safetensors", "-o", "bad.safetensors"]) == 2
    assert "shard 2/3 is in both" in capsys.readouterr().err


def test_two_kinds_at_once_are_refused_with_what_to_do_instead(scenes, tmp_path, monkeypatch, capsys):
    (tmp_path / "coco").symlink_to(scenes / "coco")
    monkeypatch.chdir(tmp_path)
    annotations = "coco/annotations/captions_val2017.json"
    half = ["--encoder", "tiny", "--batch-size", "4", "--quiet", "--shard", "1/2"]
    assert main(["reference", "--coco", "coco", *half, "-o", "both.safetensors"]) == 2
    assert "give its folder of images to --images, and its annotations to --captions, each" in capsys.readouterr().err
    assert main(["reference", "--images", "coco/val2017", *half, "-o", "image.safetensors"]) == 0
    assert main(["reference", "--captions", annotations, *half, "-o", "text.safetensors"]) == 0
    capsys.readouterr()
    pairs = ["score", "--images", "coco/val2017", "--captions", annotations, "--reference", "image.safetensors"]
    assert main([*pairs, *half, "--save", "s.safetensors"]) == 2
    reported = capsys.readouterr().err
    assert "shared by --processes N or torchrun; or leave out one of the two, and with it CLIPScore" in reported


@pytest.mark.parametrize(
    "made_of", ["1", "[1]", '[["a"]]', "[[null, null, 1, 2]]", '[["a", "b", 3, 2]]', '[["a", "b", true, 2]]']
)
def test_what_a_damaged_file_says_of_its_shards_is_refused(made_of, rows, capsys):
    from safetensors import safe_open

    from clipconformity.stream.state_file import CHECKSUM, write_state

    with safe_open("r.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = {name: text for name, text in file.metadata().items() if name != CHECKSUM}
    write_state("bad.safetensors", tensors, about | {"made_of": made_of})
    with pytest.raises(ValueError, match="bad.safetensors: damaged: made_of"):
        ReferenceSet.load("bad.safetensors")
