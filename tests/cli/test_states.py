"""Files of embeddings are taken in by parts, from which a killed run goes on, with the same figures to the last bit."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from clipconformity import ReferenceSet
from clipconformity.cli import main, parts, states
from clipconformity.evaluation import embedding_source, score
from clipconformity.stream.merging import Tree

# As the commands show them.
pytestmark = pytest.mark.filterwarnings("always")
REFERENCE = ["reference", "--embeddings", "a.npy", "b.npz", "-o", "out.safetensors", "--max-samples", "300"]
SCORE = ["score", "--embeddings", "a.npy", "b.npz", "--reference", "r.safetensors", "--resamples", "5"]
SAVED = [*SCORE, "--metrics", "all", "--save", "out.safetensors"]
AGAINST = [*SCORE, "--against", "t.npy", "--save", "out.safetensors"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    random = np.random.default_rng(0)
    rows = (random.normal(size=(20_000, 5)) + 1).astype("f4")
    np.save(tmp_path / "a.npy", rows[:9000])
    np.savez_compressed(tmp_path / "b.npz", embeddings=rows[9000:], id=np.arange(11_000))
    np.save(tmp_path / "r.npy", (random.normal(size=(800, 5)) + 1).astype("f4"))
    np.save(tmp_path / "t.npy", (random.normal(size=(300, 5)) + 1).astype("f4"))
    monkeypatch.chdir(tmp_path)
    assert main(["reference", "--embeddings", "r.npy", "-o", "r.safetensors", "--quiet"]) == 0
    monkeypatch.setattr(states, "ROWS", 4096)
    return tmp_path


def content(path: str) -> tuple[dict, dict]:
    """Every byte of the tensors, and the metadata, whose order safetensors draws."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}, file.metadata()  # noqa: SIM118


def stopped(command: list[str], monkeypatch, after: int) -> None:
    """Run a command until so many parts are written."""
    write, written = parts.Parts._write, []

    def counted(self, *arguments):
        write(self, *arguments)
        written.append(arguments)
        if len(written) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "_write", counted)
        assert main(command) == 130


@pytest.mark.parametrize("command", [REFERENCE, SAVED, AGAINST], ids=["reference", "score", "score against"])
def test_a_stopped_run_is_gone_on_with_to_the_last_bit(command, folder, monkeypatch, capsys):
    assert main(command) == 0
    reported, whole = json.loads(capsys.readouterr().out), content("out.safetensors")
    Path("out.safetensors").unlink()
    for after in (1, 2):
        stopped(command, monkeypatch, after)
        assert len(list(Path("out.safetensors.parts").iterdir())) == (1 if after == 1 else 3)
    capsys.readouterr()
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "12288 of 20000 samples are taken up from out.safetensors.parts" in captured.err
    assert json.loads(captured.out) == reported
    assert content("out.safetensors") == whole
    assert not Path("out.safetensors.parts").exists()


