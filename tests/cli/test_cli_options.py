"""Options that all commands share, and the list of encoders."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from clipconformity.cli import main
from clipconformity.demo import draw_scene, sample_scenes
from clipconformity.encoders import encoder_specs

Image.init()  # or the formats that it can write are not all known yet


@pytest.fixture
def folder(tmp_path):
    """Images, and a file that is none, of which a warning tells."""
    for number, scene in enumerate(sample_scenes(6, seed=0)):
        draw_scene(scene, seed=number).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.doc").write_text("x")
    return tmp_path


@pytest.mark.filterwarnings("default")
def test_quiet_leaves_out_warnings_and_keeps_the_result(folder, capsys, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("out") / "e.safetensors")
    command = ["embed", "--images", str(folder), "--encoder", "tiny", "-o", output, "--overwrite"]
    assert main(command) == 0
    reported = capsys.readouterr()
    assert "1 of other suffixes" in reported.err
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr() == (reported.out, "")
    assert main(["embed", "--images", "absent", "--encoder", "tiny", "-o", output, "--overwrite", "--quiet"]) == 2
    assert "absent" in capsys.readouterr().err


def test_the_precision_of_the_encoder_is_that_told(folder, capsys, tmp_path_factory):
    (folder / "notes.doc").unlink()
    output = tmp_path_factory.mktemp("out") / "e.safetensors"
    made = ["embed", "--images", str(folder), "--encoder", "tiny", "--dtype", "bfloat16", "-o", str(output)]
    assert main(made) == 0
    reference = ["reference", "--embeddings", str(output), "-o", str(output.with_name("r.safetensors"))]
    capsys.readouterr()
    assert main(reference) == 0
    assert json.loads(capsys.readouterr().out)["encoder_id"]["precision"] == "bfloat16"


def test_encoders_are_found_by_a_part_of_their_spec(capsys):
    pytest.importorskip("open_clip")
    assert main(["encoders", "vit-b-32/open"]) == 0
    found = json.loads(capsys.readouterr().out)["encoders"]
    known = {"embed_dim": 512, "resolution": 224}
    assert {"spec": "open_clip:ViT-B-32/openai", **known, "licence": "see its card"} in found
    assert all("vit-b-32/open" in one["spec"].lower() for one in found)
    assert main(["encoders", "tiny"]) == 0
    tiny = {"spec": "tiny", "embed_dim": 64, "resolution": 32, "licence": "Apache-2.0"}
    assert tiny in json.loads(capsys.readouterr().out)["encoders"]
    assert main(["encoders", "VIT-B/32"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_licences_are_those_of_the_weights_and_not_of_names_that_look_alike():
    open_clip = pytest.importorskip("open_clip")
    found = {one["spec"]: one["licence"] for one in encoder_specs()}
    for spec, licence in {
        "open_clip:ViT-B-32/laion2b_s34b_b79k": "MIT",
        "open_clip:ViT-B-32/metaclip_400m": "CC-BY-NC-4.0",
        "open_clip:ViT-B-16-SigLIP/webli": "Apache-2.0",
        "open_clip:nllb-clip-base-siglip/v1": "see its card",
        "open_clip:ViT-B-32/commonpool_s_s13m_b4k": "see its card",
        "open_clip:ViT-B-32/openai": "see its card",
    }.items():
        assert found[spec] == licence, spec
    tags = sum(len(open_clip.list_pretrained_tags_by_model(name)) for name in open_clip.list_models())
    assert sum(spec.startswith("open_clip:") for spec in found) == tags


@pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this Pillow has no AVIF")
def test_images_of_newer_kinds_are_read(tmp_path, capsys):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.avif")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "b.jfif", "JPEG")
    output = str(tmp_path / "e.safetensors")
    assert main(["embed", "--images", str(tmp_path), "--encoder", "tiny", "-o", output]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 2
