"""Commands of the pages: each parses, the workflow runs from start to end, and names say what a file is."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise

import pytest
from pages import blocks, commands, pages

from clipconformity.cli import _build_parser, main
from clipconformity.demo import draw_scene, sample_scenes, scene_captions

PAGES = pages()
COMMANDS = [(name, line) for name, text in PAGES.items() for line in commands(text)]


def words_of(line: str) -> list[str]:
    """The arguments of a command, without what the shell keeps for itself."""
    line = re.sub(r"\|\|.*", "", line)
    words = shlex.split(line, comments=True)
    if ">" in words:
        words = words[: words.index(">")]
    return words[1:]


def test_the_pages_have_commands():
    assert len(COMMANDS) > 50
    assert {"README.md", "index.md", "workflow.md", "tutorial.ipynb"} <= {name for name, _ in COMMANDS}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_parses(page, line):
    assert "..." not in line, "give the whole command, so that it can be copied"
    assert callable(_build_parser().parse_args(words_of(line)).command)


def test_a_command_that_does_not_parse_is_found():
    with pytest.raises(SystemExit, match="2"):
        _build_parser().parse_args(words_of("clipconformity score --nonsense 1"))


@pytest.mark.parametrize("name", PAGES)
def test_commands_stand_in_consoles(name):
    for language, content in blocks(PAGES[name]):
        if language not in ("console", "bash") and not content.startswith("%%bash"):
            assert not re.search(r"^\$ ?clipconformity |^clipconformity \w+ --", content, re.MULTILINE), content


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_names_of_files_say_what_they_hold(page, line):
    words = words_of(line)
    given = {one: two for one, two in pairwise(words) if one.startswith("-")}
    written = given.get("-o", "")
    if words[0] == "reference":
        assert "reference" in written, line
    if words[0] == "merge":
        assert re.search(r"reference|-score\.|-embeddings\.", written), line
    if words[0] == "embed":
        assert written.endswith("-embeddings.safetensors"), line
    if given.get("--reference", "").endswith(".safetensors"):
        assert "reference" in given["--reference"], line
    for option in ("--image-embeddings", "--text-embeddings"):
        assert given.get(option, "-embeddings.safetensors").endswith("-embeddings.safetensors"), line
    if given.get("--embeddings", "").endswith(".safetensors"):
        assert given["--embeddings"].endswith("-embeddings.safetensors"), line


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_what_is_encoded_has_an_encoder(page, line):
    words = words_of(line)
    encoded = {"--images", "--captions", "--coco"} & set(words) or re.search(r"=\S+/( |$)", line)
    if words[0] in ("embed", "reference", "score", "compare") and encoded:
        assert "--encoder" in words, line


WRITTEN = ("-o", "--report", "--per-sample", "--per-class", "--curve", "--save")


def written_twice(text: str) -> set[str]:
    """The outputs that two commands of a page write, the second of which is refused."""
    outputs = []
    for words in map(words_of, commands(text)):
        if "--overwrite" not in words:
            outputs += [path for option, path in pairwise(words) if option in WRITTEN and "$" not in path]
    return {path for path in outputs if outputs.count(path) > 1}


@pytest.mark.parametrize("name", PAGES)
def test_no_two_commands_of_a_page_write_one_file(name):
    assert not written_twice(PAGES[name])


def test_a_file_written_twice_is_found():
    line = "$ clipconformity score --embeddings e.npy --reference r.safetensors --report report.html"
    assert written_twice(f"```console\n{line}\n{line}\n```") == {"report.html"}
    assert not written_twice(f"```console\n{line}\n{line} --overwrite\n```")


@pytest.mark.slow
def test_the_workflow_runs_from_start_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, seed in (("real", 0), ("generated", 1)):
        (tmp_path / folder).mkdir()
        for number, scene in enumerate(sample_scenes(40, seed=seed)):
            draw_scene(scene, seed=number).save(tmp_path / folder / f"{number:02d}.png")
    texts = [scene_captions(scene, count=1, seed=0)[0] for scene in sample_scenes(40, seed=0)]
    (tmp_path / "captions.json").write_text(json.dumps(texts))
    lines = commands(PAGES["workflow.md"])
    assert [words_of(line)[0] for line in lines] == ["embed", "embed", "embed", "reference", "score", "geometry"]
    for line in lines:
        words = [word.replace("open_clip:ViT-B-32/openai", "tiny") for word in words_of(line)]
        assert main([*words, "--quiet"]) == 0, capsys.readouterr().err
    assert {"report.html", "geometry.html", "real-reference.safetensors"} <= {path.name for path in tmp_path.iterdir()}
