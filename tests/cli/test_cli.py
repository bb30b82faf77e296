"""The commands on embedding files: figures, files, and bad input."""

from __future__ import annotations

import csv
import json
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import brute_conformity, brute_self_conformity, double, ellipsoid_rows
from safetensors.torch import save_file

from clipconformity import ReferenceSet
from clipconformity.cli import main
from clipconformity.data import write_embeddings
from clipconformity.provenance import Provenance

DIM = 8


def rows(count: int, seed: int, offset: float = 1.0) -> torch.Tensor:
    return ellipsoid_rows(count, DIM, torch.Generator().manual_seed(seed), offset)


REFERENCE, EVALUATED = rows(500, 0), rows(120, 1, 1.1)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a reference and embeddings."""
    np.save(tmp_path / "reference.npy", REFERENCE.numpy())
    np.save(tmp_path / "evaluated.npy", EVALUATED.numpy())
    ReferenceSet.fit(REFERENCE, modality="image", spec="tiny").save(tmp_path / "r.safetensors")
    return tmp_path


def run(capsys, *arguments: object) -> dict:
    """Run a command that must succeed; its JSON."""
    assert main([str(a) for a in arguments]) == 0
    return json.loads(capsys.readouterr().out)


# --- reference and merge ---------------------------------------------------------------------------------------------


def test_reference_tells_its_figures_and_writes_the_file(folder, capsys):
    out = folder / "new.safetensors"
    result = run(
        capsys, "reference", "--embeddings", folder / "reference.npy", "--modality", "image", "--encoder", "tiny",
        "--dataset", "made up", "-o", out,
    )  # fmt: skip
    expected = brute_conformity(REFERENCE)
    assert result["conformity_mean"] == pytest.approx(expected.mean(), abs=1e-7)
    assert result["conformity_std"] == pytest.approx(expected.std(ddof=1), rel=1e-6)
    assert result["norm_mean"] == pytest.approx(np.linalg.norm(double(REFERENCE), axis=1).mean(), rel=1e-6)
    assert (result["count"], result["embed_dim"], result["exact"], result["output"]) == (500, DIM, True, str(out))
    assert (result["modality"], result["spec"], result["dataset"]) == ("image", "tiny", "made up")
    loaded = ReferenceSet.load(out)
    np.testing.assert_allclose(np.sort(loaded.conformities), np.sort(expected), rtol=1e-9)
    assert (loaded.modality, loaded.spec, loaded.dataset) == ("image", "tiny", "made up")


def test_reference_of_several_files_equals_one_of_all(folder, capsys):
    np.save(folder / "a.npy", REFERENCE[:100].numpy())
    torch.save(REFERENCE[100:300], folder / "b.pt")
    save_file({"embeddings": REFERENCE[300:].contiguous()}, folder / "c.safetensors")
    files = [folder / "a.npy", folder / "b.pt", folder / "c.safetensors"]
    result = run(capsys, "reference", "--embeddings", *files, "-o", folder / "new.safetensors")
    assert result["count"] == 500
    assert result["conformity_mean"] == pytest.approx(brute_self_conformity(REFERENCE), abs=1e-7)


def test_merge_equals_the_reference_of_all(folder, capsys):
    parts = []
    for i, part in enumerate(REFERENCE.split([100, 250, 150])):
        np.save(folder / f"{i}.npy", part.numpy())
        run(capsys, "reference", "--embeddings", folder / f"{i}.npy", "-o", folder / f"{i}.safetensors")
        parts.append(folder / f"{i}.safetensors")
    merged = run(capsys, "merge", *parts, "-o", folder / "merged.safetensors")
    whole = run(capsys, "reference", "--embeddings", folder / "reference.npy", "-o", folder / "whole.safetensors")
    assert merged.pop("output") != whole.pop("output")
    fit, other_fit = merged.pop("conformity_fit"), whole.pop("conformity_fit")
    assert set(merged) == set(whole)
    for name, value in whole.items():
        assert merged[name] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name
    assert fit == pytest.approx(other_fit, rel=1e-5)
    assert merged["conformity_mean"] == pytest.approx(brute_self_conformity(REFERENCE), abs=1e-7)


def test_max_samples_marks_a_reference_as_approximate(folder, capsys):
    result = run(
        capsys,
        "reference",
        "--embeddings",
        folder / "reference.npy",
        "--max-samples",
        100,
        "-o",
        folder / "n.safetensors",
    )
    assert result["exact"] is False
    assert result["conformity_mean"] == pytest.approx(brute_self_conformity(REFERENCE), abs=1e-7)


# --- score -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def score(folder, capsys) -> dict:
    return run(capsys, "score", "--embeddings", folder / "evaluated.npy", "--reference", folder / "r.safetensors")


def test_score_equals_brute_force(score):
    c, q = brute_conformity(EVALUATED, REFERENCE), brute_conformity(REFERENCE)
    norms = np.linalg.norm(double(EVALUATED), axis=1)
    expected = {
        "count": 120,
        "conformity_mean": c.mean(),
        "conformity_std": c.std(ddof=1),
        "conformity_q05": np.quantile(c, 0.05),
        "conformity_q50": np.quantile(c, 0.5),
        "conformity_q95": np.quantile(c, 0.95),
        "self_conformity_mean": brute_self_conformity(EVALUATED),
        "reference_self_conformity": q.mean(),
        "reference_conformity_std": q.std(ddof=1),
        "typicality_shift": (c.mean() - q.mean()) / q.std(ddof=1),
        "variety_ratio": (1 - brute_self_conformity(EVALUATED)) / (1 - q.mean()),
        "spread_ratio": c.std(ddof=1) / q.std(ddof=1),
        "norm_mean": norms.mean(),
        "norm_std": norms.std(ddof=1),
        "norm_q50": np.quantile(norms, 0.5),
        "norm_conformity_correlation": np.corrcoef(norms, brute_conformity(EVALUATED))[0, 1],
    }
    assert {name: score[name] for name in expected} == pytest.approx(expected, rel=2e-5)
    assert score["conformity_se"] == pytest.approx(c.std(ddof=1) / math.sqrt(120), rel=0.15)


def test_score_holds_everything_that_it_should(score):
    for name in ("self_conformity_se", "conformity_kl", "reverse_kl", "kl_low", "kl_high", "noise_floor"):
        assert math.isfinite(score[name]), name
    assert score["kl_low"] <= score["conformity_kl"] <= score["kl_high"]
    assert (score["exact"], score["kl_is_lower_bound"]) == (True, False)
    assert set(score["verdict"]) == {"typical", "varied"}
    assert (score["reference"]["count"], score["reference"]["modality"]) == (500, "image")
    assert score["measured"]["encoder"] == "tiny"
    assert score["measured"]["embeddings"][0].endswith("evaluated.npy")
    assert score["measured"]["clipconformity"]


def test_the_same_score_comes_out_twice(folder, capsys, score):
    again = run(capsys, "score", "--embeddings", folder / "evaluated.npy", "--reference", folder / "r.safetensors")
    assert again == score


@pytest.mark.filterwarnings("always::clipconformity.LowerBoundWarning")
def test_the_output_is_strict_json(folder, capsys):
    """A sample far away included: no NaN or Infinity, which JSON has not."""
    np.save(folder / "far.npy", -EVALUATED.numpy())
    assert main(["score", "--embeddings", str(folder / "far.npy"), "--reference", str(folder / "r.safetensors")]) == 0
    captured = capsys.readouterr()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    result = json.loads(captured.out, parse_constant=refuse)
    assert result["kl_is_lower_bound"] is True
    assert "warning" in captured.err
    assert "Traceback" not in captured.err


def test_per_sample_goes_from_the_most_to_the_least_typical(folder, capsys):
    out = folder / "samples.csv"
    run(
        capsys, "score", "--embeddings", folder / "evaluated.npy", "--reference", folder / "r.safetensors",
        "--per-sample", out,
    )  # fmt: skip
    with out.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["id", "conformity", "norm", "rank"]
    expected, norms = brute_conformity(EVALUATED, REFERENCE), np.linalg.norm(double(EVALUATED), axis=1)
    order = np.argsort(-expected)
    assert [line["id"] for line in lines] == [f"evaluated:{row}" for row in order]
    assert [int(line["rank"]) for line in lines] == list(range(1, 121))
    np.testing.assert_allclose([float(line["conformity"]) for line in lines], expected[order], atol=1e-7)
    np.testing.assert_allclose([float(line["norm"]) for line in lines], norms[order], rtol=1e-6)


def test_per_sample_keeps_names_with_commas_quotes_and_letters_of_any_script(folder, capsys):
    ids = [f'{i}, "猫" ü' for i in range(120)]
    write_embeddings(folder / "named.safetensors", EVALUATED, ids=ids)
    arguments = ["--reference", folder / "r.safetensors", "--per-sample", folder / "s.csv"]
    run(capsys, "score", "--embeddings", folder / "named.safetensors", *arguments)
    with (folder / "s.csv").open(newline="", encoding="utf-8") as file:
        assert {line["id"] for line in csv.DictReader(file)} == set(ids)


def test_groups_in_the_file_change_the_standard_error(folder, capsys, score):
    repeated, ids = EVALUATED.repeat_interleave(5, 0), torch.arange(120).repeat_interleave(5)
    write_embeddings(folder / "grouped.safetensors", repeated, groups=ids)
    found = run(
        capsys, "score", "--embeddings", folder / "grouped.safetensors", "--reference", folder / "r.safetensors"
    )
    assert found["count"] == 600
    assert found["conformity_mean"] == pytest.approx(score["conformity_mean"], rel=1e-6)
    # 120 groups fall into 256 buckets by hash, some of them together.
    assert found["conformity_se"] == pytest.approx(score["conformity_se"], rel=0.2)


def test_normalized_embeddings_are_taken_with_leave(folder, capsys):
    normalized = torch.nn.functional.normalize(EVALUATED)
    np.save(folder / "unit.npy", normalized.numpy())
    result = run(
        capsys, "score", "--embeddings", folder / "unit.npy", "--reference", folder / "r.safetensors",
        "--allow-normalized",
    )  # fmt: skip
    assert result["conformity_mean"] == pytest.approx(brute_conformity(EVALUATED, REFERENCE).mean(), rel=1e-6)


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clipconformity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_the_program_runs_as_a_module(folder):
    done = program(folder, "score", "--embeddings", "evaluated.npy", "--reference", "r.safetensors")
    assert done.returncode == 0
    assert json.loads(done.stdout)["count"] == 120
    assert "Traceback" not in done.stderr


def test_the_program_fails_with_one_line_and_no_traceback(folder):
    failed = program(folder, "merge", "r.safetensors", "none.safetensors", "-o", "new.safetensors")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("\n") == 1
    assert "none.safetensors: no such reference file" in failed.stderr
    assert not (folder / "new.safetensors").exists()


# --- bad input -------------------------------------------------------------------------------------------------------


def with_row(value: float) -> torch.Tensor:
    bad = EVALUATED.clone()
    bad[17] = value
    return bad


def save(folder: Path, values) -> Path:
    np.save(folder / "bad.npy", values.numpy() if isinstance(values, torch.Tensor) else values)
    return folder / "bad.npy"


def truncated(folder: Path, name: str) -> Path:
    path = folder / name
    (folder / f"bad{path.suffix}").write_bytes(path.read_bytes()[:-100])
    return folder / f"bad{path.suffix}"


def random_bytes(folder: Path, suffix: str) -> Path:
    (folder / f"bad{suffix}").write_bytes(np.random.default_rng(0).bytes(4000))
    return folder / f"bad{suffix}"


def pickled(folder: Path, suffix: str) -> Path:
    (folder / f"bad{suffix}").write_bytes(pickle.dumps({"embeddings": EVALUATED.numpy()}))
    return folder / f"bad{suffix}"


def other_dimension(folder: Path) -> Path:
    return save(folder, torch.ones(20, DIM + 1) + torch.rand(20, DIM + 1))


def object_array(folder: Path) -> Path:
    np.save(folder / "bad.npy", np.array([None, "a"], dtype=object), allow_pickle=True)
    return folder / "bad.npy"


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


# What is wrong with the embeddings, and what the one line must say.
BAD_EMBEDDINGS = {
    "NaN": (lambda f: save(f, with_row(math.nan)), "1 of 120 embeddings were zero or held NaN or infinite"),
    "infinite": (lambda f: save(f, with_row(math.inf)), "1 of 120 embeddings were zero or held NaN or infinite"),
    "zero": (lambda f: save(f, with_row(0.0)), "1 of 120 embeddings were zero or held NaN or infinite"),
    "one sample": (lambda f: save(f, EVALUATED[:1]), "samples, got 1"),
    "no sample": (lambda f: save(f, EVALUATED[:0]), "got 0"),
    "integers": (lambda f: save(f, EVALUATED.long()), "expected floating-point raw embeddings, got torch.int64"),
    "normalized": (lambda f: save(f, torch.nn.functional.normalize(EVALUATED)), "allow"),
    "three axes": (lambda f: save(f, torch.rand(10, 3, DIM)), "expected shape (N, D), got (10, 3, 8)"),
    "truncated npy": (lambda f: truncated(f, "evaluated.npy"), "cannot be read as .npy"),
    "random npy": (lambda f: random_bytes(f, ".npy"), "cannot be read as .npy"),
    "random npz": (lambda f: random_bytes(f, ".npz"), "cannot be read as .npz"),
    "random pt": (lambda f: random_bytes(f, ".pt"), "cannot be read as .pt"),
    "random safetensors": (lambda f: random_bytes(f, ".safetensors"), "cannot be read as .safetensors"),
    "pickle named npy": (lambda f: pickled(f, ".npy"), "cannot be read as .npy"),
    "pickle named pt": (lambda f: pickled(f, ".pt"), "cannot be read as .pt"),
    "pickle": (lambda f: pickled(f, ".pkl"), "expected a file ending in"),
    "object array": (object_array, "cannot be read as .npy"),
    "missing": (lambda f: f / "none.npy", "none.npy: no such file"),
    "reference": (lambda f: f / "r.safetensors", "it is a reference set, not embeddings"),
    "folder with a reference": (
        lambda f: f,
        "r.safetensors: it is a reference set, not embeddings",
    ),
    "empty folder": (empty_folder, "no embeddings in this folder (looked for .safetensors"),
    "pattern": (lambda f: f / "none*.npy", "none*.npy: no file fits this pattern"),
    "address": (
        lambda f: "ftp://host/e.npy",
        "ftp://host/e.npy: ftp:// is not read; of addresses there are",
    ),
}


def assert_refused(capsys, folder: Path, arguments: list[object], message: str) -> None:
    """Exit 2, one line on standard error, nothing on standard output, and no file made or changed."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")}
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.endswith("\n")
    assert message in captured.err
    assert captured.err.startswith("clipconformity")
    assert {path.name: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("kind", BAD_EMBEDDINGS)
def test_reference_refuses_bad_embeddings(kind, folder, capsys):
    make, message = BAD_EMBEDDINGS[kind]
    arguments = ["reference", "--embeddings", make(folder), "-o", folder / "new.safetensors"]
    assert_refused(capsys, folder, arguments, message)


@pytest.mark.parametrize("kind", BAD_EMBEDDINGS)
def test_score_refuses_bad_embeddings(kind, folder, capsys):
    make, message = BAD_EMBEDDINGS[kind]
    arguments = ["score", "--embeddings", make(folder), "--reference", folder / "r.safetensors"]
    assert_refused(capsys, folder, [*arguments, "--per-sample", folder / "new.csv"], message)


def test_a_normalized_file_is_told_the_option_that_takes_it(folder, capsys):
    bad = save(folder, torch.nn.functional.normalize(EVALUATED))
    arguments = ["reference", "--embeddings", bad, "-o", folder / "new.safetensors"]
    assert_refused(capsys, folder, arguments, "--allow-normalized")


def wrong_kind(folder: Path) -> Path:
    save_file({"embeddings": EVALUATED}, folder / "bad.safetensors")
    return folder / "bad.safetensors"


def of_dimension(folder: Path) -> Path:
    ReferenceSet.fit(torch.rand(30, 5) + 0.1).save(folder / "bad.safetensors")
    return folder / "bad.safetensors"


def of_equal_rows(folder: Path) -> Path:
    ReferenceSet.fit(torch.ones(30, DIM)).save(folder / "bad.safetensors")
    return folder / "bad.safetensors"


BAD_REFERENCES = {
    "missing": (lambda f: f / "none.safetensors", "no such reference file"),
    "folder": (lambda f: f, "is a folder"),
    "embeddings": (wrong_kind, "not a reference set"),
    "npy": (lambda f: f / "evaluated.npy", "evaluated.npy"),
    "truncated": (lambda f: truncated(f, "r.safetensors"), "not a readable safetensors file"),
    "random": (lambda f: random_bytes(f, ".safetensors"), "not a readable safetensors file"),
    "pickle": (lambda f: pickled(f, ".safetensors"), "not a readable safetensors file"),
}


@pytest.mark.parametrize("kind", BAD_REFERENCES)
@pytest.mark.parametrize("command", ["score", "merge"])
def test_a_bad_reference_is_refused(kind, command, folder, capsys):
    make, message = BAD_REFERENCES[kind]
    if command == "score":
        arguments = ["score", "--embeddings", folder / "evaluated.npy", "--reference", make(folder)]
        arguments += ["--per-sample", folder / "new.csv"]
    else:
        arguments = ["merge", folder / "r.safetensors", make(folder), "-o", folder / "new.safetensors"]
    assert_refused(capsys, folder, arguments, message)


@pytest.mark.parametrize(
    ("make", "message"),
    [(of_dimension, "dimension 8"), (of_equal_rows, "do not vary")],
)
def test_score_refuses_a_reference_that_does_not_fit(make, message, folder, capsys):
    arguments = ["score", "--embeddings", folder / "evaluated.npy", "--reference", make(folder)]
    assert_refused(capsys, folder, arguments, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--modality", "text"], "the samples are text and the reference is image"),
        (["--encoder", "hf:other/clip"], "hf:other/clip"),
        (["--resamples", "0"], "--resamples: expected at least 1, got 0"),
        (["--resamples", "many"], "invalid int value"),
        (["--modality", "audio"], "invalid choice: 'audio'"),
        (["--sampels", "3"], "unrecognized arguments: --sampels"),
        (["--allow"], "unrecognized arguments: --allow"),
    ],
)
def test_score_refuses_options_that_do_not_fit(options, message, folder, capsys):
    arguments = ["score", "--embeddings", folder / "evaluated.npy", "--reference", folder / "r.safetensors"]
    assert_refused(capsys, folder, [*arguments, *options], message)


