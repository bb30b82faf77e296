"""The metrics of geometry: streams against numpy, torchmetrics and brute force, and the real data's figures."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from helpers import brute_conformity, double, ellipsoid_rows, unit
from torchmetrics.image.fid import FrechetInceptionDistance

import clipconformity as cc
from clipconformity.functional import SingularWarning, conformity_kl, ellipsoid, log_likelihood
from clipconformity.functional.likelihood import oas_shrinkage
from clipconformity.functional.population import Rows, unbiased_traces
from clipconformity.functional.resampling import jackknife
from clipconformity.stream.moments import assign_buckets
from clipconformity.stream.readouts.modality_gap import choose_independent_pairs
from clipconformity.stream.row_sample import hash_labels

DIM = 12


@pytest.fixture
def rows(generator):
    return ellipsoid_rows(400, DIM, generator)


@pytest.fixture
def texts(generator):
    return ellipsoid_rows(400, DIM, torch.Generator().manual_seed(1), offset=-1.0)


@pytest.fixture
def reference(generator):
    return cc.ReferenceSet.fit(ellipsoid_rows(900, DIM, torch.Generator().manual_seed(2)))


def streams(rows, texts, reference, size=64, **options):
    """Every metric of geometry after the rows in batches."""
    metrics = {
        "EllipsoidGeometry": cc.EllipsoidGeometry(embed_dim=DIM, **options),
        "FrechetDistance": cc.FrechetDistance(reference, **options),
        "GaussianLikelihood": cc.GaussianLikelihood(reference, **options),
        "ModalityGap": cc.ModalityGap(embed_dim=DIM, **options),
    }
    for name, metric in metrics.items():
        for image, text in zip(rows.split(size), texts.split(size), strict=True):
            metric.update(image, text) if name == "ModalityGap" else metric.update(image)
    return metrics


def numbers(value):
    return {k: float(v) for k, v in value.items()} if isinstance(value, dict) else {"value": float(value)}


def test_ellipsoid_geometry_equals_numpy(rows, texts, reference):
    found = numbers(streams(rows, texts, reference)["EllipsoidGeometry"].compute())
    v = double(rows)
    centered = v - v.mean(0)
    covariance = np.cov(v.T)
    spectrum = np.linalg.eigvalsh(covariance)
    distances = np.linalg.norm(centered, axis=1)
    off = np.abs(covariance).sum() - np.trace(covariance)
    correlation = np.abs(np.corrcoef(v.T))[~np.eye(DIM, dtype=bool)].mean()
    dominant = (np.diag(covariance) > np.abs(covariance).sum(1) - np.diag(covariance)).mean()
    expected = {
        "shell_mu": distances.mean(),
        "shell_variance": distances.var(ddof=1),
        "shell_ratio": distances.mean() ** 2 / distances.var(ddof=1),
        "participation_ratio": spectrum.sum() ** 2 / (spectrum**2).sum(),
        "spectrum_condition": spectrum[-1] / spectrum[0],
        "off_diagonal_ratio": off / np.trace(covariance),
        "diagonally_dominant": dominant,
        "mean_abs_correlation": correlation,
        "offset": np.linalg.norm(v.mean(0)) / math.sqrt(np.trace(covariance)),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert found["permuted_off_diagonal_ratio"] < found["off_diagonal_ratio"]


def test_rows_that_differ_by_rounding_alone_have_no_shape(rows, generator):
    metric = cc.EllipsoidGeometry(embed_dim=DIM)
    metric.update(rows[:1].double() + 1e-6 * torch.randn(90, DIM, generator=generator))
    with pytest.raises(ValueError, match="expected samples that differ, got equal ones"):
        metric.compute()


def test_the_condition_is_nan_where_the_rank_is_below_the_dimension(rows):
    metric = cc.EllipsoidGeometry(embed_dim=DIM)
    metric.update(rows[:8])
    assert bool(metric.compute()["spectrum_condition"].isnan())


@pytest.mark.parametrize(("offset", "known"), [(100, True), (1e5, False)])
def test_the_condition_is_nan_where_the_offset_hides_it(offset, known, generator):
    """Sums of squares round by the square of the offset: a least variance of 4e-6 comes out above twice of it."""
    rows = torch.randn(200, DIM, generator=generator, dtype=torch.float64)
    rows[:, 3] *= 2e-3
    spectrum = np.linalg.eigvalsh(np.cov(double(rows).T))
    metric = cc.EllipsoidGeometry(embed_dim=DIM)
    for batch in (rows + offset).split(37):
        metric.update(batch)
    found = float(metric.compute()["spectrum_condition"])
    assert found == pytest.approx(spectrum[-1] / spectrum[0] if known else math.nan, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("dim", [1, DIM])
def test_the_keys_are_the_same_for_every_batch(dim, rows):
    """A logger that meets a key for the first time at step 100 breaks its table."""
    metric = cc.EllipsoidGeometry(embed_dim=dim)
    keys = [set(metric(rows[:size, :dim])) for size in (0, 1, 8, 400)]
    assert all(found == set(metric.compute()) for found in keys)
    whole = numbers(metric.compute())
    missing = {name for name, value in whole.items() if math.isnan(value)}
    ends = {f"{name}_{end}" for name in ("off_diagonal_ratio", "mean_abs_correlation") for end in ("low", "high")}
    tilts = {"off_diagonal_ratio", "diagonally_dominant", "mean_abs_correlation"} | ends
    assert missing == (tilts | {f"permuted_{name}" for name in tilts - ends} if dim == 1 else set())


@pytest.mark.parametrize(("dtype", "spread"), [(torch.float32, 300.0), (torch.float32, 1e5), (torch.float64, 900.0)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_turned_spread_has_its_condition_whatever_the_batches(dtype, spread, offset):
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0]
    rows = torch.randn(3000, 64, generator=generator, dtype=torch.float64)
    rows = (rows * torch.logspace(0, -math.log10(spread), 64, dtype=torch.float64) @ turn + offset).to(dtype)
    spectrum = np.linalg.eigvalsh(np.cov(double(rows).T))
    found = []
    for size in (100, 1000, 3000):
        metric = cc.EllipsoidGeometry(embed_dim=64)
        for batch in rows.split(size):
            metric.update(batch)
        found.append(float(metric.compute()["spectrum_condition"]))
    condition = spectrum[-1] / spectrum[0]
    near = 1e-6 if dtype == torch.float64 else 1e-8 * condition  # what float32 products know of the largest
    expected = condition if condition < 1e6 else math.nan
    assert found == pytest.approx([expected] * 3, rel=near, nan_ok=True)


def test_the_figures_from_moments_stay_exact_beyond_the_row_sample(rows, texts, reference):
    few, all_of_them = (streams(rows, texts, reference, max_samples=k) for k in (50, 10_000))
    for name, keys in {
        "EllipsoidGeometry": ["participation_ratio", "off_diagonal_ratio", "offset", "mean_abs_correlation"],
        "FrechetDistance": ["value"],
        "GaussianLikelihood": ["log_likelihood_mean", "whitened_norm_mean"],
        "ModalityGap": ["modality_gap", "raw_modality_gap", "matched_cosine", "modality_gap_se"],
    }.items():
        exact, sampled = numbers(all_of_them[name].compute()), numbers(few[name].compute())
        for key in keys:
            assert sampled[key] == pytest.approx(exact[key], rel=1e-6), key


class _Features(torch.nn.Module):
    """Passes features through FID's interface."""

    num_features = DIM

    def forward(self, x):
        return x.flatten(1)


