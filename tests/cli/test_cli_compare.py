"""Several models from the command line."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch

from clipconformity.cli import main
from clipconformity.data import write_embeddings
from clipconformity.demo import draw_scene, sample_scenes
from clipconformity.demo.scenes import specific_caption
from clipconformity.provenance import Provenance
from clipconformity.stream.stream import Stream

pytestmark = [  # of scenes whose captions a person may have given too
    pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning"),
    pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning"),
]
COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Captions of the same images by two models, one of which repeats itself, a folder of images and embeddings."""
    folder = tmp_path_factory.mktemp("compare")
    scenes = sample_scenes(COUNT, seed=3)
    people = [{"image_id": n, "id": 1000 * k + n, "caption": f"{specific_caption(one)} {k}"} for k in (0, 1)
              for n, one in enumerate(scenes)]  # fmt: skip
    varied = [{"image_id": n, "caption": specific_caption(one)} for n, one in enumerate(scenes)]
    for name, content in {
        "people": {"annotations": people},
        "varied": varied,
        "dull": [{"image_id": n, "caption": ("a red circle", "a blue square")[n % 2]} for n in range(COUNT)],
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "images").mkdir()
    for number, one in enumerate(scenes[:30]):
        draw_scene(one, seed=number).save(folder / "images" / f"{number:03d}.png")
    assert main(["reference", "--captions", str(folder / "people.json"), "--encoder", "tiny",
                 "-o", str(folder / "reference.safetensors")]) == 0  # fmt: skip
    return folder


@pytest.fixture
def reported(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)

    def call(*arguments, status=0):
        capsys.readouterr()
        command = ["compare", *arguments, "--reference", "reference.safetensors", "--resamples", "20"]
        assert main(command) == status
        return capsys.readouterr()

    return call


BOTH = ("varied=varied.json", "dull=dull.json")


def test_the_table_says_who_is_more_varied(reported):
    lines = reported(*BOTH).out.splitlines()
    assert lines[0].split()[:2] == ["run", "N"]
    assert any(line.startswith("varied is more varied than dull") for line in lines)


def test_json_has_scores_differences_and_ranks(reported):
    found = json.loads(reported(*BOTH, "--format", "json").out)
    assert list(found["runs"]) == ["varied", "dull"]
    assert found["ranks"]["variety_ratio"] == {"varied": 1, "dull": 2}
    difference = next(one for one in found["differences"] if one["figure"] == "variety_ratio")
    ratio = found["runs"]["varied"]["variety_ratio"] / found["runs"]["dull"]["variety_ratio"]
    assert difference["value"] == pytest.approx(ratio)
    assert found["measured"]["models"] == {"varied": "varied.json", "dull": "dull.json"}


