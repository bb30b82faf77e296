"""Every message that the page on troubleshooting quotes is one that the library gives."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
from messages import MAKERS
from pages import ROOT, blocks, pages

MESSAGES = [content.strip() for language, content in blocks(pages()["troubleshooting.md"]) if language == "output"]
LEAST = 24
"""Letters of a template that are its own; with fewer it fits too much."""
NUMBER = r"-?\d[\d,.]*(?:e[+-]?\d+)?%?"
REPR = rf"(?:'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)|{NUMBER}|None|True|False)"
TYPE = r"(?:[A-Z]\w*|ndarray|bool|bytes|dict|float|int|list|set|str|tuple)"
WORD, WORDS = r"[^\s;]+", r"(?:\S.*?)?"
ORIGIN = r"(?:[\w./:*-]+: )?"
"""An argument, option, file or spec, before the rest."""


class Template(NamedTuple):
    """A text of the code, and where it stands."""

    path: Path
    node: ast.expr
    loose: re.Pattern[str]
    """With anything for what is filled in."""

    def strict(self) -> re.Pattern[str]:
        """With what may stand there: what the module says, a number, a quoted word, the name of a type."""
        module = import_module(".".join(self.path.relative_to(ROOT).with_suffix("").parts))
        seen: dict[str, str] = {}
        return re.compile(ORIGIN + as_pattern(self.node, vars(module), seen), re.DOTALL)


def as_pattern(node: ast.expr, known: dict[str, object] | None = None, seen: dict[str, str] | None = None) -> str:
    """A text of the code as a pattern; without what the module knows anything may be filled in."""
    if isinstance(node, ast.Constant):
        fill = ".+?" if known is None else r"[\d,]+"
        return fill.join(map(re.escape, re.split(r"\{[^{} ]*\}", str(node.value))))
    assert isinstance(node, ast.JoinedStr)
    parts = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            parts.append(".*?" if known is None else fill_in(part, known, {} if seen is None else seen, not parts))
        else:
            parts.append(re.escape(ast.literal_eval(part)))
    return "".join(parts)


def fill_in(part: ast.FormattedValue, known: dict[str, object], seen: dict[str, str], first: bool) -> str:
    """What may stand for a value: always the same for the same one, and a word at the beginning."""
    written = ast.unparse(part)
    if written in seen:
        return f"(?P={seen[written]})"
    seen[written] = f"value{len(seen)}"
    return f"(?P<{seen[written]}>{kind_of(part, known) or (WORD if first else WORDS)})"


def kind_of(part: ast.FormattedValue, known: dict[str, object]) -> str | None:
    """The text where the module alone decides it, else its kind; None for any words."""
    value = part.value
    if isinstance(value, ast.IfExp) and isinstance(value.body, ast.Constant) and isinstance(value.orelse, ast.Constant):
        return f"{re.escape(str(value.body.value))}|{re.escape(str(value.orelse.value))}"
    written = ast.fix_missing_locations(ast.Expression(ast.JoinedStr([part])))
    with suppress(Exception):  # it depends on the call
        return re.escape(eval(compile(written, "template", "eval"), {**known}))
    if part.conversion == ord("r"):
        return REPR
    if part.format_spec is not None or ast.unparse(value).startswith("len("):
        return NUMBER
    if isinstance(value, ast.Attribute) and value.attr == "__name__":
        return TYPE
    return None


@lru_cache
def templates() -> list[Template]:
    """Every text of the code that is long enough, alone or behind the name of an argument or a file."""
    found = {}
    for path in sorted((ROOT / "clipconformity").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                pattern = as_pattern(node)
                if len(re.sub(r"\.[*+]\?|\\", "", pattern)) >= LEAST:
                    found[pattern] = Template(path, node, re.compile(f"(.+: )?{pattern}", re.DOTALL))
    return list(found.values())


def is_given(message: str) -> bool:
    """Whether a whole template of the code is the message, or ends it, each value in it one of its kind."""
    return any(one.loose.fullmatch(message) and one.strict().fullmatch(message) for one in templates())


def said(make, capsys) -> Iterator[str]:
    """What a call raises, warns of, or prints."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            make()
        except (ValueError, TypeError) as error:
            yield str(error)
    yield from (str(one.message) for one in caught)
    yield from (line.removeprefix("clipconformity: error: ") for line in capsys.readouterr().err.splitlines())


def test_the_page_quotes_messages():
    assert len(MESSAGES) > 30
    assert len(templates()) > 300


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_is_one_of_the_library(message):
    assert is_given(message)


@pytest.mark.parametrize("make", MAKERS)
def test_what_a_call_says_is_quoted_word_for_word(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = list(said(make, capsys))
    assert set(given) & set(MESSAGES), given


@pytest.mark.parametrize(
    "message",
    [
        "all 500 embeddings have norm 2: they were L2-normalised.",
        "expected at least 10 samples, got 7; add fewer.",
        # Each of these has the fixed words of one, and a value that cannot be there.
        "rows.npz: expected one array or column, or one named 'vectors', got ['a', 'b']; name one (--column).",
        "img_emb: no embeddings in this folder (looked for .safetensors, .npy).",
        "the samples come from encoder tiny and the reference from 'tiny'; encode both with the same one.",
        "images: expected float tensors in [0, 1], got values from low to high; undo the normalisation, or pass uint8.",
        "embeddings: expected a torch tensor of shape (N, D), got a list; convert it with torch.as_tensor.",
        "open_clip:ViT-B-32: without weights the model is random; name them as 'open_clip:ViT-B-32/TAG' or "
        "'open_clip:ViT-L-14//path/to/checkpoint'. The tags are: openai.",
        "Conformity: the reference of rank 1 differed from that of rank 0; make the metric in the same way on every "
        "rank.",
        "all the embeddings have norm 1: they were L2-normalised, and the norms and the geometry are lost. Use the "
        "projection output before normalisation (get_image_features in transformers, encode_image with normalize=False "
        "in open_clip), or allow it (allow_normalized=True, --allow-normalized) if conformity is all that is needed.",
    ],
)
def test_another_message_is_found_out(message):
    assert not is_given(message)
