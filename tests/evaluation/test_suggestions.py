"""A name from elsewhere is refused with the name that gives it here."""

from __future__ import annotations

import pytest
import torch

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.evaluation import embedding_source, score
from clipconformity.evaluation.scoring import CORE, choose_read_outs, metric_names
from clipconformity.evaluation.suggestions import OTHER_NAMES, suggest_metric
from clipconformity.stream.readouts import read_outs


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("fid", "frechet"),
        ("FID", "frechet"),
        ("CLIP-FID", "frechet"),
        ("kid", "cosine_mmd"),
        ("mmd", "cosine_mmd"),
        ("is", "vendi"),
        ("inception_score", "vendi"),
        ("clipscore", "clip_score"),
        ("CMMD", "cmmd"),
        ("cosine-mmd", "cosine_mmd"),
        ("precision", "prdc"),
        ("recall", "prdc"),
        ("Density", "prdc"),
        ("coverage", "prdc"),
        ("rke", "vendi"),
        ("authenticity", "nearest"),
        ("frechett", "frechet"),
    ],
)
def test_a_name_from_elsewhere_is_refused_with_the_metric_that_gives_it(name, meant):
    with pytest.raises(ValueError, match=f"metrics: '{name}' is unknown: .*; did you mean '{meant}'(,|\\?)"):
        choose_read_outs([name])
    assert choose_read_outs([meant], paired=True)


def test_what_differs_from_that_name_is_said():
    known = read_outs()
    assert "not of Inception features" in suggest_metric("fid", known, CORE)
    assert "KID has a cubic one on Inception features" in suggest_metric("kid", known, CORE)
    assert "needs a classifier" in suggest_metric("is", known, CORE)


def test_a_figure_of_every_score_is_not_to_be_asked_for():
    with pytest.raises(ValueError, match=r"'p_value' is unknown: .*; every score has it, leave it out\."):
        choose_read_outs(["p_value"])


def test_every_other_name_leads_to_a_metric_and_is_none_itself():
    known = read_outs()
    assert {meant for meant, _ in OTHER_NAMES.values()} <= set(metric_names())
    assert not set(OTHER_NAMES) & {"".join(filter(str.isalnum, one)) for one in known}


@pytest.fixture
def files(tmp_path):
    rows, real = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0)) + 1
    cc.ReferenceSet.fit(real).save(tmp_path / "reference.safetensors")
    torch.save(rows, tmp_path / "rows.pt")
    return ["--embeddings", str(tmp_path / "rows.pt"), "--reference", str(tmp_path / "reference.safetensors")]


@pytest.mark.parametrize(
    ("required", "end"),
    [
        ("frechet<10", "; 'frechet' comes with --metrics frechet."),
        ("precision>=0.5", "; 'precision' comes with --metrics prdc."),
        (
            "fid<10",
            "; did you mean 'frechet'? It is the Frechet distance of the raw embeddings, not of Inception features: "
            "published FIDs do not compare. 'frechet' comes with --metrics frechet.",
        ),
        ("variety>=0.9", "; did you mean 'variety_ratio'?"),
    ],
)
def test_a_required_figure_that_is_not_there_is_told_with_what_gives_it(required, end, files, capsys):
    assert main(["score", *files, "--require", required]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.rstrip().endswith(end), error


def test_spaces_between_names_of_metrics_change_nothing(files, capsys):
    assert main(["score", *files, "--metrics", "vendi, cosine_mmd"]) == 0
    spaced = capsys.readouterr().out
    assert main(["score", *files, "--metrics", "vendi,cosine_mmd"]) == 0
    assert capsys.readouterr().out == spaced


def test_score_in_python_says_the_same(files):
    reference = cc.ReferenceSet.load(files[-1])
    with pytest.raises(ValueError, match="did you mean 'frechet'"):
        score(embedding_source([files[1]]), reference, metrics=("fid",))
