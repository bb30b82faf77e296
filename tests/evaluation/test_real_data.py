"""Published CLIP embeddings: the figures of the data's README to their printed digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import brute_conformity, brute_self_conformity

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.functional import conformity, conformity_fit, norm_statistics, self_conformity

FILES = {
    "images-1803": "vitb32-images-1803.pt",
    "lvis-1203": "vitb32-text-lvis-1203.npy",
    "coco-80": "vitb32-text-coco-80.npy",
}
PAIRS = "vitb16-coco-pairs-500-unit.npy"
# From data/README.md, as printed there.
FIGURES: dict[str, dict[str, str]] = {
    "images-1803": {
        "mean": "0.560681",
        "std": "0.037804",
        "min": "0.366401",
        "max": "0.656536",
        "pearson": "0.999436",
        "slope": "0.7493",
        "intercept": "-0.0005",
        "inverse_slope": "1.3330",
        "inverse_intercept": "0.0015",
        "norm_mean": "10.7132",
        "norm_std": "0.4505",
        "norm_correlation": "0.5623",
    },
    "lvis-1203": {
        "mean": "0.742576",
        "std": "0.032323",
        "min": "0.601730",
        "max": "0.817241",
        "pearson": "0.999981",
        "slope": "0.8580",
        "intercept": "0.0031",
        "inverse_slope": "1.1655",
        "inverse_intercept": "-0.0036",
        "norm_mean": "9.8185",
        "norm_std": "0.6923",
        "norm_correlation": "0.8821",
    },
    "coco-80": {
        "mean": "0.799035",
        "std": "0.025532",
        "min": "0.729418",
        "max": "0.839943",
        "pearson": "0.999969",
        "slope": "0.8948",
        "intercept": "-0.0021",
        "inverse_slope": "1.1175",
        "inverse_intercept": "0.0024",
        "norm_mean": "10.1558",
        "norm_std": "0.6225",
        "norm_correlation": "0.9160",
    },
}
PAIR_FIGURES = {
    "image": {"mean": "0.531483", "std": "0.047749", "min": "0.332086", "max": "0.621996"},
    "text": {"mean": "0.515194", "std": "0.058667", "min": "0.263138", "max": "0.622995"},
}


def load(folder: Path, name: str) -> torch.Tensor:
    """Read a file with its own format's tool."""
    path = folder / FILES[name]
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)[:, 0]
    return torch.from_numpy(np.load(path))


def printed(values: dict[str, float], like: dict[str, str]) -> dict[str, str]:
    """Figures rounded to the digits of the README; a zero has no sign."""
    return {name: f"{float(values[name]):.{len(text.partition('.')[2])}f}" for name, text in like.items()}


def some(figures: dict[str, str], *names: str) -> dict[str, str]:
    return {name: figures[name] for name in names}


every_set = pytest.mark.parametrize("name", FILES)


@every_set
def test_the_figures_by_pure_functions(name, data_dir):
    rows = load(data_dir, name)
    values, norms = conformity(rows), norm_statistics(rows)
    found = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    found |= conformity_fit(rows)._asdict()
    found |= {"norm_mean": norms.mean, "norm_std": norms.std, "norm_correlation": norms.conformity_correlation}
    assert printed(found, FIGURES[name]) == FIGURES[name]
    assert printed({"mean": self_conformity(rows)}, some(FIGURES[name], "mean")) == some(FIGURES[name], "mean")


@every_set
@pytest.mark.parametrize("size", [1, 100, 512, 5000])
def test_the_figures_by_metrics_whatever_the_batches(name, size, data_dir):
    conformity_metric, norm = cc.Conformity(embed_dim=512), cc.EmbeddingNorm(embed_dim=512)
    for batch in load(data_dir, name).split(size):
        conformity_metric.update(batch)
        norm.update(batch)
    value = conformity_metric.compute() | norm.compute()
    found = {"mean": value["conformity_mean"], "std": value["conformity_std"]}
    found |= {key: value[key] for key in ("norm_mean", "norm_std")}
    found["norm_correlation"] = value["norm_conformity_correlation"]
    assert printed(found, some(FIGURES[name], *found)) == some(FIGURES[name], *found)
    own = {"mean": value["self_conformity_mean"]}
    assert printed(own, some(FIGURES[name], "mean")) == some(FIGURES[name], "mean")


@every_set
@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
def test_the_figures_by_command(name, data_dir, tmp_path, capsys):
    arguments = ["reference", "--embeddings", str(data_dir / FILES[name]), "-o", str(tmp_path / "r.safetensors")]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    found = {key: result[f"conformity_{key}"] for key in ("mean", "std", "min", "max")}
    found |= result["conformity_fit"] | {key: result[key] for key in ("norm_mean", "norm_std")}
    assert printed(found, some(FIGURES[name], *found)) == some(FIGURES[name], *found)
    assert len(found) == 11

    assert main(["score", "--embeddings", str(data_dir / FILES[name]), "--reference", arguments[-1]]) == 0
    result = json.loads(capsys.readouterr().out)
    found = {"mean": result["self_conformity_mean"], "norm_mean": result["norm_mean"], "norm_std": result["norm_std"]}
    assert printed(found, some(FIGURES[name], *found)) == some(FIGURES[name], *found)


@every_set
def test_the_figures_by_reference_sets(name, data_dir):
    reference = cc.ReferenceSet.fit(load(data_dir, name).split(200))
    values = reference.conformities
    found = {"mean": reference.self_conformity, "std": values.std(), "min": values.min(), "max": values.max()}
    found |= reference.conformity_fit._asdict()
    found |= {"norm_mean": reference.norms.mean(), "norm_std": reference.norms.std()}
    assert printed(found, some(FIGURES[name], *found)) == some(FIGURES[name], *found)


