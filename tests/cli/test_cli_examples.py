"""The examples in the help of every command: each parses, and each that needs the embedded encoder alone is run."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest

from clipconformity.cli import _build_parser, main
from clipconformity.cli.examples import EXAMPLES
from clipconformity.demo import draw_scene, sample_scenes

LINES = [line for lines in EXAMPLES.values() for line in lines]
ELSEWHERE = ("open_clip:", "hf:", "hf://")
"""What an example needs that is not here: weights of the hub."""
HERE = [line for line in LINES if not any(word in line for word in ELSEWHERE)]
COMMANDS = sorted(next(action.choices for action in _build_parser()._actions if action.choices))


def words_of(line: str) -> list[str]:
    program, *words = shlex.split(line)
    assert program == "clipconformity"
    return words


def test_every_command_has_an_example_in_its_help(capsys):
    assert sorted(EXAMPLES) == COMMANDS
    for name in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        out = capsys.readouterr().out
        for line in EXAMPLES[name]:
            assert line in out
            assert line.split()[1] == name
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert re.search(r"examples:\n  clipconformity demo", capsys.readouterr().out)


@pytest.mark.parametrize("line", LINES)
def test_every_example_parses(line):
    assert callable(_build_parser().parse_args(words_of(line)).command)


def test_the_examples_that_need_no_download_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    assert len(HERE) >= 9
    monkeypatch.chdir(tmp_path)
    for folder, seed in (("samples", 0), ("others", 1), ("real", 2), ("more", 3)):
        (tmp_path / folder).mkdir()
        for number, scene in enumerate(sample_scenes(24, seed=seed)):
            draw_scene(scene, seed=number).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "test.txt").write_text("\n".join(f"more/{number}.png" for number in range(24)))
    np.save(tmp_path / "words.npy", np.random.default_rng(0).normal(size=(24, 64)).astype("f4") + 1)
    for line in HERE:
        words = [word.replace("words-embeddings.safetensors", "words.npy") for word in words_of(line)]
        if words[0] in ("demo", "encoders"):  # have tests of their own, and take long
            continue
        assert main([*words, "--quiet"]) == 0, line
        reported = capsys.readouterr().err
        assert reported == "" or words[0] == "geometry", line  # which has a table there
    assert {
        "samples-embeddings.safetensors",
        "real-reference.safetensors",
        "report.html",
        "whole-reference.safetensors",
    } <= {path.name for path in tmp_path.iterdir()}
