"""Tables of scores: digits by uncertainty, the best marked, and every format."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from clipconformity.evaluation.results import Figure
from clipconformity.evaluation.tables import format_plus_minus, format_table
from clipconformity.functional.resampling import Interval


def figure(value, half=0.0, better="lower", unit=""):
    interval = None if value is None or not half else Interval(value - half, value + half)
    return Figure(value, "what it is", unit, better, interval=interval)


def scores(**values) -> Any:
    """Runs with a KL each, of a value and half an interval."""
    return {
        name: SimpleNamespace(
            figures={"conformity_kl": figure(*reported, unit="nats")}, count=50, kl_is_lower_bound=False
        )
        for name, reported in values.items()
    }


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.5051090, 0.0042, "0.505 +- 0.004"),
        (0.5051090, 0.0142, "0.505 +- 0.014"),
        (0.5051090, 0.0199, "0.51 +- 0.02"),
        (0.5051090, 0.02, "0.51 +- 0.02"),
        (1234.5, 37.0, "1230 +- 40"),
        (1234.5, 17.0, "1234 +- 17"),
        (1234.5, 1.4, "1234.5 +- 1.4"),
        (-0.00012, 0.5, "-0.0 +- 0.5"),
        (0.5051090, 0.0, "0.505"),
        (0.00005051090, 0.0, "5.05e-05"),
        (None, 0.0, ""),
    ],
)
def test_digits_are_those_that_the_uncertainty_leaves(value, half, text):
    assert format_plus_minus(figure(value, half)) == text


def test_the_best_and_what_cannot_be_told_from_it_are_marked():
    found = format_table(
        scores(a=(0.10, 0.01), b=(0.11, 0.01), c=(0.12, 0.01), d=(None,)), "markdown", ["conformity_kl"]
    )
    cells = [line.split("|")[3].strip() for line in found.splitlines()[2:6]]
    assert cells == ["**0.100 ± 0.010**", "*0.110 ± 0.010*", "0.120 ± 0.010", ""]


def test_higher_is_better_where_a_figure_says_so_and_nothing_where_it_does_not():
    runs = scores(a=(0.1, 0.001, "higher"), b=(0.2, 0.001, "higher"))
    assert "0.2000 +- 0.0010 *" in format_table(runs, figures=["conformity_kl"])
    assert (
        "*"
        not in format_table(
            scores(a=(0.1, 0.001, "neither"), b=(0.2, 0.001, "neither")), figures=["conformity_kl"]
        ).splitlines()[1]
    )


def test_a_lower_bound_says_so():
    runs = scores(a=(0.1, 0.01), b=(0.2, 0.01))
    runs["b"].kl_is_lower_bound = True
    assert "≥ 0.20" in format_table(runs, figures=["conformity_kl"])
    assert r"$\geq$ 0.20" in format_table(runs, "latex", ["conformity_kl"])


def test_csv_has_numbers_in_full_and_no_formula():
    runs = {"=cmd": scores(a=(1 / 3, 0.01))["a"], "b": scores(b=(None,))["b"]}
    rows = list(csv.reader(io.StringIO(format_table(runs, "csv", ["conformity_kl"]))))
    assert rows[0] == ["run", "count", "conformity_kl", "conformity_kl_low", "conformity_kl_high"]
    assert rows[1][0] == "'=cmd"
    assert [float(cell) for cell in rows[1][2:]] == pytest.approx([1 / 3, 1 / 3 - 0.01, 1 / 3 + 0.01], rel=1e-8)
    assert rows[2][2:] == ["", "", ""]


def test_latex_escapes_names_and_uses_booktabs(tmp_path):
    found = format_table(scores(**{r"a_b&50%\x": (0.1, 0.01), "b": (0.3, 0.01)}), "latex", ["conformity_kl"])
    assert r"a\_b\&50\%\textbackslash{}x & 50 & \textbf{0.100 $\pm$ 0.010} \\" in found
    assert [line for line in found.splitlines() if line.startswith("\\")] == [
        r"\begin{tabular}{lrr}", r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"
    ]  # fmt: skip
    if shutil.which("pdflatex"):
        page = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + found + r"\end{document}"
        (tmp_path / "t.tex").write_text(page, encoding="utf-8")
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)