@pytest.mark.parametrize(("number", "kind"), [(0, "image"), (1, "text")])
def test_the_figures_of_the_normalized_pairs(number, kind, data_dir):
    rows = torch.from_numpy(np.load(data_dir / PAIRS)[number])
    values = conformity(rows)
    found = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    assert printed(found, PAIR_FIGURES[kind]) == PAIR_FIGURES[kind]
    metric = cc.Conformity(embed_dim=512, allow_normalized=True)
    metric.update(rows)
    found = {"mean": metric.compute()["conformity_mean"], "std": metric.compute()["conformity_std"]}
    assert printed(found, some(PAIR_FIGURES[kind], *found)) == some(PAIR_FIGURES[kind], *found)


def test_the_normalized_pairs_are_refused_without_leave(data_dir):
    with pytest.raises(ValueError, match="L2-normalised"):
        cc.ReferenceSet.fit(torch.from_numpy(np.load(data_dir / PAIRS)[0]))


@every_set
def test_conformity_equals_the_mean_of_the_cosine_matrix_to_a_millionth(name, data_dir):
    rows = load(data_dir, name)
    np.testing.assert_allclose(conformity(rows), brute_conformity(rows), atol=1e-6, rtol=0)


def test_conformity_between_sets_equals_brute_force_to_a_millionth(images, lvis):
    np.testing.assert_allclose(conformity(images, lvis), brute_conformity(images, lvis.float()), atol=1e-6, rtol=0)


# --- one half against the other, its classes, and text ---------------------------------------------------------------


@pytest.fixture(scope="module")
def classes(data_dir) -> np.ndarray:
    lines = (data_dir / "vitb32-images-1803.txt").read_text().splitlines()
    return np.array([Path(line).parent.name for line in lines])


@pytest.fixture(scope="module")
def halves(images) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return order[: len(order) // 2], order[len(order) // 2 :]


@pytest.fixture(scope="module")
def half(images, halves) -> cc.ReferenceSet:
    return cc.ReferenceSet.fit(images[halves[0]], modality="image")


def scored(reference: cc.ReferenceSet, rows: torch.Tensor) -> dict[str, float]:
    metrics = cc.ConformityMetrics(reference)
    metrics.update(rows)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_the_other_half_is_as_typical_and_as_varied(half, images, halves):
    value = scored(half, images[halves[1]])
    assert abs(value["typicality_shift"]) < 0.2
    assert value["conformity_kl"] < 0.03
    error = np.hypot(value["self_conformity_se"], float(half.self_conformity_se))
    assert abs(value["self_conformity_mean"] - float(half.self_conformity)) < 3 * error


def test_there_are_seven_classes(classes):
    assert sorted(set(classes)) == ["bike", "cars", "cats", "dogs", "flowers", "horses", "human"]


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")  # of the horses 12 are in both halves
@pytest.mark.parametrize("kind", ["bike", "cars", "cats", "dogs", "flowers", "horses", "human"])
def test_a_single_class_is_less_varied_than_all(kind, half, images, halves, classes):
    """Every figure against brute force, and self-conformity tells every class from the whole."""
    rows = images[halves[1]][classes[halves[1]] == kind]
    value = scored(half, rows)
    expected = brute_conformity(rows, images[halves[0]])
    own = 1e-4 if kind == "horses" else 1e-6  # the 12 leave themselves out
    assert value["conformity_mean"] == pytest.approx(expected.mean(), abs=own)
    assert value["conformity_std"] == pytest.approx(expected.std(ddof=1), abs=1e-6)
    assert value["self_conformity_mean"] == pytest.approx(brute_self_conformity(rows), abs=1e-6)
    assert value["self_conformity_mean"] > float(half.self_conformity) + 0.05


def test_cars_alone_are_as_typical_as_all_but_less_varied(half, images, halves, classes):
    """Design, section 2: 0.558 against 0.561, KL 0.03, self-conformity 0.73 against 0.56, on another half."""
    rows = images[halves[1]][classes[halves[1]] == "cars"]
    value = scored(half, rows)
    assert value["conformity_mean"] == pytest.approx(0.558, abs=0.01)
    assert value["conformity_kl"] < 0.15
    assert value["self_conformity_mean"] == pytest.approx(0.73, abs=0.02)
    assert float(half.self_conformity) == pytest.approx(0.56, abs=0.01)


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_text_lies_far_from_images(half, lvis):
    value = scored(half, lvis)
    assert value["typicality_shift"] < -5
    assert value["conformity_kl"] > 5


def test_text_that_says_so_is_refused_by_an_image_reference(half, data_dir, tmp_path, capsys):
    half.save(tmp_path / "half.safetensors")
    arguments = ["score", "--embeddings", str(data_dir / FILES["lvis-1203"]), "--modality", "text"]
    assert main([*arguments, "--reference", str(tmp_path / "half.safetensors")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the samples are text and the reference is image" in error


def test_the_interval_of_the_other_half_stays_near_zero(half, images, halves):
    metric = cc.ConformityKL(half)
    metric.update(images[halves[1]])
    low, high = metric.interval(resamples=200)
    assert 0 <= float(low) <= float(metric.compute()) + 1e-6 <= float(high) + 1e-6 < 0.06
    assert float(metric.noise_floor(resamples=200)) < 0.03
