"""The notebook of the tutorial, and the code of the gallery, run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT, cells

EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def environment() -> dict[str, str]:
    """That of a user: the commands of the environment are found, and the library is the one under test."""
    paths = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT)}
    joined = {name: os.pathsep.join([path, os.environ.get(name, "")]).strip(os.pathsep) for name, path in paths.items()}
    return os.environ | joined | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


def run(*words: object, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment(), cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_the_tutorial_runs_and_says_what_its_text_says(tmp_path):
    (tmp_path / "execute.py").write_text(EXECUTE)
    run("execute.py", DOCS / "tutorial.ipynb", tmp_path / "executed.ipynb", cwd=tmp_path)
    import nbformat

    notebook = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    printed = "\n".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stdout"
    )
    assert "faithful: as typical as the reference; as varied as the reference" in printed
    assert "crowding: more typical than the reference; less varied than the reference" in printed
    assert "repeating: as typical as the reference; less varied than the reference" in printed
    assert re.search(r"typicality: undecided.*needed: \d+ images", printed)
    assert "status 3" in printed


@pytest.mark.slow
def test_the_code_of_the_gallery_runs(tmp_path):
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    code = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", text, re.DOTALL)
    close = "\nimport matplotlib.pyplot\nmatplotlib.pyplot.close('all')\n"
    (tmp_path / "gallery.py").write_text(close.join(code))
    run("gallery.py", cwd=tmp_path)


def test_the_notebook_is_committed_without_outputs():
    import json

    notebook = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
    assert len(cells(DOCS / "tutorial.ipynb")) > 20
    assert all(not cell.get("outputs") for cell in notebook["cells"])
