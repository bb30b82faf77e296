"""Metrics of other packages: the one on the page, by every way it is used, and those that are refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import brute_conformity, ellipsoid_rows

from clipconformity import ReferenceSet
from clipconformity.cli import main
from clipconformity.evaluation import embedding_source, score
from clipconformity.stream import readouts
from clipconformity.stream.alignment import Partners
from clipconformity.stream.readouts import ENTRY_POINTS, RESERVED, Needs, Stream, failed_read_outs, read_outs
from clipconformity.stream.readouts.modality_gap import FIELDS as PAIR_FIELDS
from clipconformity.stream.stream import choose_layouts

PAGE = Path(__file__).parents[2] / "docs" / "own-metric.md"
DIM = 6
BUILT_IN = (
    "cmmd",
    "conformity",
    "conformity_kl",
    "cosine_mmd",
    "ellipsoid",
    "frechet",
    "likelihood",
    "norm",
    "self_conformity",
    "vendi",
    "conformity",
    "conformity_kl",
    "ellipsoid",
    "frechet",
    "likelihood",
    "nearest",
    "norm",
    "prdc",
    "self_conformity",
)


def rows(count: int, seed: int, offset: float = 1.0) -> torch.Tensor:
    return ellipsoid_rows(count, DIM, torch.Generator().manual_seed(seed), offset)


REFERENCE, EVALUATED = rows(600, 0), rows(150, 1, 0.8)


def page_files() -> dict[str, str]:
    """The files that the page shows, by name."""
    blocks = re.findall(
        r"```\{code-block\} \w+\n:caption: (\S+)\n\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    return dict(blocks)


def install(folder: Path, package: str, points: dict[str, str], files: dict[str, str]) -> None:
    """Lay a package out as pip does: its modules, and a dist-info that names its entry points."""
    about = folder / f"{package.replace('-', '_')}-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    lines = [f"[{ENTRY_POINTS}]", *(f"{name} = {target}" for name, target in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path) -> Path:
    np.save(tmp_path / "evaluated.npy", EVALUATED.numpy())
    ReferenceSet.fit(REFERENCE, modality="image", spec="tiny").save(tmp_path / "r.safetensors")
    return tmp_path


def options(folder: Path, *more: str) -> list[str]:
    given = ["--embeddings", str(folder / "evaluated.npy"), "--reference", str(folder / "r.safetensors")]
    return ["score", *given, "--resamples", "200", *more]


@pytest.fixture
def installed(folder, monkeypatch):
    """Install a package of one module into the path of this process; its module has the package's name."""
    monkeypatch.syspath_prepend(str(folder))

    def put(package: str, code: str, **points: str) -> None:
        install(folder, package, {name: f"{package}:{kind}" for name, kind in points.items()}, {f"{package}.py": code})
        readouts._find.cache_clear()

    readouts._find.cache_clear()
    yield put
    readouts._find.cache_clear()


# --- the one on the page ---------------------------------------------------------------------------------------------


def page_package(folder: Path) -> dict[str, str]:
    """Install what the page shows; the environment in which a new process finds it."""
    files = page_files()
    project = files.pop("pyproject.toml")
    group, lines = re.search(r'\[project\.entry-points\."([\w.]+)"\]\n(.*)', project, re.DOTALL).groups()
    assert group == ENTRY_POINTS
    points = dict(re.findall(r'^(\w+) = "([\w:]+)"$', lines, re.MULTILINE))
    install(folder, re.search(r'name = "([\w-]+)"', project).group(1), points, files)
    return {**os.environ, "PYTHONPATH": str(folder)}


