"""The torchmetrics classes, against numpy, and what torchmetrics promises of every metric."""

from __future__ import annotations

import copy
import math
import pickle

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers import brute_conformity, brute_self_conformity, double, ellipsoid_rows, unit
from torch import Tensor, nn
from torchmetrics import MetricCollection

import clipconformity as cc
from clipconformity.stream.readouts.base import read_sample
from clipconformity.stream.readouts.conformity import own_set_values
from clipconformity.stream.readouts.norm import compute_sampled_norms

mpl.use("Agg")

DIM = 12
CLASSES = {"Conformity": cc.Conformity, "ConformityKL": cc.ConformityKL, "EmbeddingNorm": cc.EmbeddingNorm}


@pytest.fixture(scope="module")
def reference_rows() -> Tensor:
    return ellipsoid_rows(800, DIM, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def reference(reference_rows) -> cc.ReferenceSet:
    return cc.ReferenceSet.fit(reference_rows)


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return ellipsoid_rows(200, DIM, torch.Generator().manual_seed(2), offset=1.1)


def make(name: str, reference: cc.ReferenceSet | None, **options):
    """A metric with a reference where it takes one."""
    if name == "EmbeddingNorm" or reference is None:
        return CLASSES[name](embed_dim=DIM, **options)
    return CLASSES[name](reference, **options)


def fed(metric, rows: Tensor, size: int = 64):
    for batch in rows.split(size):
        metric.update(batch)
    return metric


def numbers(value) -> dict[str, float]:
    return {k: float(v) for k, v in value.items()} if isinstance(value, dict) else {"value": float(value)}


def assert_equal(found, expected, rtol: float = 1e-6) -> None:
    found, expected = numbers(found), numbers(expected)
    assert found == pytest.approx(expected, rel=rtol, abs=1e-7, nan_ok=True)


every_metric = pytest.mark.parametrize("name", CLASSES)


# --- values against numpy --------------------------------------------------------------------------------------------


def conformity_oracle(rows: Tensor, reference_rows: Tensor) -> dict[str, float]:
    c, q = brute_conformity(rows, reference_rows), brute_conformity(reference_rows)
    return {
        "conformity_mean": c.mean(),
        "conformity_std": c.std(ddof=1),
        "conformity_q05": np.quantile(c, 0.05),
        "conformity_q50": np.quantile(c, 0.5),
        "conformity_q95": np.quantile(c, 0.95),
        "self_conformity_mean": brute_self_conformity(rows),
        "typicality_shift": (c.mean() - q.mean()) / q.std(ddof=1),
        "variety_ratio": (1 - brute_self_conformity(rows)) / (1 - brute_self_conformity(reference_rows)),
        "spread_ratio": c.std(ddof=1) / q.std(ddof=1),
    }


ENDS = {f"{name}_{end}" for name in ("typicality_shift", "variety_ratio", "spread_ratio") for end in ("low", "high")}
UNCERTAIN = {"conformity_se", "self_conformity_se", *ENDS}
"""What rests on the buckets, whose tests are those of the intervals."""


def own_set_oracle(rows: Tensor) -> dict[str, float]:
    c = brute_conformity(rows)
    levels = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
    result = {"conformity_mean": c.mean(), "conformity_std": c.std(ddof=1), "self_conformity_mean": c.mean()}
    return result | {f"conformity_{name}": np.quantile(c, q) for name, q in levels.items()}


def norm_oracle(rows: Tensor) -> dict[str, float]:
    values = double(rows)
    result = {}
    for kind, norms in (
        ("", np.linalg.norm(values, axis=1)),
        ("centered_", np.linalg.norm(values - values.mean(0), axis=1)),
    ):
        result |= {f"{kind}norm_mean": norms.mean(), f"{kind}norm_std": norms.std(ddof=1)}
        result |= {f"{kind}norm_q{level:02d}": np.quantile(norms, level / 100) for level in (5, 50, 95)}
    norms = np.linalg.norm(values, axis=1)
    result["norm_conformity_correlation"] = np.corrcoef(norms, brute_conformity(rows))[0, 1]
    return result


def assert_has(value: dict[str, Tensor], expected: dict[str, float], others: set[str] = frozenset()) -> None:
    found = numbers(value)
    assert set(found) == set(expected) | set(others)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_conformity_equals_numpy_whatever_the_batches(size, rows, reference, reference_rows):
    value = fed(cc.Conformity(reference), rows, size).compute()
    assert_has(value, conformity_oracle(rows, reference_rows), UNCERTAIN)


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_conformity_inside_the_own_set_equals_numpy(size, rows):
    value = fed(cc.Conformity(embed_dim=DIM), rows, size).compute()
    assert_has(value, own_set_oracle(rows), {"conformity_se", "self_conformity_se"})


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_norms_equal_numpy_whatever_the_batches(size, rows):
    assert_has(fed(cc.EmbeddingNorm(embed_dim=DIM), rows, size).compute(), norm_oracle(rows), {"norm_se"})


@pytest.mark.parametrize("size", [1, 7, 64])
def test_kl_is_the_same_whatever_the_batches(size, rows, reference):
    whole = fed(cc.ConformityKL(reference), rows, 200)
    assert_equal(fed(cc.ConformityKL(reference), rows, size).compute(), whole.compute())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_metrics_take_every_precision(dtype, rows, reference, reference_rows):
    given = rows.to(dtype)
    value = fed(cc.Conformity(reference), given).compute()
    assert_has(value, conformity_oracle(given, reference_rows), UNCERTAIN)
    assert_has(fed(cc.EmbeddingNorm(embed_dim=DIM), given).compute(), norm_oracle(given), {"norm_se"})


def test_values_are_scalars_under_names_that_no_collection_must_change(rows, reference):
    value = fed(cc.ConformityMetrics(reference), rows).compute()
    separate = [numbers(fed(make(name, reference), rows).compute()) for name in ("Conformity", "EmbeddingNorm")]
    assert set(value) == {"conformity_kl", *separate[0], *separate[1]}
    assert not set(separate[0]) & set(separate[1])
    assert all(isinstance(v, Tensor) and v.shape == () for v in value.values())


def test_means_stay_exact_beyond_max_samples_and_the_rest_is_marked(reference_rows, reference):
    rows = ellipsoid_rows(2000, DIM, torch.Generator().manual_seed(3))
    metric = fed(cc.Conformity(reference, max_samples=300), rows)
    expected = conformity_oracle(rows, reference_rows)
    value = numbers(metric.compute())
    means = ("conformity_mean", "conformity_std", "self_conformity_mean", "typicality_shift", "variety_ratio")
    for name in (*means, "spread_ratio"):
        assert value[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-6)
    # A median of 300 rows has a standard error of 1.25 std/sqrt(300).
    assert value["conformity_q50"] == pytest.approx(
        expected["conformity_q50"], abs=4 * 1.25 * expected["conformity_std"] / math.sqrt(300)
    )
    assert not metric.exact
    assert fed(cc.Conformity(reference, max_samples=2000), rows).exact


def test_figures_of_the_own_set_are_under_the_mean_of_all_rows():
    """Of 100 rows out of 1,500: each conformity, and each distance from the mean, is that of the row in the whole."""
    rows = ellipsoid_rows(1500, DIM, torch.Generator().manual_seed(3))
    stream = fed(cc.EmbeddingNorm(embed_dim=DIM, max_samples=100), rows)._stream()
    moments, (norms, centered) = stream.read_side(), compute_sampled_norms(stream)
    values = double(rows)
    chosen = [int((rows == row).all(1).nonzero()) for row in moments.good_sample().rows]
    assert len(chosen) == 100
    np.testing.assert_allclose(own_set_values(moments, read_sample(stream)), brute_conformity(rows)[chosen], rtol=1e-9)
    np.testing.assert_allclose(norms, np.linalg.norm(values, axis=1)[chosen], rtol=1e-9)
    np.testing.assert_allclose(centered, np.linalg.norm(values - values.mean(0), axis=1)[chosen], rtol=1e-9)


def test_the_ends_of_ratios_are_those_of_their_logarithms(rows, reference):
    metric = fed(cc.Conformity(reference), rows)
    value, contrast = numbers(metric.compute()), metric._stream().contrast("test")
    for name, estimate in (("spread_ratio", contrast.log_spread_ratio), ("variety_ratio", contrast.log_variety_ratio)):
        low, high = (math.exp(end) for end in estimate.interval(0.95))
        assert (value[f"{name}_low"], value[f"{name}_high"]) == pytest.approx((low, high))
    ends = contrast.typicality_shift.interval(0.95)
    assert (value["typicality_shift_low"], value["typicality_shift_high"]) == pytest.approx(tuple(ends))


@every_metric
def test_the_order_of_batches_changes_nothing_beyond_max_samples(name, reference):
    rows = ellipsoid_rows(1000, DIM, torch.Generator().manual_seed(3))
    one, two = (
        numbers(fed(make(name, reference, max_samples=100), part, 33).compute()) for part in (rows, rows.flip(0))
    )
    assert one == pytest.approx(two, rel=1e-5)


def test_copies_are_typical_but_not_varied(reference, reference_rows):
    """What conformity to the reference cannot see, self-conformity shows."""
    row = reference_rows[int(np.argsort(brute_conformity(reference_rows))[len(reference_rows) // 2])]
    noise = torch.randn(300, DIM, generator=torch.Generator().manual_seed(0))
    value = numbers(fed(cc.Conformity(reference), row + 0.05 * noise).compute())
    assert abs(value["typicality_shift"]) < 0.5
    assert value["self_conformity_mean"] > 0.95 > float(reference.self_conformity) + 0.1


# --- construction ----------------------------------------------------------------------------------------------------


class FakeEncoder(nn.Module):
    """An encoder that is a module with weights, counts its calls, and takes texts and images."""

    spec = "fake:weights"
    embed_dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))
        self.calls = 0

    def forward(self, batch) -> Tensor:
        self.calls += 1
        if isinstance(batch, Tensor):
            return batch.float().flatten(1)[:, :DIM] * self.weight
        seeds = (sum(map(ord, text)) for text in batch)
        return torch.stack([torch.randn(DIM, generator=torch.Generator().manual_seed(s)) + 1 for s in seeds])


TEXTS = [f"a photo of {i} cats" for i in range(30)]


@every_metric
def test_without_any_of_the_three_ways_construction_names_them(name):
    with pytest.raises(ValueError, match=r"give a reference \(ReferenceSet\), an encoder, or embed_dim"):
        CLASSES[name]()


@pytest.mark.parametrize("name", ["Conformity", "ConformityKL"])
def test_each_of_the_three_ways_is_enough(name, reference):
    for metric in (CLASSES[name](reference), CLASSES[name](encoder=FakeEncoder()), CLASSES[name](embed_dim=DIM)):
        assert metric.embed_dim == DIM


def test_ways_that_contradict_each_other_are_refused(reference):
    with pytest.raises(ValueError, match="dimensions differ: {'reference': 12, 'embed_dim': 13}"):
        cc.Conformity(reference, embed_dim=13)


def test_a_reference_of_another_type_is_refused(reference_rows):
    with pytest.raises(TypeError, match="reference: expected a ReferenceSet, got Tensor"):
        cc.ConformityKL(reference_rows)


def test_an_unknown_option_is_refused(reference):
    with pytest.raises(ValueError, match="Unexpected keyword arguments"):
        cc.Conformity(reference, sample_size=3)


@every_metric
def test_the_torchmetrics_attributes_are_set(name, reference):
    metric = make(name, reference)
    assert metric.full_state_update is False
    assert metric.is_differentiable is False
    assert metric.higher_is_better is (False if name == "ConformityKL" else None)
    assert metric.plot_lower_bound is not None
    assert all(getattr(f, "__name__", "") != "<lambda>" for f in metric._reductions.values())
    pickle.dumps(metric._reductions)


# --- forward, reset, clone, pickle -----------------------------------------------------------------------------------


def test_forward_gives_the_batch_and_accumulates_everything(rows, reference, reference_rows):
    metric = cc.Conformity(reference)
    for batch in rows.split(64):
        assert_has(metric(batch), conformity_oracle(batch, reference_rows), UNCERTAIN)
    assert_has(metric.compute(), conformity_oracle(rows, reference_rows), UNCERTAIN)


def test_forward_of_norms_gives_the_batch_and_accumulates_everything(rows):
    metric = cc.EmbeddingNorm(embed_dim=DIM)
    for batch in rows.split(64):
        assert_has(metric(batch), norm_oracle(batch), {"norm_se"})
    assert_has(metric.compute(), norm_oracle(rows), {"norm_se"})


@every_metric
def test_a_last_batch_of_one_sample_loses_nothing(name, rows, reference):
    metric = make(name, reference)
    values = [numbers(metric(batch)) for batch in rows[:193].split(64)]
    assert [len(batch) for batch in rows[:193].split(64)][-1] == 1
    assert all(math.isfinite(x) for value in values[:-1] for x in value.values())
    assert all(math.isnan(x) for x in values[-1].values())
    assert set(values[-1]) == set(values[0])
    assert_equal(metric.compute(), fed(make(name, reference), rows[:193], 193).compute())


def test_forward_never_raises_for_values(rows, reference):
    """Only compute raises: a row that is NaN gives NaN for its batch, and the stream goes on."""
    bad = rows[:50].clone()
    bad[3] = math.nan
    for name in CLASSES:
        metric = make(name, reference)
        assert all(math.isnan(x) for x in numbers(metric(bad)).values())
        assert all(math.isfinite(x) for x in numbers(metric(rows[50:])).values())
        with pytest.raises(ValueError, match="1 of 200 embeddings were zero or held NaN"):
            metric.compute()


@every_metric
def test_a_batch_of_one_group_gives_nan_for_what_cannot_be_told_of_it(name, rows, reference):
    """Only compute raises: a batch that holds the five captions of one image has no standard error."""
    metric = make(name, reference)
    metric(rows[:5], groups=[1] * 5)
    metric(rows[5:20], groups=[2] * 15)
    metric.update(rows[20:], groups=list(range(20, 200)))
    assert all(math.isfinite(x) for x in numbers(metric.compute()).values())


def test_a_kl_before_the_first_real_rows_is_nan_for_that_batch(rows, reference_rows):
    metric = cc.ConformityKL(embed_dim=DIM)
    assert math.isnan(float(metric(rows[:100])))
    metric.update(reference_rows, real=True)
    assert math.isfinite(float(metric(rows[100:])))


@every_metric
@pytest.mark.parametrize("copied", [lambda m: m.clone(), copy.deepcopy])
def test_a_clone_shares_the_encoder_and_not_the_state(name, copied, rows, reference):
    encoder = FakeEncoder()
    metric = make(name, reference, encoder=encoder)
    fed(metric, rows[:100])
    clone = copied(metric)
    assert clone.encoder is encoder
    before = metric.compute()
    fed(clone, rows[100:])
    metric._computed = None
    assert_equal(metric.compute(), before)
    assert_equal(clone.compute(), fed(make(name, reference), rows, 100).compute(), rtol=1e-5)


@every_metric
def test_a_pickle_goes_on_in_the_middle_of_a_stream(name, rows, reference):
    metric = fed(make(name, reference, max_samples=50), rows[:100])
    thawed = pickle.loads(pickle.dumps(metric))
    fed(thawed, rows[100:])
    fed(metric, rows[100:])
    assert_equal(thawed.compute(), metric.compute())


def test_a_pickle_holds_the_spec_of_its_encoder_and_not_the_encoder(reference, monkeypatch):
    metric = cc.Conformity(reference, encoder=FakeEncoder())
    metric.update(TEXTS[:10])
    content = pickle.dumps(metric)
    assert b"fake:weights" in content
    assert b"FakeEncoder" not in content
    thawed = pickle.loads(content)
    reported = []

    def load(spec):
        reported.append(spec)
        return FakeEncoder()

    monkeypatch.setattr("clipconformity.encoders.load_encoder", load, raising=False)
    thawed.update(TEXTS[10:])
    assert reported == ["fake:weights"]
    metric.update(TEXTS[10:])
    assert_equal(thawed.compute(), metric.compute())


# --- encoder ---------------------------------------------------------------------------------------------------------


def test_texts_and_images_are_encoded(reference):
    encoder = FakeEncoder()
    images = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    for batch in (TEXTS, images):
        metric = cc.Conformity(reference, encoder=encoder)
        metric.update(batch)
        expected = unit(double(encoder(batch))) @ double(reference.unit_mean)
        assert float(metric.compute()["conformity_mean"]) == pytest.approx(expected.mean(), rel=1e-5)


def test_embeddings_pass_by_the_encoder(rows, reference):
    encoder = FakeEncoder()
    fed(cc.Conformity(reference, encoder=encoder), rows)
    assert encoder.calls == 0


def test_the_encoder_is_no_part_of_the_module_tree(reference):
    class Model(nn.Module):
        def __init__(self, metric) -> None:
            super().__init__()
            self.metric = metric

    encoder = FakeEncoder()
    model = Model(cc.ConformityMetrics(reference, encoder=encoder))
    assert not list(model.parameters())
    assert encoder not in set(model.modules())
    model.half()
    assert encoder.weight.dtype == torch.float32


@pytest.mark.parametrize("call", ["update", "forward"])
def test_a_collection_encodes_each_batch_once(call, reference):
    encoder = FakeEncoder()
    metrics = cc.ConformityMetrics(reference, encoder=encoder)
    for start in range(0, 30, 10):
        getattr(metrics, call)(TEXTS[start : start + 10])
    assert encoder.calls == 3
    rows = FakeEncoder()(TEXTS)
    assert float(metrics.compute()["norm_mean"]) == pytest.approx(norm_oracle(rows)["norm_mean"], rel=1e-5)


# --- states ----------------------------------------------------------------------------------------------------------


@every_metric
def test_no_state_hides_a_method(name, reference):
    metric = make(name, reference)
    assert not [state for state in metric._defaults if hasattr(type(metric), state)]


@every_metric
def test_the_state_dict_is_empty(name, rows, reference):
    metric = fed(make(name, reference, encoder=FakeEncoder()), rows)
    assert metric.state_dict() == {}
    metric.load_state_dict({})


CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "float": lambda m: m.float(),
    "to device and dtype": lambda m: m.to("cpu", torch.float16),
    "set_dtype": lambda m: [part.set_dtype(torch.float16) for part in m.children()],
}


@every_metric
@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_a_parent_cast_to_another_precision_keeps_states_and_value(name, cast, rows, reference):
    metric = fed(make(name, reference), rows[:100])
    parent = nn.Sequential(metric, nn.Linear(2, 2))
    if cast is CASTS["set_dtype"]:
        metric.set_dtype(torch.float16)
    else:
        cast(parent)
    fed(metric, rows[100:])
    for state in metric._defaults:
        value = getattr(metric, state)
        for tensor in value if isinstance(value, list) else [value]:
            assert tensor.dtype in (torch.float64, torch.int64, torch.float32)
            assert isinstance(value, list) or tensor.dtype == torch.float64
    assert_equal(metric.compute(), fed(make(name, reference), rows, 100).compute(), rtol=1e-5)
    metric.reset()
    assert metric.evaluated_count.dtype == torch.float64


@every_metric
@pytest.mark.parametrize("call", ["update", "forward"])
def test_bf16_autocast_around_an_update_changes_nothing(name, call, rows, reference):
    inside, outside = make(name, reference), make(name, reference)
    for batch in rows.split(50):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = getattr(inside, call)(batch)
        expected = getattr(outside, call)(batch)
        if call == "forward":
            assert_equal(value, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = inside.compute()
    assert_equal(value, outside.compute())


def test_read_outs_under_autocast_change_nothing(rows, reference):
    metric = fed(cc.ConformityKL(reference), rows)
    conformity = fed(cc.Conformity(reference), rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [*metric.interval(resamples=50), metric.noise_floor(resamples=50), metric.reverse()]
        counts, edges = conformity.histogram()
    expected = [*metric.interval(resamples=50), metric.noise_floor(resamples=50), metric.reverse()]
    assert [float(x) for x in found] == pytest.approx([float(x) for x in expected], rel=1e-4)
    assert torch.equal(counts, conformity.histogram()[0])
    assert torch.equal(edges, conformity.histogram()[1])


def test_real_rows_under_autocast_change_nothing(rows, reference_rows):
    inside, outside = cc.Conformity(embed_dim=DIM), cc.Conformity(embed_dim=DIM)
    for metric, enabled in ((inside, True), (outside, False)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            metric.update(reference_rows, real=True)
            metric.update(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = inside.compute()
    assert_equal(value, outside.compute())


@every_metric
def test_merge_state_equals_a_single_stream(name, rows, reference):
    one, two = fed(make(name, reference), rows[:130]), fed(make(name, reference), rows[130:])
    before = numbers(two.compute())
    one.merge_state(two)
    found, expected = numbers(one.compute()), numbers(fed(make(name, reference), rows, 200).compute())
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    two._computed = None
    assert numbers(two.compute()) == pytest.approx(before)


# --- collections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("compute_groups", [True, False])
def test_a_collection_gives_what_its_metrics_give_alone(call, compute_groups, rows, reference):
    metrics = MetricCollection({name: make(name, reference) for name in CLASSES}, compute_groups=compute_groups)
    for _ in range(2):
        metrics.reset()
        for batch in rows.split(64):
            getattr(metrics, call)(batch)
        value = numbers(metrics.compute())
        for name in CLASSES:
            alone = numbers(fed(make(name, reference), rows).compute())
            alone = {name: alone["value"]} if name == "ConformityKL" else alone
            assert {key: value[key] for key in alone} == pytest.approx(alone, rel=1e-6)


def test_a_collection_accumulates_each_batch_once(rows, reference, monkeypatch):
    from clipconformity.stream.moments import Moments

    seen = []
    update = Moments.update
    monkeypatch.setattr(
        Moments, "update", lambda self, batch, *a, **k: seen.append(batch) or update(self, batch, *a, **k)
    )
    metrics = cc.ConformityMetrics(reference)
    for batch in rows.split(50):
        metrics.update(batch)
    assert len(seen) == 4
    metrics.compute()
    assert len(seen) == 4


def test_read_outs_of_a_collection_are_those_of_the_metric_alone(rows, reference):
    metrics = fed(cc.ConformityMetrics(reference), rows)
    alone = fed(cc.ConformityKL(reference), rows)
    assert metrics.interval(resamples=50) == alone.interval(resamples=50)
    assert metrics.noise_floor(resamples=50) == alone.noise_floor(resamples=50)
    assert metrics.kl_is_lower_bound == alone.is_lower_bound
    assert torch.equal(metrics["conformity_kl"].compute(), alone.compute())


def test_a_collection_takes_prefix_clone_and_pickle(rows, reference):
    metrics = fed(cc.ConformityMetrics(reference, prefix="val_"), rows[:100])
    value = numbers(metrics.compute())
    assert all(key.startswith("val_") for key in value)
    clone = metrics.clone()
    fed(clone, rows[100:])
    thawed = pickle.loads(pickle.dumps(metrics))
    fed(thawed, rows[100:])
    assert numbers(metrics.compute()) == pytest.approx(value)
    expected = numbers(fed(cc.ConformityMetrics(reference), rows, 100).compute())
    for other in (clone, thawed):
        found = {key.removeprefix("val_"): v for key, v in numbers(other.compute()).items()}
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_clone_of_a_collection_may_be_renamed(reference):
    assert all(key.startswith("test_") for key in cc.ConformityMetrics(reference).clone(prefix="test_").keys())  # noqa: SIM118


# --- real rows and groups --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Conformity", "ConformityKL"])
@pytest.mark.parametrize("order", ["real first", "real last", "by turns"])
def test_real_rows_equal_a_reference_set(name, order, rows, reference, reference_rows):
    metric = CLASSES[name](embed_dim=DIM)
    batches = [(rows, False), (reference_rows, True)]
    if order == "real first":
        batches.reverse()
    elif order == "by turns":
        batches = [
            part
            for pair in zip(rows.split(20), reference_rows.split(80), strict=True)
            for part in ((pair[0], False), (pair[1], True))
        ]
    for batch, real in batches:
        metric.update(batch, real=real)
    given = fed(CLASSES[name](reference), rows, 20)
    assert numbers(metric.compute()) == pytest.approx(numbers(given.compute()), rel=2e-5, abs=1e-6)
    if name == "ConformityKL":
        assert float(metric.reverse()) == pytest.approx(float(given.reverse()), rel=1e-4)
        assert [float(x) for x in metric.interval(resamples=200)] == pytest.approx(
            [float(x) for x in given.interval(resamples=200)], rel=0.2, abs=0.02
        )


@every_metric
def test_real_rows_are_left_out_where_they_are_not_needed(name, rows, reference):
    metric = fed(make(name, reference), rows)
    expected = metric.compute()
    metric.update(rows * 3 + 1, real=True)
    if name == "EmbeddingNorm":
        assert all(math.isnan(x) for x in numbers(metric(rows, real=True)).values())
    assert_equal(metric.compute(), expected)


def test_a_kl_without_reference_or_real_rows_says_so(rows):
    with pytest.raises(ValueError, match=r"there is no reference; give one at construction, or real rows"):
        fed(cc.ConformityKL(embed_dim=DIM), rows).compute()


def test_too_few_real_rows_are_refused(rows, reference_rows):
    metric = fed(cc.ConformityKL(embed_dim=DIM), rows)
    metric.update(reference_rows[:9], real=True)
    with pytest.raises(ValueError, match="reference: expected at least 10 samples, got 9"):
        metric.compute()


def test_bad_real_rows_are_reported(rows):
    metric = fed(cc.Conformity(embed_dim=DIM), rows)
    metric.update(torch.full((20, DIM), math.nan), real=True)
    with pytest.raises(ValueError, match="20 of 20 embeddings were zero or held NaN"):
        metric.compute()


@every_metric
def test_groups_change_the_standard_error_and_not_the_value(name, rows, reference):
    plain = numbers(fed(make(name, reference), rows, 200).compute())
    metric = make(name, reference)
    metric.update(rows, groups=torch.arange(200) // 5)
    grouped = numbers(metric.compute())
    for key, value in plain.items():
        if key in ("value", "self_conformity_mean", "variety_ratio"):
            continue  # the bias correction counts independent samples; pairs inside a group are left out
        if key.endswith(("_se", "_low", "_high")):
            assert grouped[key] != pytest.approx(value, rel=1e-3)
        else:
            assert grouped[key] == pytest.approx(value, rel=1e-6)


@every_metric
def test_groups_for_some_batches_only_are_refused_at_compute(name, rows, reference):
    metric = fed(make(name, reference), rows[:100])
    metric.update(rows[100:], groups=list(range(100)))
    with pytest.raises(ValueError, match="some samples came with group ids and some without"):
        metric.compute()


@every_metric
def test_one_group_keeps_its_figures_and_has_no_standard_error(name, rows, reference):
    """A standard error of one independent sample would be a good-looking number; the means are what they are."""
    plain, metric = fed(make(name, reference), rows, 200), make(name, reference)
    metric.update(rows, groups=["one"] * 200)
    expected, found = numbers(plain.compute()), numbers(metric.compute())
    for key, value in expected.items():
        unknown = key.endswith(("_se", "_low", "_high"))
        assert math.isnan(found[key]) if unknown else found[key] == pytest.approx(value, rel=1e-6), key


def test_one_group_of_two_rows_has_no_standard_error(rows):
    metric = cc.Conformity(embed_dim=DIM)
    metric.update(rows[:2], groups=[1, 1])
    assert math.isnan(numbers(metric.compute())["self_conformity_se"])


@pytest.mark.parametrize("read_out", ["interval", "noise_floor"])
def test_one_group_has_no_interval_and_no_floor(read_out, rows, reference):
    metric = make("ConformityKL", reference)
    metric.update(rows, groups=["one"] * 200)
    with pytest.raises(ValueError, match="all samples belong to one group"):
        getattr(metric, read_out)()


@pytest.mark.parametrize("size", [10_000, 30])
def test_a_reference_in_one_group_is_refused(size, reference_rows):
    with pytest.raises(ValueError, match="groups: expected several groups, whose hashes differ, and got one"):
        cc.ReferenceSet.fit(reference_rows, groups=["one"] * len(reference_rows), max_samples=size)


def test_real_rows_in_one_group_are_refused_by_compute_alone(rows, reference_rows):
    metric = cc.Conformity(embed_dim=DIM)
    metric.update(reference_rows, real=True, groups=["one"] * len(reference_rows))
    assert all(math.isnan(value) for value in numbers(metric(rows)).values())
    with pytest.raises(ValueError, match="groups: expected several groups"):
        metric.compute()


@every_metric
@pytest.mark.parametrize("size", [-1, 0, 1])
def test_max_samples_below_two_is_refused_at_construction(name, size, reference):
    with pytest.raises(ValueError, match=f"max_samples: expected at least 2, got {size}"):
        make(name, reference, max_samples=size)


def test_a_metric_of_the_set_alone_says_that_it_takes_no_reference(reference):
    with pytest.raises(
        TypeError, match="EmbeddingNorm: takes no reference, since it measures the evaluated samples alone"
    ):
        cc.EmbeddingNorm(reference)


# --- bad input -------------------------------------------------------------------------------------------------------


@every_metric
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_bad_rows_are_reported_at_compute(name, value, rows, reference):
    bad = rows.clone()
    bad[[4, 90]] = value
    metric = fed(make(name, reference), bad)
    with pytest.raises(ValueError, match="2 of 200 embeddings were zero or held NaN or infinite values"):
        metric.compute()


@every_metric
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_too_few_samples_are_refused_at_compute(name, count, rows, reference):
    metric = make(name, reference)
    if count:
        metric.update(rows[:count])
    least = 10 if name == "ConformityKL" else 2
    with pytest.raises(ValueError, match=f"expected at least {least} samples, got {count}"):
        metric.compute()


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalized_rows_are_refused_with_the_way_out(name, dtype, rows, reference):
    normalized = nn.functional.normalize(rows).to(dtype)
    with pytest.raises(ValueError, match="L2-normalised.*normalize=False.*allow_normalized=True"):
        fed(make(name, reference), normalized).compute()
    metric = fed(make(name, reference, allow_normalized=True), normalized)
    assert all(math.isfinite(x) for x in numbers(metric.compute()).values())


def test_normalized_rows_keep_their_conformity(rows, reference, reference_rows):
    metric = fed(cc.Conformity(reference, allow_normalized=True), nn.functional.normalize(rows))
    assert_has(metric.compute(), conformity_oracle(rows, reference_rows), UNCERTAIN)


def test_a_normalized_reference_allows_normalized_rows(rows, reference_rows):
    reference = cc.ReferenceSet.fit(nn.functional.normalize(reference_rows), allow_normalized=True)
    value = fed(cc.ConformityMetrics(reference), nn.functional.normalize(rows)).compute()
    assert float(value["norm_mean"]) == pytest.approx(1)


WRONG = {
    "another dimension": (torch.ones(5, DIM + 1), ValueError, "dimension 13 and this metric has dimension 12"),
    "integers": (torch.ones(5, DIM, dtype=torch.int64), TypeError, "expected floating-point raw embeddings"),
    "a vector": (torch.ones(DIM), ValueError, r"expected shape \(N, D\), got \(12,\)"),
    "images without encoder": (torch.ones(5, 3, 8, 8), ValueError, r"expected shape \(N, D\), got \(5, 3, 8, 8\)"),
    "texts without encoder": (["a cat"], TypeError, r"got list; .* for images or texts .* encoder=load_encoder"),
    "an array": (np.ones((5, DIM)), TypeError, r"a tensor of shape \(N, D\), got ndarray; convert them with torch"),
}


@every_metric
@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_batch_is_refused_and_leaves_the_state_as_it_was(name, call, wrong, rows, reference):
    batch, error, message = WRONG[wrong]
    metric = fed(make(name, reference), rows)
    with pytest.raises(error, match=message):
        getattr(metric, call)(batch)
    assert_equal(metric.compute(), fed(make(name, reference), rows).compute())


@every_metric
@pytest.mark.parametrize("groups", [[1, 2], [0.5] * 64])
def test_wrong_groups_are_refused_and_leave_the_state_as_it_was(name, groups, rows, reference):
    metric = fed(make(name, reference), rows)
    with pytest.raises((ValueError, TypeError), match="groups: expected"):
        metric.update(rows[:64], groups=groups)
    assert_equal(metric.compute(), fed(make(name, reference), rows).compute())


# --- histogram -------------------------------------------------------------------------------------------------------


def check_histogram(counts: Tensor, edges: Tensor, conformity: np.ndarray) -> None:
    assert len(edges) == len(counts) + 1
    assert float(counts.sum()) == len(conformity)
    inner = double(edges).copy()
    inner[0], inner[-1] = -np.inf, np.inf
    expected = np.histogram(conformity, inner)[0]
    # A conformity on an edge may fall to either side by rounding.
    assert np.abs(double(counts) - expected).sum() <= 2
    assert np.all(np.diff(double(edges)) > 0)


def test_the_histogram_counts_every_sample(rows, reference, reference_rows):
    counts, edges = fed(cc.Conformity(reference), rows).histogram()
    check_histogram(counts, edges, brute_conformity(rows, reference_rows))
    std = brute_conformity(reference_rows).std(ddof=1)
    np.testing.assert_allclose(np.diff(double(edges)), std / 4, rtol=1e-6)


def test_the_histogram_inside_the_own_set_counts_every_sample(rows):
    check_histogram(*fed(cc.Conformity(embed_dim=DIM), rows).histogram(), brute_conformity(rows))


def test_the_histogram_towards_real_rows_counts_every_sample(rows, reference_rows):
    metric = fed(cc.Conformity(embed_dim=DIM), rows)
    metric.update(reference_rows, real=True)
    check_histogram(*metric.histogram(), brute_conformity(rows, reference_rows))


def test_the_histogram_counts_what_lies_far_outside(reference):
    counts, _ = fed(
        cc.Conformity(reference), -ellipsoid_rows(50, DIM, torch.Generator().manual_seed(0), 8.0)
    ).histogram()
    assert float(counts.sum()) == 50


# --- plots -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def patch_data(ax) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for patch in ax.patches:
        values, edges, _ = patch.get_data()
        found[patch.get_label()] = (np.asarray(values), np.asarray(edges))
    return found


def test_the_plot_draws_the_densities_of_both_sets(rows, reference, reference_rows):
    figure, ax = fed(cc.Conformity(reference), rows).plot()
    drawn = patch_data(ax)
    assert set(drawn) == {"evaluated", "reference"}
    for label, conformity in (
        ("evaluated", brute_conformity(rows, reference_rows)),
        ("reference", brute_conformity(reference_rows)),
    ):
        density, edges = drawn[label]
        expected = np.histogram(conformity, edges)[0] / len(conformity) / np.diff(edges)
        assert np.abs(density - expected).sum() * np.diff(edges)[0] <= 4 / len(conformity)
        assert (density * np.diff(edges)).sum() == pytest.approx(1)
    assert "conformity" in ax.get_xlabel()
    assert ax.figure is figure


def test_the_plot_of_the_own_set_has_no_reference(rows):
    _, ax = fed(cc.Conformity(embed_dim=DIM), rows).plot()
    assert set(patch_data(ax)) == {"evaluated"}


def test_the_plot_towards_real_rows_draws_them(rows, reference_rows):
    metric = fed(cc.Conformity(embed_dim=DIM), rows)
    metric.update(reference_rows, real=True)
    _, ax = metric.plot()
    assert set(patch_data(ax)) == {"evaluated", "reference"}


def test_the_plot_goes_on_given_axes(rows, reference):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert fed(cc.Conformity(reference), rows).plot(ax=ax) == (figure, ax)
    assert ax.patches


def test_the_plot_of_a_kl_shows_its_value(rows, reference):
    metric = fed(cc.ConformityKL(reference), rows)
    _, ax = metric.plot()
    assert float(ax.containers[0].lines[0].get_xdata()[0]) == pytest.approx(float(metric.compute()))


def test_the_plot_of_several_kls_shows_them_in_order(rows, reference):
    values = [fed(cc.ConformityKL(reference), part).compute() for part in rows.split(100)]
    _, ax = cc.ConformityKL(reference).plot(values)
    assert list(ax.lines[0].get_ydata()) == pytest.approx([float(v) for v in values])


def test_the_plot_of_given_norm_values_shows_every_value(rows):
    metric = fed(cc.EmbeddingNorm(embed_dim=DIM), rows)
    _, ax = metric.plot(metric.compute())
    reported = [text.get_text().strip() for text in ax.texts]
    assert dict(zip(reported[::2], reported[1::2], strict=True)) == {
        name: f"{value:.4g}" for name, value in numbers(metric.compute()).items()
    }


def test_the_plot_of_given_conformity_values_shows_them(rows, reference):
    values = [fed(cc.Conformity(reference), part).compute() for part in rows.split(100)]
    _, ax = cc.Conformity(reference).plot(values)
    drawn = {panel.get_title(loc="left"): list(panel.lines[0].get_ydata()) for panel in ax.child_axes}
    for name in values[0]:
        assert drawn[name] == pytest.approx([float(one[name]) for one in values])


def test_one_figure_of_a_collection_plots_its_value(rows, reference):
    metrics = cc.ConformityMetrics(reference)
    metrics.update(rows)
    figure = metrics["norm_mean"]
    for given, expected in ((None, [float(figure.compute())]), (torch.tensor(2.0), [2.0]), ([1.0, 3.0], [1.0, 3.0])):
        _, ax = figure.plot(given)
        assert ax.lines[0].get_ydata().tolist() == pytest.approx(expected)
        assert ax.get_ylabel() == "mean norm of the raw embeddings (raw units)"


@pytest.mark.parametrize("prefix", [None, "val_"])
def test_a_collection_plots_each_metrics_own_picture(rows, reference, prefix):
    import matplotlib.pyplot as plt

    metrics = cc.ConformityMetrics(reference, prefix=prefix)
    metrics.update(rows)
    kl = float(metrics.compute()[f"{prefix or ''}conformity_kl"])
    for val in (None, metrics.compute(), [metrics.compute(), metrics.compute()]):
        pictures = metrics.plot(val)
        assert len(pictures) == 3
        shown = pictures[1][1]
        if val is None:
            assert float(shown.containers[0].lines[0].get_xdata()[0]) == pytest.approx(kl)
        else:
            assert list(shown.lines[0].get_ydata()) == pytest.approx([kl] * (len(val) if isinstance(val, list) else 1))
        plt.close("all")
    figure, axes = plt.subplots(1, 3)
    assert [ax for _, ax in metrics.plot(ax=axes)] == list(axes)
    plt.close(figure)
