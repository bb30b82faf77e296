"""What a release says of itself is said once, or the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import clipconformity as cc

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def passed_rows() -> list[tuple[str, str]]:
    """Python version and bounds of every row of the table of tested versions that names no failure."""
    text = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (3\.\d+)\.\d+ \| (newest|oldest) \|.* \d+ passed, 0 failed, ", text, flags=re.MULTILINE)


def test_the_version_stands_in_one_place():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, flags=re.MULTILINE) == [cc.__version__]
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT


def test_classifiers_name_the_python_versions_that_were_tested():
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert set(named) == {version for version, _ in passed_rows()}
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert (named[0], "oldest") in passed_rows()


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_every_dependency_has_a_lower_bound_and_no_upper_one(extra):
    wanted = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    for one in wanted:
        assert one.startswith("clipconformity[") or re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+", one), one


def test_the_changelog_opens_with_what_is_unreleased():
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
