"""An encoder may be named wherever one is taken: by its spec, or by the folder of a checkpoint."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from helpers import ellipsoid_rows

import clipconformity as cc
from clipconformity.encoders.registry import TINY
from clipconformity.provenance import Provenance

ALONE = ("EmbeddingNorm", "EllipsoidGeometry", "Conformity", "ConformityKL", "FrechetDistance", "GaussianLikelihood")
TEXTS = ["a red circle", "two blue squares", "a green star"]


@pytest.fixture(scope="module")
def tiny():
    return cc.load_encoder("tiny", device="cpu")


@pytest.mark.parametrize("name", [*ALONE, "ModalityGap"])
def test_every_metric_takes_the_name_of_an_encoder(name, tiny):
    metric = getattr(cc, name)(encoder="tiny")
    assert metric.embed_dim == tiny.embed_dim
    assert metric.encoder.spec == "tiny"


@pytest.mark.parametrize("spec", ["tiny", str(TINY), TINY], ids=["name", "folder", "path"])
def test_what_is_named_is_what_load_encoder_opens(spec, tiny):
    metric = cc.EmbeddingNorm(encoder=spec)
    metric.update(TEXTS)
    norms = torch.linalg.vector_norm(tiny.encode_text(TEXTS), dim=1)
    assert float(metric.compute()["norm_mean"]) == pytest.approx(float(norms.mean()), rel=1e-5)


def test_a_clone_shares_what_was_loaded_and_a_pickle_holds_the_spec():
    metric = cc.EmbeddingNorm(encoder="tiny")
    assert copy.deepcopy(metric).encoder is metric.encoder
    assert not metric.state_dict()
    data = pickle.dumps(metric)
    assert len(data) < 1_000_000  # the sums, not the 2 MB of weights
    assert pickle.loads(data).encoder.spec == "tiny"


def test_a_collection_loads_it_once(tiny):
    reference = cc.ReferenceSet.fit(ellipsoid_rows(100, tiny.embed_dim, torch.Generator().manual_seed(0)))
    metrics = cc.ConformityMetrics(reference, encoder="tiny")
    assert metrics.encoder.spec == "tiny"
    metrics.update(TEXTS)
    assert metrics.num_samples == 3


def test_another_encoder_than_the_references_is_refused(tiny):
    rows = ellipsoid_rows(100, tiny.embed_dim, torch.Generator().manual_seed(0))
    reference = cc.ReferenceSet.fit(rows, spec=tiny)
    assert cc.Conformity(reference, encoder="tiny").encoder.id == tiny.id
    reference.provenance = Provenance(tiny.spec, tiny.id | {"weights": "other"})
    with pytest.raises(ValueError, match="weights"):
        cc.Conformity(reference, encoder="tiny")


@pytest.mark.parametrize(
    "encoder", [3, torch.nn.Linear(2, 2), b"tiny", ["tiny"]], ids=["int", "module", "bytes", "list"]
)
@pytest.mark.parametrize("name", ["Conformity", "ModalityGap"])
def test_what_is_no_encoder_is_refused_in_one_line(name, encoder):
    with pytest.raises(TypeError, match="encoder: expected a spec such as 'tiny'.*got") as error:
        getattr(cc, name)(encoder=encoder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["tinny", Path("no/such/folder")])
def test_a_name_that_is_none_is_refused_as_by_load_encoder(spec):
    with pytest.raises(ValueError, match="is unknown: expected 'tiny'"):
        cc.Conformity(encoder=spec)
