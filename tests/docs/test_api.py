"""The API pages name every public name, once, and the gallery draws every plot."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest
from pages import blocks, pages

PARTS = (
    "",
    ".functional",
    ".plots",
    ".encoders",
    ".data",
    ".metrics",
    ".evaluation",
    ".generators",
    ".report",
    ".demo",
    ".stream.readouts",
)
PAGES = pages()
DIRECTIVE = re.compile(r"^\.\. (currentmodule|automodule|auto\w+):: (\S+)", re.MULTILINE)


def documented() -> list[str]:
    """The names that the API page documents, in full."""
    names, home = [], ""
    for kind, name in DIRECTIVE.findall(PAGES["api.md"]):
        if kind == "currentmodule":
            home = name
        elif kind == "automodule":
            names += [f"{name}.{each}" for each in import_module(name).__all__]
        else:
            names.append(name if name.startswith("clipconformity.") else f"{home}.{name}")
    return names


def found(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def key(value: object, name: str) -> object:
    """What tells a public thing from another: itself, or its name where it is plain data."""
    return value if inspect.isclass(value) or inspect.isfunction(value) else name.rpartition(".")[2]


@pytest.mark.parametrize("part", PARTS)
def test_every_public_name_is_on_the_page(part):
    module = import_module(f"clipconformity{part}")
    there = {key(found(name), name) for name in documented()}
    missing = [
        name
        for name in module.__all__
        if not inspect.ismodule(getattr(module, name)) and key(getattr(module, name), name) not in there
    ]
    assert missing == []


def test_no_name_is_on_the_page_twice():
    keys = [key(found(name), name) for name in documented()]
    assert [one for one in keys if keys.count(one) > 1] == []


def code_of(name: str) -> str:
    return "\n".join(content for language, content in blocks(PAGES[name]) if language in ("python", "ipython3"))


def test_the_gallery_draws_every_plot():
    code, plots = code_of("gallery.md"), import_module("clipconformity.plots")
    drawn = [name for name in plots.__all__ if inspect.isfunction(getattr(plots, name))]
    assert len(drawn) > 15
    assert [name for name in drawn if f"plots.{name}(" not in code] == []
    comparison = import_module("clipconformity.evaluation").Comparison
    methods = [name for name in vars(comparison) if name.startswith("plot")]
    assert [name for name in methods if f"found.{name}(" not in code] == []
    metrics = import_module("clipconformity.metrics").__all__
    assert [name for name in metrics if f"cc.{name}(" not in code] == []