@pytest.mark.parametrize("command", ["reference", "score"])
def test_files_of_mixed_dimensions_are_refused(command, folder, capsys):
    files = ["--embeddings", folder / "evaluated.npy", other_dimension(folder)]
    output = ["-o", folder / "n.safetensors"] if command == "reference" else ["--reference", folder / "r.safetensors"]
    assert_refused(capsys, folder, [command, *files, *output], "dimension 9")


def test_files_that_disagree_on_their_origin_are_refused(folder, capsys):
    write_embeddings(folder / "a.safetensors", EVALUATED, provenance=Provenance(modality="image"))
    write_embeddings(folder / "b.safetensors", EVALUATED + 1, provenance=Provenance(modality="text"))
    files = ["--embeddings", folder / "a.safetensors", folder / "b.safetensors"]
    assert_refused(capsys, folder, ["reference", *files, "-o", folder / "n.safetensors"], "disagree: image and text")


def test_files_with_and_without_groups_are_refused(folder, capsys):
    write_embeddings(folder / "a.safetensors", EVALUATED, groups=torch.arange(120))
    files = ["--embeddings", folder / "a.safetensors", folder / "evaluated.npy"]
    assert_refused(capsys, folder, ["reference", *files, "-o", folder / "n.safetensors"], "groups")


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9])
def test_too_few_samples_are_refused_with_the_number_that_is_needed(count, folder, capsys):
    bad = save(folder, EVALUATED[:count])
    arguments = ["score", "--embeddings", bad, "--reference", folder / "r.safetensors", "--metrics", "all"]
    assert_refused(capsys, folder, arguments, f"expected at least 10 samples, got {count}")


