"""JSON is strict, and one function writes it."""

from __future__ import annotations

import ast
import json
import math
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from clipconformity.data.strict_json import to_json

PACKAGE = Path(__file__).resolve().parents[2] / "clipconformity"
# Not written as JSON for others to read: what an encoder and a run are told by.
IDENTITIES = {"encoders/sentence_transformers.py", "encoders/transformers.py", "generators/pipelines.py"}


def refuse(name: str) -> None:
    raise AssertionError(name)


def test_what_is_not_finite_becomes_null_wherever_it_lies():
    pair = namedtuple("pair", "low high")
    value = {"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, True, None)}], "d": pair(0.0, np.float64("nan"))}
    found = json.loads(to_json(value), parse_constant=refuse)
    assert found == {"a": None, "b": [1.5, None, {"c": [None, True, None]}], "d": [0.0, None]}


def test_what_is_finite_is_as_json_writes_it():
    value = {"a": [1, 2.5, "ü\udcff", None, True, {"b": {}}], "c": 1e300, "d": 10**20}
    assert to_json(value) == json.dumps(value)
    assert to_json(value, indent=2) == json.dumps(value, indent=2)


def test_what_json_has_not_is_refused():
    with pytest.raises(TypeError):
        to_json({"path": Path("x")})


def writers() -> set[str]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("dumps", "dump")
                and getattr(node.value, "id", "") == "json"
            ):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


def test_nothing_else_writes_json():
    assert writers() - IDENTITIES - {"stream/state_file.py"} == {"data/strict_json.py"}