def test_frechet_distance_equals_torchmetrics_fid_on_the_same_features(rows, texts, reference, generator):
    real = ellipsoid_rows(900, DIM, torch.Generator().manual_seed(2))
    fid = FrechetInceptionDistance(feature=_Features(), input_img_size=(DIM, 1, 1), normalize=True)
    fid.update(real.double()[:, :, None, None], real=True)
    fid.update(rows.double()[:, :, None, None], real=False)
    ours = cc.FrechetDistance(embed_dim=DIM)
    for batch in real.split(100):
        ours.update(batch, real=True)
    ours.update(rows)
    assert float(ours.compute()) == pytest.approx(float(fid.compute()), rel=1e-3)
    assert float(streams(rows, texts, reference)["FrechetDistance"].compute()) == pytest.approx(
        float(ours.compute()), rel=1e-5
    )


def test_likelihood_is_that_of_torch_distributions_on_the_shrunk_covariance(rows, texts, reference):
    found = numbers(streams(rows, texts, reference)["GaussianLikelihood"].compute())
    shrinkage = found["likelihood_shrinkage"]
    covariance = reference.covariance
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / DIM * torch.eye(DIM)
    gaussian = torch.distributions.MultivariateNormal(reference.mean, shrunk.double())
    values = gaussian.log_prob(rows.double())
    assert found["log_likelihood_mean"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert found["log_likelihood_std"] == pytest.approx(float(values.std()), rel=1e-4)
    constant = DIM * math.log(2 * math.pi) + float(torch.logdet(shrunk.double()))
    assert found["whitened_norm_mean"] == pytest.approx(-2 * float(values.mean()) - constant, rel=1e-4)


def dependent(groups, each, seed):
    """Rows of which those of a group share half of what they are, and their groups."""
    draw = torch.Generator().manual_seed(seed)
    group = torch.arange(groups).repeat_interleave(each)
    noise, shared = (torch.randn(n, DIM, generator=draw) for n in (groups * each, groups))
    rows = (noise if each == 1 else math.sqrt(0.5) * (noise + shared[group])) * torch.linspace(0.3, 1.5, DIM)
    return rows + 0.4 * rows[:, :1] + 0.5, group


def shape_of(rows, group, **options):
    metric = cc.EllipsoidGeometry(embed_dim=DIM, **options)
    for batch, ids in zip(rows.split(170), group.split(170), strict=True):
        metric.update(batch, groups=ids)
    return numbers(metric.compute())


@pytest.mark.parametrize("each", [1, 4])
def test_the_intervals_of_a_shape_cover_what_they_say(each):
    """Fewer than 52 of 60 are covered in one of 200 cases where the coverage is 95%."""
    names = ("shell_ratio", "population_participation_ratio", "offset", "off_diagonal_ratio", "mean_abs_correlation")
    found = [shape_of(*dependent(80, each, seed)) for seed in range(1, 61)]
    truth = shape_of(*dependent(60_000, 1, 0))
    for name in names:
        expected = truth[name]
        if name in ("off_diagonal_ratio", "mean_abs_correlation"):  # of sets of this size
            expected = np.mean([one[name] for one in found])
        assert sum(one[f"{name}_low"] <= expected <= one[f"{name}_high"] for one in found) >= 52, name


@pytest.mark.parametrize("each", [1, 5])
def test_the_shape_of_a_population_beyond_the_row_sample_is_that_of_all_rows(each):
    rows, group = dependent(1000, each, 0)
    whole, sampled = shape_of(rows, group), shape_of(rows, group, max_samples=400)
    for name in ("population_participation_ratio", "offset_high", "offset_low", "off_diagonal_ratio_low"):
        width = whole[f"{name.rsplit('_low')[0].rsplit('_high')[0]}_high"] - whole[name]
        assert sampled[name] == pytest.approx(whole[name], abs=0.3 * abs(width) + 0.02 * whole[name]), name
    assert sampled["population_participation_ratio"] > 1.002 * sampled["participation_ratio"]


def test_few_rows_of_many_are_corrected_as_many(generator):
    """What the sample of 150 has too much of itself is a twentieth of that in all 3,000."""
    rows, group = ellipsoid_rows(3000, DIM, generator), torch.arange(3000)
    whole, sampled = shape_of(rows, group), shape_of(rows, group, max_samples=150)
    expected = whole["population_participation_ratio"]
    assert expected > 1.002 * whole["participation_ratio"]
    assert sampled["population_participation_ratio"] == pytest.approx(expected, rel=1e-3)
    metric = cc.EllipsoidGeometry(embed_dim=DIM, max_samples=150)
    metric.update(rows, groups=group)
    kept = double(metric._stream().evaluated.good_sample().rows)
    distances = np.linalg.norm(kept - double(rows).mean(0), axis=1)
    assert sampled["shell_mu"] == pytest.approx(distances.mean(), rel=1e-7)


def test_the_estimate_of_a_population_is_that_of_the_function_where_all_rows_are_kept(generator):
    rows, group = ellipsoid_rows(60, DIM, generator), torch.arange(60).square() % 17
    given = Rows.center(rows, group)
    known = unbiased_traces(given, given.centered.T @ given.centered)
    found = shape_of(rows, group)["population_participation_ratio"]
    assert found == pytest.approx(float(known.participation_ratio), rel=1e-5)


def test_four_groups_have_intervals_of_what_can_be_and_three_have_none(rows, generator):
    """One group is tilted against the three others, so that what is left of a tilt is that of any of them."""
    group = torch.arange(40) % 4
    turn = torch.where(group[:, None] == 0, 2.0 * (-1.0) ** torch.arange(DIM), 1.0)
    rows = rows[:40] + 9 * turn * torch.randn(40, 1, generator=generator)
    names = ("shell_ratio", "population_participation_ratio", "offset", "off_diagonal_ratio", "mean_abs_correlation")
    found = [shape_of(rows, one) for one in (group, group % 3)]
    assert all(found[0][f"{name}_low"] >= 0 for name in names)
    assert found[0]["off_diagonal_ratio_low"] == found[0]["mean_abs_correlation_low"] == 0
    assert all(math.isnan(found[1][f"{name}_{end}"]) for name in names for end in ("low", "high"))


def given_statistics(reference):
    """A covariance and whitening matrices of it, each way that a user may have them."""
    covariance = reference.covariance
    spectrum, axes = np.linalg.eigh(double(covariance))
    pca = torch.from_numpy((axes / np.sqrt(spectrum)).T)
    cholesky = torch.from_numpy(np.linalg.inv(np.linalg.cholesky(double(covariance))))
    return [{"covariance": covariance}, {"whitening": pca}, {"whitening": cholesky.float()}]


def test_likelihood_under_given_statistics_is_that_of_torch_distributions(rows, reference):
    values = torch.distributions.MultivariateNormal(reference.mean, reference.covariance).log_prob(rows.double())
    constant = DIM * math.log(2 * math.pi) + float(torch.logdet(reference.covariance))
    for statistics in given_statistics(reference):
        metric = cc.GaussianLikelihood(mean=reference.mean, **statistics)
        for batch in rows.split(64):
            metric.update(batch)
            metric.update(batch, real=True)  # there is nothing for them to be
        found = numbers(metric.compute())
        assert set(found) == {"log_likelihood_mean", "log_likelihood_se", "log_likelihood_std", "whitened_norm_mean"}
        assert found["log_likelihood_mean"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert found["log_likelihood_std"] == pytest.approx(float(values.std()), rel=1e-4)
        assert found["log_likelihood_se"] == pytest.approx(float(values.std()) / math.sqrt(len(rows)), rel=0.15)
        assert found["whitened_norm_mean"] == pytest.approx(-2 * float(values.mean()) - constant, rel=1e-4)
        for other in (metric.clone(), copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
            assert numbers(other.compute()) == found
        assert set(numbers(metric(rows[:1]))) == set(found)


def test_a_singular_given_covariance_is_told_and_used_on_its_range(rows, reference):
    flat = reference.covariance.clone()
    flat[:, 3] = flat[3] = 0
    with pytest.warns(SingularWarning, match=f"rank {DIM - 1} in {DIM}"):
        metric = cc.GaussianLikelihood(mean=reference.mean, covariance=flat)
    metric.update(rows)
    kept = [i for i in range(DIM) if i != 3]
    gaussian = torch.distributions.MultivariateNormal(reference.mean[kept], flat[kept][:, kept])
    expected = float(gaussian.log_prob(rows.double()[:, kept]).mean())
    assert float(metric.compute()["log_likelihood_mean"]) == pytest.approx(expected, rel=1e-5)


def test_statistics_that_do_not_fit_are_refused(reference):
    good = {"mean": reference.mean, "covariance": reference.covariance}
    with pytest.raises(ValueError, match="got both"):
        cc.GaussianLikelihood(reference, **good)
    with pytest.raises(ValueError, match="whitening: expected the mean of the same set"):
        cc.GaussianLikelihood(whitening=torch.eye(DIM), embed_dim=DIM)
    with pytest.raises(ValueError, match="expected one of the two, got none"):
        cc.GaussianLikelihood(mean=reference.mean)
    with pytest.raises(ValueError, match="embed_dim is 5 and mean has dimension 12"):
        cc.GaussianLikelihood(**good, embed_dim=5)


def test_shrinkage_follows_from_the_size_and_falls_with_it(reference):
    from sklearn.covariance import oas

    small = ellipsoid_rows(40, DIM, torch.Generator().manual_seed(3)).double()
    centered = small - small.mean(0)
    biased = centered.T @ centered / len(small)
    assert oas_shrinkage(biased, 39) == pytest.approx(float(oas(small.numpy())[1]), rel=0.15)
    assert oas_shrinkage(reference.covariance, 900) < oas_shrinkage(reference.covariance, 40)


def test_the_reference_likelihood_is_held_out():
    """At N near D the fitted set overfits by far; the held-out value does not."""
    draw = torch.Generator().manual_seed(4)
    fitted, fresh = (torch.randn(60, 40, generator=draw) * torch.linspace(0.2, 2, 40) + 3 for _ in range(2))
    metric = cc.GaussianLikelihood(cc.ReferenceSet.fit(fitted))
    metric.update(fresh)
    found = numbers(metric.compute())
    shrinkage = found["likelihood_shrinkage"]
    reference = cc.ReferenceSet.fit(fitted)
    in_sample = float(log_likelihood(fitted, reference.mean, reference.covariance, shrinkage).mean())
    assert in_sample - found["reference_log_likelihood"] > 5
    assert abs(found["log_likelihood_shift"]) < 1.5


def test_modality_gap_equals_brute_force(rows, texts, reference):
    metric = streams(rows, texts, reference)["ModalityGap"]
    found = numbers(metric.compute())
    u, w = unit(double(rows)), unit(double(texts))
    assert found["modality_gap"] == pytest.approx(np.linalg.norm(u.mean(0) - w.mean(0)), rel=1e-6)
    raw = np.linalg.norm(double(rows).mean(0) - double(texts).mean(0))
    assert found["raw_modality_gap"] == pytest.approx(raw, rel=1e-6)
    assert found["matched_cosine"] == pytest.approx((u * w).sum(1).mean(), rel=1e-5)
    own = [torch.from_numpy(brute_conformity(x)) for x in (rows, texts)]
    assert found["modality_kl"] == pytest.approx(float(conformity_kl(*own)), rel=1e-3, abs=1e-4)
    low, high = metric.interval(resamples=50)
    assert float(low) <= found["modality_kl"] <= float(high)


def pairs_of(groups, each, seed, apart):
    """Pairs of which those of a group share most of what they are, their groups, and both modalities' unit rows."""
    draw = torch.Generator().manual_seed(seed)
    group = torch.arange(groups).repeat_interleave(each)
    shared = torch.randn(groups, 6, generator=draw)[group]
    image, text = (0.6 * shared + 0.6 * torch.randn(len(group), 6, generator=draw) + 1 + s * apart for s in (1, -1))
    image, text = (x + 0.5 * torch.randn(groups, 6, generator=draw)[group] for x in (image, text))
    return image, text, group


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
@pytest.mark.parametrize("apart", [0.0, 0.4])
def test_captions_of_one_image_count_as_one(apart):
    """Over repeated draws the errors are right with groups and too small without; the squared gap has no bias."""
    big = [unit(double(x)).mean(0) for x in pairs_of(200_000, 1, 0, apart)[:2]]
    truth = float(((big[0] - big[1]) ** 2).sum())
    found = {"told": [], "untold": []}
    for seed in range(1, 41):
        *pair, group = pairs_of(60, 5, seed, apart)
        for name, ids in (("told", group), ("untold", None)):
            if ids is None and seed > 8:
                continue
            metric = cc.ModalityGap(embed_dim=6)
            metric.update(*pair, groups=ids)
            found[name].append(numbers(metric.compute()))
    reported, untold = ({key: np.array([one[key] for one in runs]) for key in runs[0]} for runs in found.values())
    squares = reported["squared_modality_gap"]
    assert np.mean(squares) == pytest.approx(truth, abs=4 * squares.std() / math.sqrt(40) + 1e-4)
    assert np.allclose(reported["modality_gap"] ** 2, reported["modality_gap_null"] ** 2 + squares, atol=1e-6)
    low, high = reported["modality_gap_low"] ** 2, reported["modality_gap_high"] ** 2
    assert np.sum((low <= truth + 1e-4) & (truth <= high)) >= 34  # below in one of 200 cases at 95%
    assert reported["matched_cosine_se"].mean() == pytest.approx(reported["matched_cosine"].std(), rel=0.35)
    smaller = ["matched_cosine_se"]
    if apart:
        assert reported["modality_gap_se"].mean() == pytest.approx(reported["modality_gap"].std(), rel=0.35)
        smaller.append("modality_gap_se")
    else:  # the gap is that of chance
        smaller.append("modality_gap_null")
        assert np.mean(reported["modality_gap"] ** 2) == pytest.approx(
            np.mean(reported["modality_gap_null"] ** 2), rel=0.3
        )
    for key in smaller:
        assert untold[key].mean() < 0.8 * reported[key].mean()


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
@pytest.mark.parametrize("apart", [0.1, 0.4])
def test_the_squared_gap_is_over_pairs_of_different_groups_and_its_interval_an_explicit_jackknife(apart):
    image, text, _ = pairs_of(60, 1, 3, apart)
    group = torch.arange(60).square() % 23  # of unequal size
    metric = cc.ModalityGap(embed_dim=6)
    for part in torch.arange(60).split(17):
        metric.update(image[part], text[part], groups=group[part])
    found = numbers(metric.compute())
    bucket = assign_buckets(hash_labels(group, 60, torch.device("cpu")))
    rows = torch.from_numpy(unit(double(image)) - unit(double(text)))
    products, other = rows @ rows.T, bucket[:, None] != bucket
    without = [(bucket != one)[:, None] & (bucket != one) & other for one in bucket.unique()]
    left = torch.stack([products[mask].mean() for mask in without])
    low, high = jackknife(products[other].mean(), left, torch.bincount(bucket).double()[bucket.unique()]).interval()
    assert found["squared_modality_gap"] == pytest.approx(float(products[other].mean()), rel=1e-6)
    assert (found["modality_gap_low"], found["modality_gap_high"]) == pytest.approx(
        (max(low, 0) ** 0.5, high**0.5), rel=1e-6
    )
    assert found["modality_gap_null"] == pytest.approx(
        math.sqrt(max(0, found["modality_gap"] ** 2 - found["squared_modality_gap"])), rel=1e-6
    )
    sides = metric._stream().sides
    kept = choose_independent_pairs(sides["image"], sides["text"])
    places = (image[:, None] == kept[0]).all(2).int().argmax(0)
    assert len(places) == len(group.unique()) == len(group[places].unique())
    assert torch.equal(kept[1], text[places])


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_groups_of_pairs_may_be_names_and_their_order_does_not_matter():
    image, text, group = pairs_of(60, 5, 1, 0.4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    values = []
    for kept, ids in (
        (torch.arange(300), group.tolist()),
        (order, group[order]),
        (order, [f"image {i}" for i in group[order]]),
    ):
        metric = cc.ModalityGap(embed_dim=6, max_samples=200)
        for part in torch.arange(300).split(70):
            metric.update(image[kept[part]], text[kept[part]], groups=[ids[i] for i in part])
        values.append(numbers(metric.compute()) | {"kl_high": metric.interval(resamples=30).high})
    assert values[1] == pytest.approx(values[0], rel=1e-5)
    assert values[2]["modality_gap"] == pytest.approx(values[0]["modality_gap"], rel=1e-6)
    assert values[2]["modality_gap_se"] == pytest.approx(values[0]["modality_gap_se"], rel=0.2)
    alone = cc.ModalityGap(embed_dim=6)
    alone.update(image, text, groups=[7] * 300)
    assert math.isnan(float(alone.compute()["modality_gap_low"]))
    with pytest.raises(ValueError, match="groups: expected one id for each of the 300 samples, got 299"):
        alone.update(image, text, groups=group[1:])


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_the_standard_error_of_the_gap_is_that_of_repeated_draws():
    errors, gaps = [], []
    for seed in range(60):
        draw = torch.Generator().manual_seed(seed)
        metric = cc.ModalityGap(embed_dim=6)
        metric.update(torch.randn(300, 6, generator=draw) + 1, torch.randn(300, 6, generator=draw) - 1)
        value = metric.compute()
        errors.append(float(value["modality_gap_se"]))
        gaps.append(float(value["modality_gap"]))
    assert np.mean(errors) == pytest.approx(np.std(gaps, ddof=1), rel=0.3)  # known to 1/sqrt(2 * 60) = 9%


def test_batches_order_merge_clone_and_pickle_do_not_matter(rows, texts, reference):
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(5))
    at_once = streams(rows, texts, reference, size=400)
    shuffled = streams(rows[order], texts[order], reference, size=37)
    first = streams(rows[:150], texts[:150], reference)
    second = streams(rows[150:], texts[150:], reference)
    for name, metric in at_once.items():
        expected = numbers(metric.compute())
        first[name].merge_state(second[name])
        for other in (shuffled[name], first[name], metric.clone(), pickle.loads(pickle.dumps(metric))):
            assert numbers(other.compute()) == pytest.approx(expected, rel=2e-5, abs=1e-5), name


def test_forward_accumulates_and_a_small_batch_is_nan_alone(rows, texts, reference):
    whole = streams(rows, texts, reference)
    for name, metric in streams(rows[:20], texts[:20], reference).items():
        metric.reset()
        for part in (slice(0, 399), slice(399, 400)):
            batch = (rows[part], texts[part]) if name == "ModalityGap" else (rows[part],)
            last = metric(*batch)
        assert all(math.isnan(x) for x in numbers(last).values()), name
        expected = numbers(whole[name].compute())
        assert numbers(metric.compute()) == pytest.approx(expected, rel=1e-5, abs=1e-5), name


def test_states_stay_float64_in_a_half_module(rows, texts, reference):
    for name, metric in streams(rows, texts, reference).items():
        expected = numbers(metric.compute())
        parent = torch.nn.Module()
        parent.metric = copy.deepcopy(metric)
        parent.half().to(torch.bfloat16)
        parent.metric._computed = None
        assert numbers(parent.metric.compute()) == expected, name


@pytest.mark.parametrize("size", [3000, 500])
def test_both_sides_of_a_gap_sample_the_same_pairs_in_the_same_order(size, generator):
    """An interval redraws pairs: row i of one sample must belong to row i of the other."""
    images = ellipsoid_rows(3000, DIM, generator)
    metric = cc.ModalityGap(embed_dim=DIM, max_samples=size)
    for batch in images.split(700):
        metric.update(batch, 2 * batch)
    image, text = (side.good_sample().rows for side in metric._stream().sides.values())
    assert len(image) == size
    assert torch.equal(text, 2 * image)


def test_bad_input_is_refused(rows, texts, reference):
    gap = cc.ModalityGap(embed_dim=DIM)
    with pytest.raises(ValueError, match="expected pairs, got 400 images and 399 texts"):
        gap.update(rows, texts[1:])
    with pytest.raises(ValueError, match="dimension 5 and this metric has dimension 12"):
        gap.update(rows[:, :5], texts[:, :5])
    gap.update(rows[:5], texts[:5])
    with pytest.raises(ValueError, match="at least 10 samples"):
        gap.compute()
    for metric in (cc.FrechetDistance(embed_dim=DIM), cc.GaussianLikelihood(embed_dim=DIM)):
        metric.update(rows)
        with pytest.raises(ValueError, match="there is no reference"):
            metric.compute()
    equal = cc.EllipsoidGeometry(embed_dim=DIM)
    equal.update(rows[:1].expand(20, DIM))
    with pytest.raises(ValueError, match="samples that differ"):
        equal.compute()
    for kind in (cc.EllipsoidGeometry, cc.ModalityGap, cc.FrechetDistance, cc.GaussianLikelihood):
        with pytest.raises(ValueError, match="embed_dim"):
            kind()


def test_the_real_images_have_their_published_figures(images):
    metric = cc.EllipsoidGeometry(embed_dim=512)
    for batch in images.split(250):
        metric.update(batch)
    found = numbers(metric.compute())
    assert found["shell_mu"] ** 2 == pytest.approx(50.149, abs=5e-4)
    assert found["shell_variance"] == pytest.approx(0.2402, abs=5e-5)
    assert found["offset"] == pytest.approx(1.1318, abs=5e-5)
    assert found["participation_ratio"] == pytest.approx(14.29, abs=5e-3)
    spectrum = np.linalg.eigvalsh(np.cov(double(images).T))
    assert spectrum[-1] / spectrum[0] > 1e9
    assert math.isnan(found["spectrum_condition"])
    assert float(ellipsoid(images.double()).condition) == pytest.approx(spectrum[-1] / spectrum[0], rel=1e-4)
    assert found["off_diagonal_ratio"] == pytest.approx(76.056, abs=5e-4)


def test_the_real_pairs_have_their_published_figures(data_dir):
    pairs = torch.from_numpy(np.load(data_dir / "vitb16-coco-pairs-500-unit.npy"))
    metric = cc.ModalityGap(embed_dim=512, allow_normalized=True)
    for image, text in zip(pairs[0].split(99), pairs[1].split(99), strict=True):
        metric.update(image, text)
    found = numbers(metric.compute())
    assert found["modality_gap"] == pytest.approx(0.851352, abs=5e-7)
    assert found["matched_cosine"] == pytest.approx(0.309919, abs=5e-7)
