"""The commands and their files: inputs that stay, outputs that are full, closed or no files."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows
from PIL import Image

from clipconformity import ReferenceSet
from clipconformity.cli import main
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.encoders.registry import TINY

COMMAND = [sys.executable, "-m", "clipconformity"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with an input of every kind, which is the working directory."""
    rows = ellipsoid_rows(60, 8, torch.Generator().manual_seed(0))
    np.save(tmp_path / "e.npy", rows.numpy())
    np.save(tmp_path / "t.npy", rows.numpy() + 1)
    for name, part in (("r", rows), ("s", rows + 1)):
        ReferenceSet.fit(part).save(tmp_path / f"{name}.safetensors")
    shutil.copy(tmp_path / "r.safetensors", tmp_path / "e.safetensors")
    (tmp_path / "c.txt").write_text("a red circle\na blue star\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "images" / "a.png")
    shutil.copytree(TINY, tmp_path / "encoder")
    write_coco_scenes(tmp_path / "coco", sample_scenes(12, seed=0), seed=0)
    shutil.copy(tmp_path / "coco" / "annotations" / "captions_val2017.json", tmp_path / "k.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EMBED = "embed --captions c.txt --encoder encoder -o"
SCORE = "score --reference r.safetensors"
COCO = "reference --coco coco --encoder tiny"
# A command, the output that it ends in, and the input that this must not be.
OVERWRITING = {
    "embed onto captions": (f"{EMBED} OUT", "c.txt"),
    "embed onto an image": ("embed --images images --encoder tiny -o OUT", "images/a.png"),
    "embed onto its encoder": (f"{EMBED} OUT", "encoder/model.safetensors"),
    "embed onto a checkpoint": (
        "embed --captions c.txt --encoder open_clip:ViT-B-32/e.safetensors -o OUT",
        "e.safetensors",
    ),
    "embed onto a folder of open_clip": (
        "embed --captions c.txt --encoder open_clip:local-dir:encoder -o OUT",
        "encoder/model.safetensors",
    ),
    "reference onto embeddings": ("reference --embeddings t.npy e.npy -o OUT", "e.npy"),
    "reference onto images": ("reference --images images --encoder tiny -o OUT", "images/a.png"),
    "reference onto annotations": (f"{COCO} -o OUT", "coco/annotations/captions_val2017.json"),
    "reference onto coco's images": (f"{COCO} -o OUT", "coco/val2017/000000000001.png"),
    "reference onto the Karpathy file": (f"{COCO} --karpathy k.json -o OUT", "k.json"),
    "samples onto embeddings": (f"{SCORE} --embeddings e.npy --per-sample OUT", "e.npy"),
    "samples onto the reference": (f"{SCORE} --embeddings e.npy --per-sample OUT", "r.safetensors"),
    "a report onto captions": (f"{SCORE} --captions c.txt --report OUT", "c.txt"),
    "a report onto an image": (f"{SCORE} --images images --report OUT", "images/a.png"),
    "a report onto the tiny encoder": (f"{SCORE} --captions c.txt --report OUT", str(TINY / "README.md")),
    "geometry onto images": ("geometry --image-embeddings e.npy --report OUT", "e.npy"),
    "geometry onto texts": ("geometry --image-embeddings e.npy --text-embeddings t.npy --report OUT", "t.npy"),
    "merge onto a part": ("merge r.safetensors s.safetensors -o OUT", "s.safetensors"),
}


def linked(folder: Path, target: str, kind: str, command: str) -> str:
    """Make a link to a file, named as the command wants its output; give what the command is told."""
    coco = "--coco" in command
    suffix = {"-o": ".safetensors", "--per-sample": ".csv", "--report": ".html"}[command.split()[-2]]
    link = folder / ("out-image.safetensors" if coco else f"out{suffix}")
    if kind == "symbolic":
        link.symlink_to(Path(target).resolve())
    else:
        try:
            link.hardlink_to(target)
        except OSError as error:
            pytest.skip(f"no hard link there: {error}")
    return "out.safetensors" if coco else link.name


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
@pytest.mark.parametrize("case", OVERWRITING)
def test_no_command_writes_over_what_it_reads(case, kind, folder, capsys, monkeypatch):
    command, target = OVERWRITING[case]
    reported = linked(folder, target, kind, command)
    before = contents(folder)
    monkeypatch.setattr("clipconformity.encoders.load_encoder", None)  # before any work
    assert main([reported if word == "OUT" else word for word in command.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"{target.removeprefix('./')} are the same file; name each file once" in captured.err
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("command", "target"),
    [
        ("score --embeddings e.npy --reference r.safetensors --per-sample e.npy", "e.npy"),
        ("score --embeddings e.npy --reference r.safetensors --report r.safetensors", "r.safetensors"),
        ("score --embeddings e.npy --reference r.safetensors --report x --per-sample ./x", "x"),
        ("merge r.safetensors s.safetensors -o r.safetensors", "r.safetensors"),
        ("geometry --image-embeddings e.npy --report images/../e.npy", "e.npy"),
        ("reference --embeddings e.safetensors -o e.safetensors", "e.safetensors"),
    ],
)
def test_a_file_is_refused_under_its_own_name(command, target, folder, capsys):
    before = contents(folder)
    assert main(command.split()) == 2
    assert f"{target} are the same file" in capsys.readouterr().err
    assert contents(folder) == before


# Every command that writes, with what it writes.
WRITING = {
    "embed": (f"{EMBED} out.safetensors", ["out.safetensors"]),
    "reference": ("reference --embeddings e.npy -o out.safetensors", ["out.safetensors"]),
    "coco": (
        f"{COCO} -o out.safetensors",
        ["out-image.safetensors", "out-text.safetensors", "out-captions.json"],
    ),
    "merge": ("merge r.safetensors s.safetensors -o out.safetensors", ["out.safetensors"]),
    "score": (
        f"{SCORE} --embeddings e.npy --resamples 5 --per-sample out.csv --report out.html",
        ["out.csv", "out.html"],
    ),
    "geometry": ("geometry --image-embeddings e.npy --report out.html", ["out.html"]),
}


WORK = ("commands.open_source", "references.open_source", "references.open_coco", "scores.open_source")
"""What opens the samples of each command."""


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
@pytest.mark.parametrize("command", WRITING)
def test_an_output_that_is_there_is_refused_before_any_work_and_replaced_with_leave(command, folder, monkeypatch):
    line, written = WRITING[command]
    for name in written:
        Path(name).write_text("older")
        with monkeypatch.context() as patched:
            for work in WORK:
                patched.setattr(f"clipconformity.cli.{work}", None)
            status, out, err = reported(line)
        assert (status, out) == (2, "")
        assert f"{name} is there already; name another file, or give --overwrite" in err
        assert Path(name).read_text() == "older"
        Path(name).unlink()
    for name in written:
        Path(name).write_text("older")
    before = set(contents(folder))
    assert reported(f"{line} --overwrite")[0] == 0
    assert all(Path(name).read_bytes() != b"older" for name in written)
    assert set(contents(folder)) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{EMBED} out.npy", "--output: expected a name that ends in .safetensors, got out.npy"),
        (f"{COCO} -o out.pt", "--output: expected a name that ends in .safetensors, got out-image.pt"),
        ("merge r.safetensors s.safetensors -o out.csv", "--output: expected a name that ends in .safetensors"),
        (f"{SCORE} --embeddings e.npy --per-sample out.xlsx", "--per-sample: expected a name that ends in .csv"),
        (f"{SCORE} --embeddings e.npy --report out.pdf", "--report: expected a name that ends in .html or .htm"),
        ("geometry --image-embeddings e.npy --report out", "--report: expected a name that ends in .html or .htm"),
    ],
)
def test_an_output_of_another_kind_is_refused_before_any_work(command, message, folder, monkeypatch):
    for work in WORK:
        monkeypatch.setattr(f"clipconformity.cli.{work}", None)
    before = contents(folder)
    status, out, err = reported(command)
    assert (status, out) == (2, "")
    assert message in err
    assert contents(folder) == before


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
def test_an_output_that_appears_under_way_stays(folder, monkeypatch):
    def write(path, *_, **__):
        Path(path).write_text("mine")
        Path("out.csv").write_text("another's")

    monkeypatch.setattr("clipconformity.evaluation.write_per_sample", write)
    status, out, err = reported(WRITING["score"][0])
    assert (status, out) == (2, "")
    assert "out.csv was written by another process during this run" in err
    assert Path("out.csv").read_text() == "another's"
    assert not Path("out.html").exists()


def test_a_file_that_takes_standard_output_is_no_output_too(folder):
    with Path("x.csv").open("w") as output:
        done = subprocess.run(
            [*COMMAND, *SCORE.split(), "--embeddings", "e.npy", "--per-sample", "x.csv"],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "x.csv and standard output /dev/stdout are the same file" in done.stderr


PIPES = ("out.safetensors", "out-text.safetensors", "demo/results.json")


@pytest.mark.parametrize(
    "command",
    [
        "reference --embeddings e.npy -o out.safetensors",
        "merge r.safetensors s.safetensors -o out.safetensors",
        f"{EMBED} out.safetensors",
        f"{SCORE} --embeddings e.npy --per-sample out.safetensors",
        f"{SCORE} --embeddings e.npy --report out.safetensors",
        "geometry --image-embeddings e.npy --report out.safetensors",
        f"{COCO} -o out.safetensors",
        "demo -o demo",
    ],
)
def test_a_pipe_is_not_replaced_by_a_file(command, folder, capsys, monkeypatch):
    monkeypatch.setattr("clipconformity.demo.simulation.load_encoder", None)  # before any work
    monkeypatch.setattr("clipconformity.encoders.load_encoder", None)
    Path("demo").mkdir()
    for name in PIPES:
        os.mkfifo(name)
    before = sorted(folder.rglob("*"))
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "is not a regular file" in captured.err
    assert sorted(folder.rglob("*")) == before
    assert all(Path(name).is_fifo() for name in PIPES)


def test_a_link_to_standard_output_stays(folder):
    """It has a name of its own: a broken check must not cost the machine its /dev/stdout."""
    Path("out.safetensors").symlink_to("/proc/self/fd/1")
    command = [*COMMAND, "merge", "r.safetensors", "s.safetensors", "-o", "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "out.safetensors is not a regular file" in done.stderr
    assert Path("out.safetensors").is_symlink()


# --- full and closed outputs -----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """A limit on the size of files, for a full disk: the system refuses the write in the same place."""
    resource = pytest.importorskip("resource")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
@pytest.mark.parametrize(
    "command",
    [
        "reference --embeddings e.npy -o out.safetensors",
        "merge r.safetensors s.safetensors -o out.safetensors",
        f"{EMBED} out.safetensors",
        f"{SCORE} --embeddings e.npy --per-sample out.csv",
        "geometry --image-embeddings e.npy --report out.html",
        f"{COCO} -o out.safetensors",
    ],
)
def test_a_disk_without_space_is_one_line_and_nothing_is_left(command, folder, capfd, small_disk):
    before = contents(folder)
    with capfd.disabled():  # which keeps what it captures in files
        status, out, err = reported(command)
    assert (status, out) == (1, "")
    assert "cannot be written (File too large): 'out" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("clipconformity: error: ")
    assert contents(folder) == before


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
@pytest.mark.parametrize(
    ("command", "writer", "name"),
    [
        (f"{COCO} -o out.safetensors", "clipconformity.data.Coco.save_captions", "out-captions.json"),
        (
            f"{SCORE} --embeddings e.npy --per-sample out.csv --report out.html",
            "clipconformity.report.write_report",
            "out.html",
        ),
    ],
)
def test_of_several_files_none_is_left_where_the_last_cannot_be_written(command, writer, name, folder, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, fail)
    before = contents(folder)
    status, _, err = reported(command)
    assert status == 1
    assert err.endswith(f"cannot be written (No space left on device): '{name}'\n")
    assert contents(folder) == before


def reported(command: str) -> tuple[int, str, str]:
    """Run a command in this process: its exit status, standard output and standard error."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = main(command.split())
    return status, out.getvalue(), err.getvalue()


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line in which ``PROGRAM`` is the program."""
    line = line.replace("PROGRAM", f"'{sys.executable}' -m clipconformity")
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env=os.environ | environment
    )


TELLING = ["score --help", "--version", "merge r.safetensors s.safetensors -o out.safetensors"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", TELLING)
def test_a_full_standard_output_is_one_line(command, unbuffered, folder):
    done = shell(f"PROGRAM {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "standard output cannot be written" in done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("command", TELLING)
def test_a_closed_standard_output_is_one_line_before_any_work(command, folder):
    done = shell(f"PROGRAM {command} >&-")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "standard output is closed" in done.stderr
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", TELLING)
def test_a_reader_that_has_gone_is_no_error(command, unbuffered, folder):
    done = shell(f"PROGRAM {command} | true; echo ${{PIPESTATUS[0]}}", PYTHONUNBUFFERED=unbuffered)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_closed_standard_error_changes_nothing_else(folder):
    done = shell("PROGRAM geometry --image-embeddings e.npy 2>&-")
    assert done.returncode == 0
    assert json.loads(done.stdout)["properties"]
    assert shell("PROGRAM merge r.safetensors none -o out.safetensors 2>&-").stdout == ""


# --- encoders that only a file names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["hf:nobody/none", "open_clip:ViT-B-32/openai", "encoder"])
@pytest.mark.parametrize("source", [["--images", "images"], ["--captions", "c.txt"]])
def test_a_reference_does_not_decide_what_is_loaded(spec, source, folder, capsys, monkeypatch):
    loaded = []
    monkeypatch.setattr("clipconformity.encoders.load_encoder", lambda spec, device: loaded.append(spec))
    ReferenceSet.fit(torch.rand(30, 48) + 0.1, spec=spec).save("named.safetensors")
    assert main(["score", *source, "--reference", "named.safetensors"]) == 2
    captured = capsys.readouterr()
    assert f"the reference names encoder {spec!r}; pass --encoder {spec!r} to load it" in captured.err
    assert (captured.out, captured.err.count("\n"), loaded) == ("", 1, [])


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning", "ignore::clipconformity.OverlapWarning")
def test_an_encoder_that_a_reference_names_is_loaded_when_told(folder, capsys):
    Path("many.txt").write_text("".join(f"a {size} {hue} star\n" for size in ("big", "small") for hue in "abcdefgh"))
    reported = ["--captions", "many.txt", "--encoder", "encoder"]
    assert main(["reference", *reported, "-o", "named.safetensors"]) == 0
    assert main(["score", *reported, "--reference", "named.safetensors", "--resamples", "5"]) == 0
