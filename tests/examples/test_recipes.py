"""Ray Data and Hugging Face datasets: what they make on two workers, beside one process."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import clipconformity as cc
from clipconformity.data import survey_images
from clipconformity.evaluation import build_reference, embedding_source, image_source, score

ROOT = Path(__file__).resolve().parents[2]
SECOND_MOMENTS = ("second_moment", "unit_second_moment")


@pytest.fixture
def process(tmp_path):
    """Run a recipe as a user does, on one thread, without the network, and with caches of its own."""
    places = {name: str(tmp_path / name.lower()) for name in ("HOME", "HF_HOME")}
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | places | settings | {"PYTHONPATH": path}

    def called(name, *arguments, status=0):
        command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400, check=False)
        assert done.returncode == status, done.stderr
        return done

    return called


def write_parquet(path, rows, start=0):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet as pq

    places = range(start, start + len(rows))
    columns = {
        "embeddings": pa.array([*rows], type=pa.list_(pa.float32())),
        "id": [f"row {place}" for place in places],
        "groups": [f"group {place // 3}" for place in places],
    }
    pq.write_table(pa.table(columns), path)


def draw(count, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, dim, generator=generator) + 0.7).numpy()


def assert_same_reference(found, expected):
    """Equal to 1e-9; second moments of float32 rows depend on the bounds of chunks, to 1e-7."""
    assert found.describe() == expected.describe()
    for name in expected.moments.layout.shapes():
        mine, theirs = (one.moments.get_sum(name) for one in (found, expected))
        rtol = 1e-7 if name in SECOND_MOMENTS else 1e-9
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol * float(theirs.abs().max()))
    for mine, theirs in zip(found.sketch, expected.sketch, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=0)
    assert found.sample_ids == expected.sample_ids
    torch.testing.assert_close(found.self_conformity, expected.self_conformity, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.self_conformity_se, expected.self_conformity_se, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.conformities, expected.conformities, rtol=1e-9, atol=1e-12)


def test_states_of_blocks_of_any_size_merge_into_the_reference_of_all_rows(example):
    recipe, rows, groups = example("ray_reference"), draw(2500), np.arange(2500) // 3
    bounds = [0, 0, 1, 1, 3, 1200, 1201, 2499, 2500, 2500]
    states = []
    for start, stop in pairwise(bounds):
        column = np.empty(stop - start, dtype=object)  # as Ray gives a column of lists
        column[:] = [*rows[start:stop]]
        ids = np.array([f"row {place}" for place in range(start, stop)], dtype=object)
        batch = {"embeddings": column, "id": ids, "group": groups[start:stop]}
        states.extend(recipe.take_in(batch, max_samples=1000)["state"])
    assert len(states) == 6  # three blocks have no row
    while len(states) > 1:
        states = [*recipe.merge({"state": np.array(states[:3], dtype=object)})["state"], *states[3:]]
    found = cc.ReferenceSet.from_moments(recipe.unpack(states[0]))
    ids = [f"row {place}" for place in range(2500)]
    assert_same_reference(found, cc.ReferenceSet.fit(rows, ids=ids, groups=groups, max_samples=1000))


def test_a_state_is_a_safetensors_file_and_damage_is_told(example):
    recipe = example("ray_reference")
    packed = recipe.take_in({"embeddings": draw(9)}, max_samples=100)["state"][0]
    assert b'"checksum"' in packed[:5000]
    broken = bytearray(packed)
    broken[-9] ^= 1
    with pytest.raises(ValueError, match="damaged: its checksum does not fit"):
        recipe.unpack(bytes(broken))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"embeddings": np.zeros((2, 3), dtype=np.int64)}, "column 'embeddings': expected floating-point"),
        ({"embeddings": draw(2), "group": np.array(["a", None], dtype=object)}, "column 'group': expected a value"),
    ],
)
def test_a_batch_that_holds_no_embeddings_is_refused(example, batch, message):
    with pytest.raises((TypeError, ValueError), match=message):
        example("ray_reference").take_in(batch, max_samples=10)


def test_states_of_different_dimensions_are_refused(example):
    recipe = example("ray_reference")
    states = [recipe.take_in({"embeddings": draw(5, dim)}, max_samples=10)["state"][0] for dim in (1, 4)]
    with pytest.raises(ValueError, match="has dimension 4 and another has dimension 1"):
        recipe.merge({"state": np.array(states, dtype=object)})


@pytest.mark.slow
def test_ray_makes_of_files_on_two_workers_the_reference_of_one_process(process, tmp_path):
    pytest.importorskip("ray.data", reason="ray is not installed: make test-recipes")
    rows, folder = draw(9001), tmp_path / "rows"
    folder.mkdir()
    bounds = [0, 1, 3, 5000, 5001, 9001]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        write_parquet(folder / f"{number}.parquet", rows[start:stop], start)
    given = ("--embeddings", folder, "--modality", "image", "--max-samples", 4000, "--rows", 1000)
    process("ray_reference", *given, "-o", tmp_path / "ray.safetensors")
    expected = build_reference(embedding_source([folder], modality="image"), max_samples=4000)
    assert_same_reference(cc.ReferenceSet.load(tmp_path / "ray.safetensors"), expected)


@pytest.mark.slow
def test_ray_encodes_images_and_tells_of_one_that_is_broken(process, material, tmp_path):
    pytest.importorskip("ray.data", reason="ray is not installed: make test-recipes")
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(material.images.iterdir())[:40]:
        (folder / path.name).write_bytes(path.read_bytes())
    given = ("--images", folder, "--encoder", "tiny", "--batch-size", 10, "--rows", 15)
    process("ray_reference", *given, "-o", tmp_path / "ray.safetensors")
    expected = build_reference(image_source(survey_images(folder), cc.load_encoder("tiny", "cpu"), batch_size=10))
    found = cc.ReferenceSet.load(tmp_path / "ray.safetensors")
    # An encoder's last bits depend on the number of threads.
    torch.testing.assert_close(found.unit_mean, expected.unit_mean, rtol=0, atol=1e-6)
    assert (found.count, sorted(found.sample_ids)) == (40, sorted(expected.sample_ids))
    assert found.provenance == expected.provenance
    (folder / "broken.png").write_bytes(b"no image")
    said = process("ray_reference", *given, "-o", tmp_path / "none.safetensors", status=2).stderr
    assert "broken.png: cannot be read as an image" in said.splitlines()[-1]
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.slow
def test_datasets_map_scores_embeddings_on_two_processes_as_one_does(process, tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed: make test-recipes")
    for name, count, seed in (("real", 1501, 0), ("made", 701, 1)):
        write_parquet(tmp_path / f"{name}.parquet", draw(count, seed=seed))
    files = ("--real", tmp_path / "real.parquet", "--generated", tmp_path / "made.parquet", "--column", "embeddings")
    more = ("--ids", "id", "--groups", "groups", "--modality", "image", "--processes", 2, "--rows", 400)
    process("datasets_map", *files, *more, "-o", tmp_path / "out")
    expected = build_reference(embedding_source([tmp_path / "real.parquet"], modality="image"), dataset=str(files[1]))
    assert_same_reference(cc.ReferenceSet.load(tmp_path / "out" / "reference.safetensors"), expected)
    figures = score(embedding_source([tmp_path / "made.parquet"], modality="image"), expected).to_dict()
    found = json.loads((tmp_path / "out" / "score.json").read_text(encoding="utf-8"))
    numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
    assert len(numbers) > 20
    assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-9, abs=1e-12)


@pytest.mark.slow
def test_datasets_map_encodes_images_with_the_embedded_model(process, material, tmp_path):
    pytest.importorskip("datasets", reason="datasets is not installed: make test-recipes")
    given = ("--encoder", "tiny", "--processes", 2, "--batch-size", 10)
    sides = ("--real", material.images, "--generated", material.images)
    process("datasets_map", *sides, *given, "-o", tmp_path / "out")
    found = cc.ReferenceSet.load(tmp_path / "out" / "reference.safetensors")
    expected = build_reference(image_source(survey_images(material.images), cc.load_encoder("tiny", "cpu")))
    assert found.provenance == expected.provenance
    torch.testing.assert_close(found.unit_mean, expected.unit_mean, rtol=0, atol=1e-6)
    said = process("datasets_map", *sides, *given, "-o", tmp_path / "out", status=2).stderr
    assert "exists; name a new folder" in said.splitlines()[-1]