def test_each_score_is_that_of_the_score_command(reported, capsys):
    found = json.loads(reported(*BOTH, "--format", "json").out)["runs"]["dull"]
    assert main(["score", "--captions", "dull.json", "--reference", "reference.safetensors", "--resamples", "20"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert {key: alone[key] for key in ("conformity_mean", "conformity_kl", "p_value")} == {
        key: found[key] for key in ("conformity_mean", "conformity_kl", "p_value")
    }


def test_further_metrics_are_columns(reported):
    rows = list(csv.DictReader(io.StringIO(reported(*BOTH, "--metrics", "cosine_mmd,vendi", "--format", "csv").out)))
    assert float(rows[0]["cosine_mmd"]) < float(rows[1]["cosine_mmd"])
    assert float(rows[1]["vendi"]) < 3


def test_a_report_has_every_model(reported, tmp_path):
    reported(*BOTH, "--report", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "varied" in page
    assert "dull" in page


def test_a_second_run_with_a_cache_encodes_nothing(reported, folder, encoded, tmp_path):
    cache = ("--cache", str(tmp_path / "cache"))
    first = reported(*BOTH, *cache).out
    assert encoded["encode_text"] > 0
    encoded["encode_text"] = 0
    assert reported(*BOTH, *cache).out == first
    assert encoded["encode_text"] == 0
    (folder / "more.json").write_text((folder / "dull.json").read_text().replace("red", "green"))
    reported("varied=varied.json", "more=more.json", *cache)
    assert encoded["encode_text"] > 0
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:-20])  # damaged: encoded anew
    assert reported(*BOTH, *cache).out == first


def test_images_are_cached_too_and_files_that_changed_are_encoded_anew(folder, encoded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    made = ["--images", "images", "--encoder", "tiny"]
    assert main(["reference", *made, "-o", str(tmp_path / "i.safetensors")]) == 0
    command = ["score", *made, "--reference", str(tmp_path / "i.safetensors"), "--cache", str(tmp_path / "c"),
               "--resamples", "20"]  # fmt: skip
    capsys.readouterr()
    outputs = []
    for _ in range(2):
        encoded["project_image"] = 0
        assert main(command) == 0
        outputs.append(capsys.readouterr().out)
    assert encoded["project_image"] == 0
    assert outputs[0] == outputs[1]
    image = folder / "images" / "000.png"
    draw_scene(sample_scenes(1, seed=99)[0], seed=99).save(image)
    assert main(command) == 0
    assert encoded["project_image"] > 0


def test_the_cache_tells_captions_of_other_images_apart(reported, folder, tmp_path):
    entries = [{"id": n, "image_id": n // 2, "caption": f"a {'red' if n % 3 else 'blue'} circle"} for n in range(60)]
    found = []
    for name, content in (("two", entries), ("one", [one | {"image_id": one["id"]} for one in entries])):
        (folder / f"{name}.json").write_text(json.dumps(content))
        given = (f"a={name}.json", "b=dull.json", "--format", "json", "--cache", str(tmp_path / "cache"))
        found.append(json.loads(reported(*given).out)["runs"]["a"]["verdicts"])
    assert found[0] != found[1]


@pytest.fixture
def saved(folder, tmp_path, monkeypatch):
    """The dull captions, scored and kept."""
    monkeypatch.chdir(folder)
    command = ["score", "--captions", "dull.json", "--reference", "reference.safetensors", "--resamples", "20"]
    assert main([*command, "--save", str(tmp_path / "dull.safetensors")]) == 0
    return tmp_path / "dull.safetensors"


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_saved_score_compares_as_its_source_and_encodes_nothing(format, reported, saved, encoded):
    first = reported(*BOTH, "--format", format).out
    encoded["encode_text"] = 0
    found = reported("varied=varied.json", f"dull={saved}", "--format", format).out
    assert encoded["encode_text"] > 0  # the other's
    assert found.replace(str(saved), "dull.json") == first
    encoded["encode_text"] = 0
    reported(f"a={saved}", f"b={saved}")
    assert encoded["encode_text"] == 0


def test_a_report_and_classes_take_saved_scores_too(reported, saved, tmp_path):
    with (tmp_path / "by.csv").open("w", newline="") as file:
        csv.writer(file).writerows([(n, "odd" if n % 2 else "even") for n in range(COUNT)])
    found = reported("varied=varied.json", f"dull={saved}", "--by", str(tmp_path / "by.csv"),
                 "--report", str(tmp_path / "r.html")).out  # fmt: skip
    assert [line.split()[:2] for line in found.splitlines() if line.startswith(("odd", "even"))] != []
    assert "dull" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_tables_of_differences_and_classes(reported, tmp_path):
    rows = list(csv.DictReader(io.StringIO(reported(*BOTH, "--table", "differences", "--format", "csv").out)))
    figures = [row["figure"] for row in rows]
    assert figures[:2] == ["typicality_shift", "variety_ratio"]
    assert {"conformity_mean", "self_conformity_mean", "norm_mean", "spread_ratio"} <= set(figures)
    with (tmp_path / "by.csv").open("w", newline="") as file:
        csv.writer(file).writerows([(n, "odd" if n % 2 else "even") for n in range(COUNT)])
    by = ("--by", str(tmp_path / "by.csv"))
    rows = list(csv.DictReader(io.StringIO(reported(*BOTH, *by, "--table", "classes", "--format", "csv").out)))
    assert {(row["class"], row["run"]) for row in rows} == {(x, y) for x in ("odd", "even") for y in ("varied", "dull")}
    both = reported(*BOTH, *by, "--format", "latex").out
    assert both.count(r"\begin{tabular}") == 2
    assert reported(*BOTH, *by, "--format", "latex", "--table", "runs").out.count(r"\begin{tabular}") == 1
    assert len(list(csv.reader(io.StringIO(reported(*BOTH, *by, "--format", "csv").out)))) == 3
    found = json.loads(reported(*BOTH, *by, "--format", "json").out)
    assert len(found["runs"]["dull"]["by"]["classes"]) == 2
    assert "--table: classes goes with --by" in reported(*BOTH, "--table", "classes", status=2).err


def test_a_saved_score_is_refused_where_it_does_not_belong(reported, saved, folder, capsys, tmp_path):
    other = str(tmp_path / "other.safetensors")
    assert main(["reference", "--captions", "varied.json", "--encoder", "tiny", "-o", other]) == 0
    capsys.readouterr()
    assert main(["compare", "a=varied.json", f"b={saved}", "--reference", other, "--resamples", "20"]) == 2
    assert f"b: {saved}: scored against the reference '" in capsys.readouterr().err
    found = reported("a=varied.json", f"b={saved}", "--metrics", "frechet", status=2).err
    assert "metric 'frechet' needs second moments of the rows, which this saved score lacks" in found
    assert "a: reference.safetensors is a reference set; give it as `--reference FILE`" in reported(
        "a=reference.safetensors", f"b={saved}", status=2
    ).err  # fmt: skip
    assert main(["compare", "a=varied.json", "b=dull.json", "--reference", str(saved)]) == 2
    assert "not a reference set, but a saved score" in capsys.readouterr().err
    for command in (["score", "--embeddings", str(saved), "--reference", "reference.safetensors"],
                    ["reference", "--embeddings", str(saved), "-o", str(tmp_path / "new.safetensors")]):  # fmt: skip
        assert main(command) == 2
        assert "it is a saved score, not embeddings; give it to `clipconformity compare`" in capsys.readouterr().err
    saved.write_bytes(saved.read_bytes()[:-9])
    assert "b: " in reported("a=varied.json", f"b={saved}", status=2).err


def test_a_saved_score_is_not_written_over(reported, saved, folder, capsys):
    command = ["score", "--captions", "dull.json", "--reference", "reference.safetensors", "--save"]
    assert main([*command, str(saved)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*command, "kept.json"]) == 2
    assert "--save: expected a name that ends in .safetensors" in capsys.readouterr().err
    page = saved.with_suffix(".html")
    page.symlink_to(saved)
    found = reported("a=varied.json", f"b={saved}", "--report", str(page), "--overwrite", status=2).err
    assert "are the same file" in found


BAD = {
    "column": (["a=images", "b=images", "--column", "words"], "--column: goes with embeddings, a file of captions"),
    "column of embeddings": (["a=e.npy", "b=e.npy", "--column", "words"], "e.npy: there is no array or column 'words'"),
    "ids": (["a=images", "b=images", "--ids", "id"], "--ids: goes with embeddings; leave it out"),
    "one model": (["varied=varied.json"], "expected at least two models"),
    "twice": (["a=varied.json", "a=dull.json"], "two models are called 'a'"),
    "no name": (["varied.json", "b=dull.json"], "expected NAME=SOURCE, such as mine=samples/, got 'varied.json'"),
    "absent": (["a=varied.json", "b=absent.json"], "b: absent.json: no such file or folder"),
    "modality": (["a=varied.json", "b=images"], "b: "),
    "dimension": (["a=varied.json", "b=e.npy"], "b: "),
    "encoder": (["a=varied.json", "b=other.safetensors"], "b: the samples come from encoder 'hf:other/model'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_compared_is_refused_in_one_line(case, reported, folder):
    rows = torch.from_numpy(np.random.default_rng(0).normal(1, 1, (40, 64)).astype(np.float32))
    np.save(folder / "e.npy", rows[:, :7].numpy())
    write_embeddings(folder / "other.safetensors", rows, provenance=Provenance("hf:other/model", None, "text"))
    models, message = BAD[case]
    found = reported(*models, status=2)
    assert found.out == ""
    last = found.err.splitlines()[-1]
    assert last.startswith("clipconformity: error: ")
    assert message in last


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture
def material(tmp_path, monkeypatch):
    """Forty real images and their reference, and thirty others."""
    monkeypatch.chdir(tmp_path)
    for name, seed, count in (("real", 1, 40), ("mine", 2, 30)):
        (tmp_path / name).mkdir()
        for number, scene in enumerate(sample_scenes(count, seed=seed)):
            draw_scene(scene, seed=number).save(tmp_path / name / f"{name}-{number:02d}.png")
    assert main(["reference", "--images", "real", "--encoder", "tiny", "-o", "r.safetensors", "--quiet"]) == 0
    monkeypatch.setattr("clipconformity.cli.scores.open_source", lambda *_: pytest.fail("work was begun"))
    return tmp_path


SCORE = ("score", "--images", "mine", "--reference", "r.safetensors", "--resamples", "20")
COMPARE = ("compare", "a=mine", "b=real", "--reference", "r.safetensors", "--resamples", "20")


@pytest.mark.parametrize("command", [SCORE, COMPARE], ids=["score", "compare"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reference-images", "nowhere"], "--reference-images: nowhere: "),
        (["--reference-images", "mine"], "--reference-images: none of its samples is in the reference, such as 'real-"),
        (["--reference-captions", "c.txt"], "--reference-captions: none of its samples is in the reference"),
        (["--reference-captions", "none.json"], "--reference-captions: "),
    ],
)
def test_what_the_report_is_to_show_of_the_reference_is_checked_before_any_work(
    material, capsys, command, options, message
):
    (material / "c.txt").write_text("a red circle")
    assert main([*command, "--report", "r.html", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (material / "r.html").exists()


@pytest.mark.parametrize("command", [SCORE, COMPARE], ids=["score", "compare"])
def test_classes_of_none_of_the_images_are_refused_before_any_work(material, capsys, monkeypatch, command):
    monkeypatch.undo()
    monkeypatch.chdir(material)
    monkeypatch.setattr(Stream, "update", lambda *_, **__: pytest.fail("work was begun"))
    (material / "by.csv").write_text("id,class\nmine-00,x\n")
    assert main([*command, "--by", "by.csv"]) == 2
    assert "give their names as they are in the folder, such as 'mine-00.png'" in capsys.readouterr().err


def test_classes_go_by_the_names_that_a_list_has(material, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(material)
    names = [f"./mine//mine-{n:02d}.png" for n in range(30)]
    (material / "list.txt").write_text("\n".join(names))
    (material / "by.csv").write_text("id,class\n" + "".join(f"{name},x\n" for name in names))
    command = ["score", "--images", "list.txt", "--reference", "r.safetensors", "--resamples", "20", "--by", "by.csv"]
    assert main([*command, "--per-class", "classes.csv"]) == 0
    assert (material / "classes.csv").read_text().splitlines()[1].startswith("x,30,")


@pytest.mark.filterwarnings("default:--reference-images")
def test_reference_samples_that_are_not_given_are_counted(material, capsys, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(material)
    (material / "real" / "real-07.png").rename(material / "gone.png")
    assert main([*SCORE, "--report", "r.html", "--reference-images", "real"]) == 0
    assert "1 of 40 samples of the reference are not in it, such as 'real-07.png'" in capsys.readouterr().err


def test_a_table_is_not_asked_for_in_json(reported):
    assert "JSON holds all of them" in reported("a=varied.json", "b=dull.json", "--table", "runs", "--format", "json",
                                            status=2).err  # fmt: skip
