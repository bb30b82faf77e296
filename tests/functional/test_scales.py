"""Scales: every function and metric is right, or refuses with one rule, whatever the scale of the embeddings."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import ellipsoid_rows

import clipconformity as cc
from clipconformity import functional as F
from clipconformity.functional.validation import MAX_NORM, MIN_NORM

SCALES = [1e-50, 1e-30, 1e-20, 1e-17, 1e-13, 1e-6, 1e6, 1e13, 1e17, 1e19, 1e30, 1e50]
REFUSED = r"norm outside 1e-15 to 1e\+15.*rescale"
UNITS = {"mu": 1, "variance": 2, "mu_squared": 2, "raw_gap": 1, "raw_modality_gap": 1}
UNITS |= {"shell_mu": 1, "shell_variance": 2, "norm_mean": 1, "norm_std": 1, "norm_se": 1}
DEALT = (
    "permuted_",
    "modality_gap_se",
    "modality_gap_null",
    "matched_cosine_se",
    "squared_modality_gap",
    "conformity_se",
    "self_conformity_se",
)
"""What rests on random columns, or on buckets that rows are dealt to by their content."""
ENDS = ("_low", "_high")
"""Figures that deal rows out by the hash of their content, which another scale changes."""


def gaussian_of(rows):
    values = rows.double()
    return values.mean(0), torch.cov(values.T)


def streamed(metric, *batches, **options):
    metric.update(*batches, **options)
    return metric.compute()


def against_real(kind, image, text):
    metric = kind(embed_dim=image.shape[1])
    metric.update(image, real=True)
    metric.update(text)
    return metric.compute()


# Each gives a dict or tensors of figures without units, or with the units named in UNITS.
CALLS = {
    "conformity": lambda x, y: F.conformity(x, y),
    "own conformity": lambda x, y: F.conformity(x),
    "self_conformity": lambda x, y: F.self_conformity(x),
    "estimated_conformity": lambda x, y: F.estimated_conformity(x),
    "conformity_fit": lambda x, y: F.conformity_fit(x)._asdict(),
    "norm_statistics": lambda x, y: F.norm_statistics(x).conformity_correlation,
    "thin_shell": lambda x, y: F.thin_shell(x)._asdict(),
    "ellipsoid": lambda x, y: F.ellipsoid(x).participation_ratio,
    "tilt": lambda x, y: F.tilt(x)._asdict(),
    "offset": lambda x, y: F.offset(x),
    "modality_gap": lambda x, y: F.modality_gap(x, y)._asdict(),
    "alignment": lambda x, y: F.alignment(x, y),
    "uniformity": lambda x, y: F.uniformity(x),
    "nt_xent": lambda x, y: F.nt_xent(x, y, 10.0),
    "frechet": lambda x, y: F.frechet_distance(x, y) / F.norm_statistics(x).mean ** 2,
    "whiten": lambda x, y: F.whiten(x.double(), *gaussian_of(y)),
    "log_likelihood": lambda x, y: F.log_likelihood(x.double(), *gaussian_of(y)).diff(),
    "separability": lambda x, y: F.linear_separability(x, y).held_out_accuracy,
    "shift": lambda x, y: F.conformity(F.shift(x, 0.5)),
    "shift_grid": lambda x, y: F.shift_grid(x, y, [0.0, 1.0], [0.0, 0.5], 10.0).loss,
    "shift_sweep": lambda x, y: F.shift_sweep(x, y, [0.0, 1.0], 10.0, resamples=20).loss,
    "slerp": lambda x, y: F.conformity(F.slerp(x, y, 0.5)),
    "vslerp": lambda x, y: F.conformity(F.vslerp(x, y, 0.5, x.mean(0))),
    "ReferenceSet": lambda x, y: cc.ReferenceSet.fit(x).conformities.sort().values,
    "Conformity": lambda x, y: streamed(cc.Conformity(embed_dim=x.shape[1]), x),
    "Conformity, real": lambda x, y: against_real(cc.Conformity, x, y),
    "ConformityKL": lambda x, y: against_real(cc.ConformityKL, x, y),
    "EmbeddingNorm": lambda x, y: streamed(cc.EmbeddingNorm(embed_dim=x.shape[1]), x)["norm_conformity_correlation"],
    "EllipsoidGeometry": lambda x, y: streamed(cc.EllipsoidGeometry(embed_dim=x.shape[1]), x),
    "ModalityGap": lambda x, y: streamed(cc.ModalityGap(embed_dim=x.shape[1]), x, y),
    "FrechetDistance": lambda x, y: against_real(cc.FrechetDistance, x, y) / F.norm_statistics(x).mean ** 2,
    "GaussianLikelihood": lambda x, y: against_real(cc.GaussianLikelihood, x, y)["log_likelihood_std"],
}


def figures(name, image, text, scale=1.0):
    found = CALLS[name](image, text)
    found = found if isinstance(found, dict) else {"value": found}
    kept = {key: value for key, value in found.items() if not key.startswith(DEALT) and not key.endswith(ENDS)}
    return {key: value.double() / scale ** UNITS.get(key, 0) for key, value in kept.items()}


@pytest.fixture(scope="module")
def pair():
    image, text = (ellipsoid_rows(120, 6, torch.Generator().manual_seed(seed), offset=0.5) for seed in (0, 1))
    return image.double(), text.double()


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_scale_gives_the_same_or_is_refused_by_the_same_rule(name, dtype, pair):
    expected = figures(name, *(x.to(dtype) for x in pair))
    for scale in SCALES:
        rows = [(x * scale).to(dtype) for x in pair]
        if dtype == torch.float32 and not 1e-40 < scale < 1e30:  # zero or infinite in float32: another message
            with pytest.raises(ValueError, match=r"NaN or infinite|norm outside|eigenvalues above 0"):
                figures(name, *rows)
        elif MIN_NORM < scale < MAX_NORM / 50:
            found = figures(name, *rows, scale)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=2e-5, atol=1e-5, msg=f"{name} {key} at {scale}")
        else:
            with pytest.raises(ValueError, match=REFUSED):
                figures(name, *rows)


@pytest.mark.parametrize("norm", [MIN_NORM / 1.001, MAX_NORM * 1.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_row_out_of_range_is_refused_by_function_and_stream_alike(norm, dtype, pair):
    rows = pair[0].to(dtype)
    rows[7] *= norm / rows[7].norm()
    with pytest.raises(ValueError, match=rf"1 of 120 rows have a {REFUSED}"):
        F.self_conformity(rows)
    metric = cc.Conformity(embed_dim=6)
    assert math.isnan(float(metric(rows)["conformity_mean"]))  # forward does not raise for what the values are
    with pytest.raises(ValueError, match=rf"1 of 120 embeddings had a {REFUSED}"):
        metric.compute()
    with pytest.raises(ValueError, match=REFUSED):
        cc.ReferenceSet.fit(rows)


def test_pairs_of_small_embeddings_have_their_matched_cosine(pair):
    """torch's cosine_similarity takes norms below 1e-8 for 1e-8."""
    image, text = pair
    metric = cc.ModalityGap(embed_dim=6)
    metric.update(image * 1e-12, text * 1e-12)
    expected = torch.nn.functional.cosine_similarity(image, text).mean()
    assert float(metric.compute()["matched_cosine"]) == pytest.approx(float(expected), rel=1e-6)
