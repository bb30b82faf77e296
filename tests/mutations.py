"""Mutations: each formula changed in turn, and the tests that must notice.

Run by hand: ``python tests/mutations.py``, or with parts of file names or numbers of mutations to choose some, such as
``python tests/mutations.py functional/sweep 17``. Each is made alone, in a copy of the checkout.
The exit status is 1 where one survives that has no reason to, or is killed that had one, or does not fit the code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mutants import TABLE

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "_build", "__pycache__")
OUTCOMES = {0: "survived", 1: "killed", None: "timed out"}
"""By the exit status of pytest; all others are errors of the table."""


class Mutation(NamedTuple):
    """A change of one file, and what must notice it."""

    number: int
    file: str
    tests: str
    """Files or node ids in ``tests/``, with spaces between."""
    old: str
    """Text that is in the file once."""
    new: str
    why: str = ""
    """Why no test can tell."""

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) or "(nothing)" for text in (self.old, self.new))
        return f"{self.number:3} {self.file}: {old} -> {new}"


def mutations() -> list[Mutation]:
    """Give the whole table, numbered."""
    found = []
    for file, usual, changes in TABLE:
        for old, new, *rest in changes:
            tests, why = (*rest, "", "")[:2]
            found.append(Mutation(len(found) + 1, file, tests or usual, old, new, why))
    return found


def chosen(words: Iterable[str]) -> list[Mutation]:
    """Give those of the numbers or parts of file names; all without any."""
    named = set(words)
    return [
        one
        for one in mutations()
        if not named or str(one.number) in named or any(word in one.file for word in named if not word.isdigit())
    ]


def misfits(some: list[Mutation]) -> list[Mutation]:
    """Give those whose old text is not in its file exactly once."""
    return [one for one in some if (ROOT / one.file).read_text().count(one.old) != 1]


def run_tests(copy: Path, tests: Iterable[str], limit: float) -> tuple[str, str]:
    """Run tests in a copy of the checkout; give the outcome, and the first test that fails."""
    python = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment.setdefault("CLIPCONFORMITY_DATA", str(ROOT.parent / "shared" / "data"))
    paths = [f"tests/{one}" for one in tests]
    try:
        run = subprocess.run(
            [*python, *paths], cwd=copy, env=environment, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return OUTCOMES[None], ""
    failed = [line.split(" - ")[0][7:] for line in run.stdout.splitlines() if line.startswith("FAILED ")]
    outcome = OUTCOMES.get(run.returncode, f"error {run.returncode}")
    return outcome, failed[0].removeprefix("tests/") if failed else ""


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help="numbers, or parts of file names; by default all")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for the tests of one mutation")
    parser.add_argument("--list", action="store_true", help="show the mutations and run nothing")
    options = parser.parse_args()
    some = chosen(options.which)
    if options.list:
        print(*some, sep="\n")
    for one in misfits(some):
        print(f"{one}\n    its old text is not in the file exactly once")
    if misfits(some) or options.list:
        return int(bool(misfits(some)))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder) / "copy", ignore=LEFT_OUT))
        outcome, test = run_tests(copy, dict.fromkeys(word for one in some for word in one.tests.split()), 3600)
        if outcome != "survived":
            print(f"without any mutation: {outcome} {test}")
            return 1
        wrong = 0
        for one in some:
            path = copy / one.file
            text = path.read_text()
            path.write_text(text.replace(one.old, one.new))
            outcome, test = run_tests(copy, one.tests.split(), options.timeout)
            path.write_text(text)
            expected = ("survived",) if one.why else ("killed", "timed out")
            wrong += outcome not in expected
            print(
                f"{outcome if outcome in expected else outcome.upper():9} {one}\n{'':13} {one.why or test}", flush=True
            )
    print(f"{len(some)} mutations, {wrong} not as they should be")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