def python(environment: dict[str, str], *arguments: str) -> str:
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def tail_gap(values: np.ndarray, reference: np.ndarray) -> float:
    """The oracle: means of the lowest tenth, apart, in standard deviations of the reference."""

    def tail(x: np.ndarray) -> float:
        return float(np.partition(x, len(x) // 10)[: len(x) // 10].mean())

    return (tail(values) - tail(reference)) / float(reference.std(ddof=1))


def test_the_metric_on_the_page_has_at_most_60_lines():
    lines = [line for name, text in page_files().items() if name.endswith(".py") for line in text.splitlines()]
    assert 30 < len(lines) <= 60


def test_score_gives_the_metric_of_the_page_in_json_and_report_without_torchmetrics(folder):
    code = (
        "import sys\nfrom clipconformity.cli import main\n"
        f"assert main({options(folder, '--metrics', 'rare_tail')!r}) == 0\nassert 'torchmetrics' not in sys.modules\n"
        f"assert main({options(folder, '--metrics', 'all', '--report', str(folder / 'report.html'))!r}) == 0"
    )
    printed = python(page_package(folder), "-c", code)
    first, end = json.JSONDecoder().raw_decode(printed)
    second = json.loads(printed[end:])
    own, other = brute_conformity(EVALUATED, REFERENCE), brute_conformity(REFERENCE)
    assert first["rare_tail"] == pytest.approx(tail_gap(own, other), abs=1e-6)
    assert second["rare_tail"] == first["rare_tail"]
    assert "frechet" in second
    assert "frechet" not in first
    random = np.random.default_rng(0)
    draws = [tail_gap(random.choice(own, len(own)), random.choice(other, len(other))) for _ in range(2000)]
    assert first["rare_tail_se"] == pytest.approx(float(np.std(draws)), rel=0.2)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "mean conformity of the rarest tenth" in html
    assert "rare_tail" in html
    assert f"{first['rare_tail']:.2f}"[:-1] in html


METRIC = """
import pickle
import sys
import torch
from rare_tail_metric import RareTail
from torchmetrics import MetricCollection
from clipconformity import ConformityKL, ReferenceSet

reference = ReferenceSet.load(sys.argv[1])
rows = torch.from_numpy(__import__("numpy").load(sys.argv[2]))
whole = RareTail(reference)
whole.update(rows)
value = whole.compute()
split = RareTail(reference)
for part in rows.flip(0).split(40):
    split(part)
torch.testing.assert_close(split.compute(), value)
torch.testing.assert_close(pickle.loads(pickle.dumps(split)).compute(), value)
split.reset()
split.update(rows[:30])
assert split.compute() != value
split.reset()
split.update(rows)
torch.testing.assert_close(split.compute(), value)
without = RareTail(embed_dim=rows.shape[1])
without.update(rows + 1, real=True)
without.update(rows + 1)
torch.testing.assert_close(without.compute().isfinite(), torch.tensor(True))
together = MetricCollection([RareTail(reference), ConformityKL(reference)])
for part in rows.split(60):
    together.update(part)
found = together.compute()
assert set(found) == {"RareTail", "ConformityKL"}
torch.testing.assert_close(found["RareTail"], value)
small = RareTail(reference)
small.update(rows[:19])
try:
    small.compute()
except ValueError as error:
    assert "20" in str(error), error
else:
    raise AssertionError("19 samples are too few")
print(float(value))
"""


def test_its_torchmetrics_class_is_split_reset_pickled_and_collected(folder):
    printed = python(page_package(folder), "-c", METRIC, str(folder / "r.safetensors"), str(folder / "evaluated.npy"))
    expected = tail_gap(brute_conformity(EVALUATED, REFERENCE), brute_conformity(REFERENCE))
    assert float(printed) == pytest.approx(expected, abs=1e-5)


def test_its_error_counts_groups_and_not_rows_and_one_group_has_none(installed, folder):
    files = page_files()
    installed("page_groups", files["rare_tail.py"], rare_tail="RareTailReadOut")
    one = read_outs()["rare_tail"]
    reference = ReferenceSet.fit(REFERENCE)

    def error(groups: torch.Tensor, values: torch.Tensor) -> float:
        stream = Stream(choose_layouts(DIM, one.needs, reference, 10_000), reference=reference)
        stream.update(values, groups=groups)
        return float(one.figures(stream, resamples=300)["rare_tail_se"])

    alone = error(torch.arange(150), EVALUATED)
    assert error(torch.arange(150).repeat(4), EVALUATED.repeat(4, 1)) == pytest.approx(alone, rel=0.25)
    assert np.isnan(error(torch.zeros(150, dtype=torch.long), EVALUATED))


# --- what is refused -------------------------------------------------------------------------------------------------

OWN = """
import torch
from clipconformity.stream.readouts import Field, ReadOut

class Own(ReadOut):
    name = "{name}"
    fields = ({fields},)
    def read(self, stream):
        return {{"{given}": torch.tensor(1.0)}}
"""


def own(name: str = "own", fields: str = 'Field("own", "a figure of one\'s own")', given: str = "own") -> str:
    return OWN.format(name=name, fields=fields, given=given)


def reported(capsys, folder: Path, *more: str) -> str:
    """The one line of a command that must refuse."""
    capsys.readouterr()
    assert main(options(folder, *more)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


REFUSED = {
    "no_class": ("Own = 3", "own", "expected a subclass of ReadOut, got 3"),
    "other_class": ("class Own: pass", "own", "expected a subclass of ReadOut"),
    "no_read": (own().replace("def read", "def reed"), "own", "Own has no method 'read'"),
    "other_name": (own("another"), "own", "its ReadOut is called 'another'; give both the same name"),
    "no_name": (own().replace("name =", "title ="), "own", "its ReadOut is called None"),
    "no_fields": (own(fields=""), "own", "expected 'fields' to be a tuple of Field"),
    "text_fields": (own(fields='"own"'), "own", "expected 'fields' to be a tuple of Field, got"),
    "no_about": (own(fields='Field("own", "")'), "own", "field 'own': expected a name"),
    "taken_name": (own("frechet"), "frechet", "read-out 'frechet' is in clipconformity already"),
    "all_name": (own("all"), "all", "name 'all'"),
    "other_meaning": (own(fields='Field("norm_mean", "mine")'), "own", "field 'norm_mean' is 'mean norm of the raw"),
    "pair_meaning": (own(fields='Field("modality_gap", "mine")'), "own", "field 'modality_gap' is"),
    "json_key": (own(fields='Field("verdict", "mine")'), "own", "field 'verdict': the JSON of a score has this key"),
    "no_error": (own(fields='Field("own", "mine", error="own_se")'), "own", "'own_se' is none of the fields"),
    "no_value": (
        own().replace("def read", "value = 'mine'\n    def read"),
        "own",
        "value 'mine' is none of the fields",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_entry_point_is_refused_in_one_line_that_names_it(case, installed, folder, capsys):
    code, name, reason = REFUSED[case]
    code = code.replace("fields = (,)", "fields = ()")
    installed(f"wrong_{case}", code, **{name: "Own"})
    line = reported(capsys, folder)
    assert reason in line
    assert f"entry point {name!r} of package 'wrong_{case}'" in line


def test_two_packages_with_one_read_out_are_refused_and_both_named(installed, folder, capsys):
    installed("first_own", own(), own="Own")
    installed("second_own", own(), own="Own")
    line = reported(capsys, folder)
    assert "'first_own'" in line
    assert "'second_own'" in line
    assert "read-out 'own'" in line


def test_a_figure_that_the_fields_do_not_name_is_refused(installed, folder, capsys):
    installed("wrong_key", own(given="owm"), own="Own")
    assert "'own' returned owm, not among its fields" in reported(capsys, folder, "--metrics", "own")


MORE = """
import torch
from clipconformity.stream.readouts import Field, Needs, ReadOut

class More(ReadOut):
    name = "more"
    needs = Needs(rows=True)
    fields = (Field("more", "a figure"),)
    def read(self, stream):
        return {"more": stream.cache("rows", lambda: torch.tensor(float(len(stream.evaluated.good_sample().rows))))}
    def details(self, stream):
        return {"rows": int(self.read(stream)["more"]), "first": sorted(stream.evaluated.names.values())[0]}
    def columns(self, batch, reference):
        return {"first_entry": batch.embeddings[:, 0].tolist(), "word": ["=1+1"] * len(batch.embeddings)}
"""


def test_details_are_in_the_json_and_columns_in_the_csv(installed, folder, capsys):
    installed("with_more", MORE, more="More")
    assert main(options(folder, "--metrics", "more", "--per-sample", str(folder / "s.csv"))) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["details"] == {"more": {"rows": 150, "first": "evaluated:0"}}
    lines = [line.split(",") for line in (folder / "s.csv").read_text().splitlines()]
    assert lines[0] == ["id", "conformity", "norm", "rank", "first_entry", "word"]
    rows = {line[0]: line[4:] for line in lines[1:]}
    assert float(rows["evaluated:7"][0]) == pytest.approx(float(EVALUATED[7, 0]), rel=1e-6)
    assert rows["evaluated:7"][1] == "'=1+1"


def test_an_unknown_metric_is_refused_with_the_nearest_name(installed, folder, capsys):
    installed("right_own", own("sharpness"), sharpness="Own")
    line = reported(capsys, folder, "--metrics", "sharpnes")
    assert "'sharpnes' is unknown" in line
    assert "did you mean 'sharpness'?" in line


# --- what cannot be imported -----------------------------------------------------------------------------------------


def test_score_works_beside_an_entry_point_that_cannot_be_imported_and_tells_of_it_in_one_line(folder):
    install(folder, "broken-one", {"broken": "broken_one:Own"}, {"broken_one.py": "import a_module_that_is_not_there"})
    command = [sys.executable, "-m", "clipconformity", *options(folder, "--metrics", "all")]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert "frechet" in json.loads(run.stdout)
    assert run.stderr.count("\n") == 2  # and what was found and used
    assert run.stderr.count("warning") == 1
    assert "warning: metrics: entry point 'broken' of package 'broken-one' cannot be imported" in run.stderr


@pytest.mark.parametrize("code", ["raise RuntimeError('two\\nlines')", "Other = 1", "raise AssertionError"])
def test_however_it_fails_the_others_are_found_and_the_reason_is_one_line(code, installed):
    installed(f"broken_{len(code)}", code, broken="Own")
    assert set(BUILT_IN) <= set(read_outs())
    reason = failed_read_outs()["broken"]
    assert f"entry point 'broken' of package 'broken_{len(code)}' cannot be imported" in reason
    assert "\n" not in reason


def test_one_that_cannot_be_imported_is_an_error_where_it_is_asked_for(installed, folder, capsys):
    installed("broken_asked", "raise RuntimeError('the disk is gone')", broken="Own")
    line = reported(capsys, folder, "--metrics", "broken")
    assert "entry point 'broken' of package 'broken_asked' cannot be imported" in line
    assert "RuntimeError: the disk is gone" in line


# --- those of the library --------------------------------------------------------------------------------------------


def filled(needs: Needs, reference: ReferenceSet | None, real: bool = False) -> Stream:
    stream = Stream(choose_layouts(DIM, needs, reference, 10_000), reference=reference)
    references = list(EVALUATED[:, None].flip(0)) if needs.references else None
    partners = Partners(EVALUATED.flip(1), [1] * len(EVALUATED), references) if needs.partners else None
    stream.update(EVALUATED, partners=partners)
    if real:
        stream.update(REFERENCE, real=True)
    return stream


def test_the_library_has_the_read_outs_that_this_test_knows():
    assert set(BUILT_IN) <= set(read_outs())


@pytest.mark.parametrize("how", ["reference", "real rows"])
@pytest.mark.parametrize("name", sorted(read_outs()))
def test_a_read_out_gives_exactly_its_fields_where_there_is_a_reference(name, how):
    one = read_outs()[name]
    reference = ReferenceSet.fit(REFERENCE) if how == "reference" else None
    stream = filled(one.needs, reference, real=reference is None)
    read, resampled = one.read(stream), one.resample(stream, resamples=20)
    assert set(read) == {field.name for field in one.fields if field.computed} == set(one.names(compared=True))
    assert set(resampled) == {field.name for field in one.fields if not field.computed}
    figures = one.figures(stream, resamples=20)
    assert set(figures) == {field.name for field in one.fields}
    assert {value.shape for value in figures.values()} == {()}


@pytest.mark.parametrize("name", sorted(read_outs()))
def test_a_read_out_gives_exactly_its_other_fields_where_there_is_none_or_says_that_it_needs_one(name):
    one = read_outs()[name]
    stream = filled(one.needs, None)
    if all(field.compared for field in one.fields if field.computed):
        with pytest.raises(ValueError, match="there is no reference"):
            one.read(stream)
        return
    assert set(one.read(stream)) == set(one.names(compared=False))


def test_a_key_has_one_meaning_across_the_library():
    meanings = {}
    for field in [*PAIR_FIELDS, *(field for one in read_outs().values() for field in one.fields)]:
        assert meanings.setdefault(field.name, field) == field
    assert not RESERVED & set(meanings)


def test_every_read_out_and_field_says_what_it_is():
    for one in read_outs().values():
        assert type(one).__doc__
        assert len({field.name for field in one.fields}) == len(one.fields)
        there = {field.name for field in one.fields}
        for field in one.fields:
            assert field.about
            assert {field.error, *(field.interval or ())} - {None} <= there
        assert one.value is None or one.value in there


def test_reserved_keys_are_those_of_the_json_that_are_no_figures(folder):
    result = score(embedding_source([folder / "evaluated.npy"]), ReferenceSet.fit(REFERENCE), resamples=20)
    own = set(result.to_dict()) - set(result.figures) - {"kl_is_lower_bound"}
    assert own <= RESERVED