def test_what_ten_samples_do_not_tell_is_null_and_a_note_says_what_it_needs(folder, capsys):
    few = save(folder, EVALUATED[:10])
    assert (
        main(["score", "--embeddings", str(few), "--reference", str(folder / "r.safetensors"), "--metrics", "all"]) == 0
    )
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # of NaN and infinite
    notes = " ".join(found["notes"])
    for name, words in (
        ("frechet_infinite_n", "frechet_infinite_n needs at least"),
        ("precision_low", "the intervals of precision, recall, density and coverage need at least 50 rows"),
        ("authenticity_low", "the intervals of authenticity need at least 50 rows"),
    ):
        assert found[name] is None
        assert words in notes
    values = ("cosine_mmd", "cmmd", "vendi", "rke", "frechet", "precision", "nearest_cosine", "authenticity")
    assert all(found[name] is not None for name in values)


UNWRITABLE = {
    "missing folder": (lambda f: f / "none" / "out", "does not exist"),
    "a folder": (lambda f: f, "is a folder"),
    "below a file": (lambda f: f / "evaluated.npy" / "out", "cannot write"),
    "a place that takes no files": (lambda f: Path("/proc/out"), "/proc"),
}


@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("command", ["reference", "merge", "score"])
def test_an_unwritable_output_is_refused(kind, command, folder, capsys):
    make, message = UNWRITABLE[kind]
    if kind == "a place that takes no files" and not Path("/proc").is_dir():
        pytest.skip("there is no /proc here")
    ReferenceSet.fit(EVALUATED, modality="image", spec="tiny").save(folder / "r2.safetensors")
    arguments = {
        "reference": ["reference", "--embeddings", folder / "evaluated.npy", "-o"],
        "merge": ["merge", folder / "r.safetensors", folder / "r2.safetensors", "-o"],
        "score": [
            "score", "--embeddings", folder / "evaluated.npy", "--reference", folder / "r.safetensors", "--per-sample",
        ],
    }[command]  # fmt: skip
    assert_refused(capsys, folder, [*arguments, make(folder)], message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["scores"], "invalid choice: 'scores'"),
        (["score"], "required"),
        (["reference", "--embeddings", "a.npy"], "required: -o/--output"),
        (["reference", "-o", "a.safetensors"], "required"),
        (["merge", "-o", "a.safetensors"], "required: FILE"),
        (["reference", "--embeddings", "a.npy", "-o", "x", "--max-samples", "ten"], "invalid int value"),
        (["--verbose"], "error"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, message, folder, capsys):
    assert_refused(capsys, folder, arguments, message)