@pytest.mark.parametrize("change", ["cut", "half-written", "bits", "file", "option"])
def test_a_part_that_is_broken_or_of_other_work_is_made_anew(change, folder, monkeypatch, capsys):
    command = [*REFERENCE]
    stopped(command, monkeypatch, 2)
    first = min(Path("out.safetensors.parts").iterdir())
    data = first.read_bytes()
    if change == "cut":
        first.write_bytes(data[: len(data) // 2])
    elif change == "half-written":  # as a killed process leaves it
        place = first.parent / f".{first.name}.1.tmp"
        place.mkdir()
        first.rename(place / f".{first.name}")
    elif change == "bits":
        first.write_bytes(data[:-100] + bytes(100))
    elif change == "file":
        os.utime("a.npy", ns=(0, 0))
    else:
        command[-1] = "200"
    capsys.readouterr()
    assert main(command) == 0
    foreign = {"file": 2, "option": 2}.get(change)
    assert (f"{foreign} of the parts in out.safetensors.parts are of other work" in capsys.readouterr().err) == bool(
        foreign
    )
    assert main([*command[:-3], "again.safetensors", *command[-2:]]) == 0
    assert content("again.safetensors") == content("out.safetensors")
    assert not Path("out.safetensors.parts").exists()


def test_a_reference_by_parts_is_that_of_all_rows(folder, monkeypatch):
    assert main(REFERENCE) == 0
    found = ReferenceSet.load("out.safetensors")
    rows = np.concatenate([np.load("a.npy"), np.load("b.npz")["embeddings"]]).astype("f8")
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.unit_mean, units.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=0, atol=3e-7)
    np.testing.assert_allclose(found.moments.unit_second_moment, units.T @ units / len(units), rtol=0, atol=3e-7)
    assert len(found.sample.keys) == 300


def test_a_score_by_parts_has_the_figures_and_rows_of_one_pass(folder):
    assert main([*SCORE, "--per-sample", "out.csv", "--save", "out.safetensors"]) == 0
    reference = ReferenceSet.load("r.safetensors")
    whole = score(embedding_source(["a.npy", "b.npz"]), reference, resamples=5)
    assert main(["score", "--saved", "out.safetensors", "--reference", "r.safetensors", "--per-sample", "s.csv"]) == 0
    assert Path("s.csv").read_text() == Path("out.csv").read_text()
    by_id = {}
    for line in Path("out.csv").read_text().splitlines()[1:]:
        name, conformity, norm, _ = line.split(",")
        by_id[name] = (float(conformity), float(norm))
    assert list(by_id) != list(whole.ids)
    found = np.array([by_id[name] for name in whole.ids])  # as text they have nine digits
    np.testing.assert_allclose(found, torch.stack([whole.conformities, whole.norms], 1), rtol=1e-8)


@pytest.mark.parametrize("bad", [0, float("nan")])
def test_bad_rows_are_told_of_all_parts_together(bad, folder, capsys):
    rows = np.load("a.npy")
    rows[[10, 5000, 8999]] = bad
    np.save("a.npy", rows)
    assert main(REFERENCE) == 2
    assert "3 of 20000 embeddings were zero or held NaN" in capsys.readouterr().err
    assert main(SCORE) == 2
    assert "3 of 20000 embeddings were zero or held NaN" in capsys.readouterr().err


def test_a_file_whose_damage_shows_late_is_left_out_from_there(folder, capsys):
    data = Path("b.npz").read_bytes()
    Path("b.npz").write_bytes(data[:150_000] + bytes(2000) + data[152_000:])
    assert main([*REFERENCE, "--on-error", "skip"]) == 0
    reported = json.loads(capsys.readouterr().out)
    [skipped] = reported["skipped"]["files"]
    assert skipped["id"] == "b.npz"
    assert f" {reported['count'] - 9000} of its rows are used." in skipped["reason"]
    assert reported["files"]["a"] == 9000
    assert 9000 < reported["count"] < 20_000


def test_normalised_rows_are_refused_however_they_are_cut(folder, capsys):
    rows = np.load("a.npy")
    np.save("a.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    for command in (REFERENCE, SCORE):
        command = [word for word in command if word != "b.npz"]
        assert main(command) == 2
        assert "have norm 1: they were L2-normalised" in capsys.readouterr().err


def test_what_fits_one_part_leaves_no_folder(folder, monkeypatch, capsys):
    monkeypatch.setattr(states, "ROWS", 2**18)
    stopped_at: list[str] = []
    monkeypatch.setattr(parts.Parts, "_write", lambda *_: stopped_at.append("part"))
    assert main(REFERENCE) == 0
    assert stopped_at == []


def test_a_tree_joins_hundreds_while_it_holds_few():
    held = 0

    def join(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
        assert first[1] + 1 == second[0]  # neighbours, in their order
        return first[0], second[1]

    tree: Tree[tuple[int, int]] = Tree(join)
    for number in range(777):
        tree.add((number, number))
        held = max(held, len(tree._held))
    assert held <= 10  # log2 of 777
    assert tree.joined() == (0, 776)
    assert Tree(join).joined() is None


def test_parts_are_cut_by_the_rows_alone():
    assert parts.cut(10, 4, 100) == [(0, 4), (4, 8), (8, 10)]
    assert parts.cut(0, 4, 100) == []
    for count in (1, 2**18, 2**18 + 1, 10**9):
        spans = parts.cut(count, 2**18, 256)
        assert spans[0][0] == 0
        assert spans[-1][1] == count
        assert all(stop == start for (_, stop), (start, _) in pairwise(spans))
        assert len(spans) <= 256
        assert all(start % 4096 == 0 for start, _ in spans)


def test_groups_ids_and_copies_are_those_of_one_pass(tmp_path, monkeypatch):
    """Over the ends of parts: groups go to their buckets, and equal rows are counted once with their number."""
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(0)
    rows = (torch.randn(3000, 5, generator=random) + 1).repeat(4, 1)
    save_file({"embeddings": rows, "groups": torch.arange(12_000) % 3000}, tmp_path / "g.safetensors")
    monkeypatch.chdir(tmp_path)
    command = ["reference", "--embeddings", "g.safetensors", "--quiet", "-o"]
    assert main([*command, "one.safetensors"]) == 0
    monkeypatch.setattr(states, "ROWS", 4096)
    assert main([*command, "parts.safetensors"]) == 0
    one, by_parts = (ReferenceSet.load(f"{name}.safetensors") for name in ("one", "parts"))
    assert one.grouped
    for mine, theirs in zip(one.sketch, by_parts.sketch, strict=True):
        assert torch.equal(mine, theirs)
    torch.testing.assert_close(one.moments["unit_sum"], by_parts.moments["unit_sum"], rtol=1e-13, atol=1e-12)
