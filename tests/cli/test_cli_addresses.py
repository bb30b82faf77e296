"""Commands on addresses: the same results as on files, kept and shared likewise, and nothing secret in any of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from servers import replace_array, serve

import clipconformity as cc
from clipconformity.cli import main, parts, states
from clipconformity.data import remote
from clipconformity.evaluation import Score, embedding_source

pytest.importorskip("aiohttp", reason="https:// is read with aiohttp")
# As the commands show them.
pytestmark = pytest.mark.filterwarnings("always")
SECRETS = ("zoe", "s3cret", "signature", "t0ken")


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server of embeddings, and a working directory beside its folder."""
    monkeypatch.setattr(remote, "PAUSES", ())
    monkeypatch.setattr(states, "ROWS", 4096)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder, random = tmp_path / "served", np.random.default_rng(0)
    (folder / "shards").mkdir(parents=True)
    rows = (random.normal(size=(20_000, 5)) + 1).astype("f4")
    np.save(folder / "shards" / "e 1.npy", rows[:9000])
    np.savez_compressed(folder / "shards" / "e 2.npz", embeddings=rows[9000:], id=np.arange(11_000))
    (folder / "few").mkdir()
    np.save(folder / "few" / "e.npy", rows[:300])
    np.save(folder / "r.npy", (random.normal(size=(800, 5)) + 1).astype("f4"))
    np.save(folder / "t.npy", (random.normal(size=(800, 5)) - 1).astype("f4"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["reference", "--embeddings", str(folder / "r.npy"), "-o", str(folder / "r.safetensors")]) == 0
    with serve(folder) as server:
        yield server


def run(capsys, *arguments: object, status: int = 0) -> dict:
    """Run a command, and give its JSON, without its paths."""
    assert main([str(one) for one in arguments]) == status, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    for names in (("output",), ("measured",)):
        found.pop(names[0], None)
    return found


def fail(capsys, *arguments: object, status: int = 2) -> str:
    """Run a command that fails, and give its one line."""
    try:
        code = main([str(one) for one in arguments])
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == status, captured.err
    lines = [line for line in captured.err.splitlines() if "error: " in line]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def content(path: object) -> tuple[dict, dict]:
    with safe_open(str(path), framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_every_command_gives_what_it_gives_of_files(web, capsys):
    here, there = web.folder, web.url
    wanted = None
    for root, name in ((here, "here"), (there, "there")):
        reference = ["reference", "--embeddings", f"{root}/shards", f"{root}/r.npy", "-o", f"{name}.safetensors"]
        found = {"reference": run(capsys, *reference)}
        scored = ["score", "--embeddings", f"{root}/few/*", f"{root}/t.npy", "--reference", f"{root}/r.safetensors"]
        kept = ["--metrics", "conformity,vendi", "--save", f"{name}-score.safetensors", "--per-sample", f"{name}.csv"]
        found["score"] = run(capsys, *scored, *kept, "--resamples", 5, "--against", f"{root}/r.npy")
        models = [f"a={root}/few/", f"b={root}/t.npy", f"c={root}/few/*.npy"]
        compared = ["compare", *models, "--reference", f"{root}/r.safetensors", "--format", "json", "--resamples", 5]
        found["compare"] = run(capsys, *compared)
        both = ["--image-embeddings", f"{root}/r.npy", "--text-embeddings", f"{root}/few/e.npy"]
        found["geometry"] = run(capsys, "geometry", *both)
        assert wanted in (None, found)
        wanted = found
    assert content("there.safetensors") == content("here.safetensors")
    assert content("there-score.safetensors") == content("here-score.safetensors")
    assert Path("there.csv").read_bytes() == Path("here.csv").read_bytes()


def test_references_and_saved_scores_are_read_at_addresses(web, capsys):
    reference = cc.ReferenceSet.load(f"{web.url}/r.safetensors")
    assert torch.equal(reference.conformities, cc.ReferenceSet.load(web.folder / "r.safetensors").conformities)
    scored = ["score", "--embeddings", web.folder / "t.npy", "--reference", web.folder / "r.safetensors"]
    wanted = run(capsys, *scored, "--resamples", 20, "--save", web.folder / "s.safetensors")
    saved = ["score", "--saved", f"{web.url}/s.safetensors", "--reference", f"{web.url}/r.safetensors"]
    assert run(capsys, *saved, "--resamples", 20) == wanted
    assert (
        Score.load(f"{web.url}/s.safetensors", reference, resamples=20).figures["conformity_mean"].value
        == (wanted["conformity_mean"])
    )
    models = [f"a={web.url}/s.safetensors", f"b={web.folder}/s.safetensors"]
    compared = ["compare", *models, "--reference", web.folder / "r.safetensors", "--format", "json"]
    found = run(capsys, *compared, "--resamples", 20)["runs"]
    assert found["a"]["conformity_mean"] == found["b"]["conformity_mean"] == wanted["conformity_mean"]
    other = run(capsys, "reference", "--embeddings", web.folder / "t.npy", "-o", web.folder / "o.safetensors")
    merged = run(capsys, "merge", f"{web.url}/r.safetensors", f"{web.url}/o.safetensors", "-o", "m.safetensors")
    assert merged["count"] == 800 + other["count"]
    assert "are the same file" in fail(capsys, "merge", *[f"{web.url}/r.safetensors"] * 2, "-o", "m2.safetensors")
    (web.folder / "bad.safetensors").write_bytes((web.folder / "r.safetensors").read_bytes()[:-9])
    line = fail(capsys, *scored[:-1], f"{web.url}/bad.safetensors")
    assert f"{web.url}/bad.safetensors: not a readable safetensors file" in line
    assert f"{web.url}/none.safetensors: no such reference file; build one" in fail(
        capsys, *scored[:-1], f"{web.url}/none.safetensors"
    )


def test_nothing_secret_is_written_or_said(web, capsys):
    start = web.url.replace("//", "//zoe:s3cret@")
    reference = f"{start}/r.safetensors?signature=t0ken"
    scored = ["score", "--embeddings", f"{start}/r.npy?signature=t0ken", f"{start}/few/", "--verbose"]
    written = ["--report", "r.html", "--save", "s.safetensors", "--per-sample", "s.csv"]
    assert main([*scored, "--reference", reference, "--resamples", "5", *written]) == 0
    built = ["reference", "--embeddings", f"{start}/t.npy?signature=t0ken", "-o", "b.safetensors"]
    assert main([*built, "--dataset", "d"]) == 0
    both = ["--image-embeddings", f"{start}/r.npy?signature=t0ken", "--text-embeddings", f"{start}/few/e.npy"]
    assert main(["geometry", *both, "--report", "g.html"]) == 0
    compared = ["compare", f"a={start}/r.npy?signature=t0ken", f"b={start}/t.npy", "--reference", reference]
    assert main([*compared, "--report", "c.html", "--resamples", "5", "--format", "json"]) == 0
    for wrong in (f"{start}/none.npy?signature=t0ken", f"{start}/shards/*.pt", f"ftp{start[4:]}/e.npy"):
        for option in ("--embeddings", "--images", "--captions"):
            fail(capsys, "reference", option, wrong, "-o", "x.safetensors", "--encoder", "tiny")
    fail(capsys, "reference", f"--embeddings={start}/r.npy", "-o", f"{start}/x.safetensors?signature=t0ken")
    fail(capsys, "reference", "--embeding", f"{start}/r.npy", f"{start}/r.npy?signature=t0ken", "-o", "x.safetensors")
    fail(capsys, "compare", f"{start}/r.npy?signature=t0ken", "--reference", reference)
    assert any(one is not None for one in web.authorization)
    captured = capsys.readouterr()
    files = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert len(files) == 6
    for name, text in {**files, "out": captured.out.encode(), "err": captured.err.encode()}.items():
        assert not any(secret.encode() in text or secret in name for secret in SECRETS), name
    assert f"{web.url}/r.npy".encode() in files["r.html"]


def test_shards_of_addresses_and_of_files_are_of_the_same_samples(web, capsys):
    roots = (web.folder, web.url)
    for number, root in enumerate(roots, start=1):
        shard = ["--embeddings", f"{root}/shards", "--shard", f"{number}/2", "-o", f"{number}.safetensors"]
        run(capsys, "reference", *shard)
    run(capsys, "merge", "1.safetensors", "2.safetensors", "-o", "m.safetensors")
    run(capsys, "reference", "--embeddings", web.folder / "shards", "-o", "whole.safetensors")
    merged, whole = (cc.ReferenceSet.load(f"{name}.safetensors") for name in ("m", "whole"))
    torch.testing.assert_close(merged.conformities, whole.conformities, rtol=1e-12, atol=1e-12)
    assert merged.count == whole.count


@pytest.mark.parametrize("change", [None, "content"])
def test_a_stopped_run_is_gone_on_with(change, web, capsys, monkeypatch):
    command = ["reference", "--embeddings", f"{web.url}/shards", "-o", "out.safetensors", "--max-samples", "300"]
    write, written = parts.Parts._write, []

    def stopping(self, *arguments):
        write(self, *arguments)
        written.append(arguments)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "_write", stopping)
        assert main(command) == 130
    assert len(list(Path("out.safetensors.parts").iterdir())) == 2
    if change:
        rows = np.load(web.folder / "shards" / "e 1.npy")
        replace_array(web.folder / "shards" / "e 1.npy", rows + 1)
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert ("8192 of 20000 samples are taken up" in said) == (change is None)
    assert ("2 of the parts" in said) == (change is not None)
    run(capsys, "reference", "--embeddings", web.folder / "shards", "-o", "here.safetensors", "--max-samples", "300")
    assert content("out.safetensors") == content("here.safetensors")


def test_a_file_that_changes_under_way_ends_the_run(web, capsys, monkeypatch):
    write = parts.Parts._write

    def changing(self, *arguments):
        write(self, *arguments)
        replace_array(web.folder / "shards" / "e 1.npy", np.load(web.folder / "shards" / "e 1.npy") + 1)

    monkeypatch.setattr(parts.Parts, "_write", changing)
    line = fail(capsys, "reference", "--embeddings", f"{web.url}/shards", "-o", "out.safetensors")
    assert "shards/e%201.npy: was replaced by another file while it was read" in line
    assert not Path("out.safetensors").exists()


def test_damaged_and_missing_files_are_skipped_by_choice_and_a_broken_connection_is_not(web, capsys):
    (web.folder / "shards" / "e3.npy").write_bytes(b"damaged")
    places = [f"{web.url}/shards", f"{web.url}/none.npy"]
    command = ["reference", "--embeddings", *places, "-o", "out.safetensors", "--on-error", "skip"]
    found = run(capsys, *command)
    assert found["count"] == 20_000
    assert {one["id"] for one in found["skipped"]["files"]} == {f"{web.url}/shards/e3.npy", f"{web.url}/none.npy"}
    command.append("--overwrite")
    web.fail = lambda method, path: 503 if path.endswith("e 2.npz") else None
    line = fail(capsys, *command, status=1)
    assert f"{web.url}/shards/e%202.npz: the server fails (HTTP status 503); try again later." in line
    asked = []
    web.fail = lambda method, path: (
        503 if path.endswith("e 2.npz") and asked.append(method) is None and asked[5:] else None
    )
    line = fail(capsys, *command, status=1)
    assert "the server fails" in line
    assert Path("out.safetensors.parts").is_dir()
    web.fail = lambda method, path: None
    assert main(command) == 0
    assert "samples are taken up from out.safetensors.parts" in capsys.readouterr().err


def test_what_is_no_input_of_embeddings_is_of_this_machine(web, capsys):
    r, e = web.folder / "r.safetensors", web.folder / "r.npy"
    for command in (
        ["reference", "--embeddings", e, "-o", "s3://bucket/x.safetensors"],
        ["reference", "--images", "s3://bucket/images/", "-o", "x.safetensors"],
        ["embed", "--captions", "https://host/c.json", "--encoder", "tiny", "-o", "x.safetensors"],
        ["score", "--embeddings", e, "--reference", r, "--report", "gs://bucket/x.html"],
        ["score", "--embeddings", e, "--reference", r, "--by", "https://host/c.csv"],
        ["score", "--embeddings", e, "--reference", r, "--cache", "memory://cache"],
        ["demo", "-o", "memory://demo"],
        ["geometry", "--image-embeddings", e, "--report", "file:///tmp/x.html"],
    ):
        line = fail(capsys, *command)
        assert "expected a file or folder on this machine, got an address" in line
    assert not [path for path in Path().iterdir() if ":" in path.name]
    with pytest.raises(ValueError, match="expected a file to write on this machine, got an address"):
        cc.ReferenceSet.load(r).save("memory://bucket/x.safetensors")
    line = fail(capsys, "compare", f"a={web.url}/shards/none.npy", f"b={e}", "--reference", r)
    assert f"a: {web.url}/shards/none.npy: no such file or folder." in line


def test_addresses_on_the_hub_are_kept_by_its_client_for_references_and_read_by_fsspec_for_embeddings(monkeypatch):
    from clipconformity.cli.places import parse_input, parse_reference
    from clipconformity.data.addresses import RemotePath

    assert parse_reference("hf://ann/coco/r.safetensors") == "hf://ann/coco/r.safetensors"
    assert isinstance(parse_input("hf://ann/coco/r.safetensors"), RemotePath)
    assert parse_reference("r.safetensors") == Path("r.safetensors")


def test_a_single_address_is_told_to_be_in_a_list():
    with pytest.raises(TypeError, match="expected a list of files, got 'https://host/e.npy'") as error:
        embedding_source("https://zoe:s3cret@host/e.npy?signature=t0ken")
    assert not any(secret in str(error.value) for secret in SECRETS)


@pytest.mark.slow
def test_several_processes_read_an_address_as_one_does(web, capsys, monkeypatch):
    monkeypatch.setattr(states, "ROWS", 2**18)  # as in the other process
    np.save(web.folder / "shards" / "e 3.npy", np.random.default_rng(1).normal(size=(600_000, 5)).astype("f4"))
    command = ["reference", "--embeddings", f"{web.url}/shards", "--max-samples", "300", "-o"]
    run(capsys, *command, "two.safetensors", "--processes", "2")
    run(capsys, *command, "one.safetensors")
    assert content("two.safetensors") == content("one.safetensors")