@pytest.mark.parametrize("size", [-5, 0, 1])
def test_max_samples_below_two_is_refused(size, folder, capsys):
    arguments = ["reference", "--embeddings", folder / "reference.npy", "-o", folder / "new.safetensors"]
    assert_refused(capsys, folder, [*arguments, "--max-samples", size], "max_samples: expected at least 2")


def test_merge_refuses_one_reference(folder, capsys):
    arguments = ["merge", folder / "r.safetensors", "-o", folder / "new.safetensors"]
    assert_refused(capsys, folder, arguments, "expected at least two files")


def test_merge_refuses_a_reference_with_itself(folder, capsys):
    shutil.copy(folder / "r.safetensors", folder / "copy.safetensors")
    for other, message in (("r", "are the same file"), ("copy", "its samples would count twice")):
        arguments = [
            "merge",
            folder / "r.safetensors",
            folder / f"{other}.safetensors",
            "-o",
            folder / "new.safetensors",
        ]
        assert_refused(capsys, folder, arguments, message)


def test_merge_refuses_references_of_different_kinds(folder, capsys):
    ReferenceSet.fit(EVALUATED, modality="text", spec="tiny").save(folder / "text.safetensors")
    arguments = ["merge", folder / "r.safetensors", folder / "text.safetensors", "-o", folder / "new.safetensors"]
    assert_refused(capsys, folder, arguments, "different modality: 'image' and 'text'")


def test_a_failed_command_leaves_an_older_output_as_it_was(folder, capsys):
    bad = save(folder, with_row(math.nan))
    arguments = ["reference", "--embeddings", bad, "-o", folder / "r.safetensors", "--overwrite"]
    assert_refused(capsys, folder, arguments, "1 of 120 embeddings")
    assert ReferenceSet.load(folder / "r.safetensors").count == 500


def test_help_and_version_are_no_errors(capsys):
    for arguments in (["--help"], ["score", "--help"], ["--version"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        assert capsys.readouterr().err == ""


def test_a_reference_that_is_refused_late_is_not_written(tmp_path, capsys):
    """All rows equal: the statistics exist and the line cannot be fitted."""
    row = torch.linspace(1, 2, 8)
    write_embeddings(tmp_path / "same.safetensors", row.repeat(50, 1))
    output = tmp_path / "r.safetensors"
    assert main(["reference", "--embeddings", str(tmp_path / "same.safetensors"), "-o", str(output)]) == 2
    assert "no line can be fitted" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("command", ["embed", "reference", "merge"])
def test_a_name_that_promises_another_format_is_refused(folder, capsys, command):
    given = {
        "embed": ["--captions", folder / "captions.txt", "--encoder", "tiny"],
        "reference": ["--embeddings", folder / "e.safetensors"],
        "merge": [folder / "r.safetensors", folder / "other.safetensors"],
    }
    (folder / "captions.txt").write_text("a red circle\n", encoding="utf-8")
    assert_refused(capsys, folder, [command, *given[command], "-o", folder / "y.npy"], "ends in .safetensors")
    assert not (folder / "y.npy").exists()


@pytest.mark.parametrize(
    "option", [["--split", "foo"], ["--per-image", "2"], ["--seed", "0"], ["--karpathy", "x.json"]]
)
def test_options_of_coco_without_it_are_refused(folder, capsys, option):
    arguments = ["reference", "--embeddings", folder / "e.safetensors", *option, "-o", folder / "n.safetensors"]
    assert_refused(capsys, folder, arguments, f"{option[0]}: goes with --coco")


def test_a_file_given_twice_is_refused(folder, capsys):
    twice = [folder / "evaluated.npy", folder / "evaluated.npy"]
    message = "are the same file; name each file once"
    assert_refused(capsys, folder, ["reference", "--embeddings", *twice, "-o", folder / "n.safetensors"], message)
    score = ["score", "--embeddings", folder / "evaluated.npy", "--reference", folder / "r.safetensors"]
    for outputs in (
        ["--per-sample", folder / "x", "--report", folder / "x"],
        ["--per-sample", folder / "r.safetensors"],
    ):
        assert_refused(capsys, folder, [*score, *outputs], message)
