"""MS-COCO: layouts, the Karpathy split, the choice of captions, and what is refused."""

import json
import shutil

import pytest

from clipconformity.data import list_images, read_captions, read_coco
from clipconformity.demo import sample_scenes, write_coco_scenes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    write_coco_scenes(root, sample_scenes(12, seed=0), seed=0)
    return root


def write(root, split, images, annotations, folder=None):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": name} for i, name in images],
        "annotations": [{"id": a, "image_id": i, "caption": text} for a, i, text in annotations],
    }
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    folder = root / split if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    for _, name in images:
        (folder / name).write_bytes(b"an image")
    return root


IMAGES = [(9, "COCO_val2014_000000000009.jpg"), (25, "COCO_val2014_000000000025.jpg")]
ANNOTATIONS = [(3, 25, "a giraffe"), (1, 9, "a lunch box"), (2, 9, " food in boxes "), (4, 25, "two giraffes")]


def karpathy(path, split="test", place="val2014"):
    images = [
        {
            "filename": name,
            "filepath": place,
            "cocoid": i,
            "imgid": n,
            "split": split if n else "train",
            "sentences": [{"raw": text, "sentid": a} for a, image, text in ANNOTATIONS if image == i],
        }
        for n, (i, name) in enumerate(IMAGES)
    ]
    path.write_text(json.dumps({"dataset": "coco", "images": images}), encoding="utf-8")
    return path


def test_one_caption_an_image_is_one_of_its_own(drawn):
    found = read_coco(drawn)
    every = read_coco(drawn, per_image=None)
    assert len(found.image_paths) == len(found.captions.texts) == 12
    assert len(every.captions.texts) == 60
    assert found.captions.groups == found.image_ids == list(range(1, 13))
    assert all(path.is_file() for path in found.image_paths)
    known = set(zip(every.captions.ids, every.captions.groups, every.captions.texts, strict=True))
    assert set(zip(found.captions.ids, found.captions.groups, found.captions.texts, strict=True)) <= known


def test_the_choice_follows_the_seed_and_not_the_order_of_the_file(drawn, tmp_path):
    assert read_coco(drawn, seed=1) == read_coco(drawn, seed=1)
    assert read_coco(drawn, seed=1).captions.ids != read_coco(drawn, seed=2).captions.ids
    path = drawn / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"].reverse()
    content["images"] = content["images"][6:]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / path.name).write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "images").symlink_to(drawn / "val2017")
    assert read_coco(tmp_path, seed=1).captions.ids == read_coco(drawn, seed=1).captions.ids[6:]


def test_several_captions_are_chosen_without_repeats(drawn):
    found = read_coco(drawn, per_image=3)
    assert len(set(found.captions.ids)) == len(found.captions.ids) == 36
    assert read_coco(drawn, per_image=9).captions == read_coco(drawn, per_image=None).captions


def test_every_caption_is_chosen_now_and_then(drawn):
    chosen = {name for seed in range(60) for name in read_coco(drawn, seed=seed).captions.ids}
    one = read_coco(drawn, seed=0).captions
    assert (
        len({int(name) - 5 * (image - 1) for name, image in zip(one.ids, one.groups, strict=True)}) > 1
    )  # not all alike
    assert chosen == set(read_coco(drawn, per_image=None).captions.ids)


@pytest.mark.parametrize("place", ["val2014", "images/val2014", "images"])
def test_the_2014_layouts_are_found(tmp_path, place):
    write(tmp_path, "val2014", IMAGES, ANNOTATIONS, tmp_path / place)
    found = read_coco(tmp_path, "val2014", per_image=None)
    assert found.image_paths == [tmp_path / place / name for _, name in IMAGES]
    assert found.captions.texts == ["a lunch box", "food in boxes", "a giraffe", "two giraffes"]
    assert found.captions.groups == [9, 9, 25, 25]


def test_a_karpathy_split_gives_the_same_images_and_choice_as_the_annotations(tmp_path):
    write(tmp_path, "val2014", IMAGES, ANNOTATIONS)
    found = read_coco(tmp_path, "test", karpathy=karpathy(tmp_path / "dataset_coco.json"))
    official = read_coco(tmp_path, "val2014")
    assert found.image_paths == official.image_paths[1:]
    assert found.captions.ids == official.captions.ids[1:]
    assert found.captions.groups == [25]


def test_a_karpathy_file_without_cocoid_counts_by_imgid(tmp_path):
    path = tmp_path / "dataset_flickr30k.json"
    entry = {"filename": "1.jpg", "imgid": 5, "split": "test", "sentences": [{"raw": "a man", "sentid": 25}]}
    path.write_text(json.dumps({"images": [entry]}), encoding="utf-8")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(b"an image")
    assert read_coco(tmp_path, "test", karpathy=path).image_ids == [5]


def test_an_unknown_karpathy_split_is_told_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="no split 'val2014'; it has 'test', 'train'"):
        read_coco(tmp_path, "val2014", karpathy=karpathy(tmp_path / "k.json"))


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    images = [(n, f"{n:012d}.jpg") for n in range(1, 8)]
    write(tmp_path, "val2017", images, [(n, n, "a dog") for n, _ in images])
    for _, name in images[:5]:
        (tmp_path / "val2017" / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"5 of 7 images of val2017 are missing: .*1\.jpg.*3\.jpg, \.\.\."):
        read_coco(tmp_path)
    found = read_coco(tmp_path, on_missing="skip")
    assert found.image_ids == [6, 7]
    assert found.captions.groups == [6, 7]
    assert len(found.missing) == found.describe()["missing"] == 5


def test_a_dataset_without_any_image_is_an_error_even_when_skipping(tmp_path):
    write(tmp_path, "val2017", [(1, "1.jpg")], [(1, 1, "a dog")])
    (tmp_path / "val2017" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 1 images"):
        read_coco(tmp_path, on_missing="skip")


def test_the_chosen_captions_are_stored_with_their_ids(drawn, tmp_path):
    found = read_coco(drawn, per_image=2, seed=3)
    found.save_captions(tmp_path / "chosen.json")
    assert read_captions(tmp_path / "chosen.json") == found.captions
    assert found.name == "coco val2017, captions per image: 2, seed 3"


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([(1, "1.jpg"), (1, "2.jpg")], [(1, 1, "a dog")], "1 image ids come twice"),
        ([(1, "1.jpg")], [(1, 1, "a dog"), (1, 1, "a cat")], "1 caption ids come twice"),
        ([(1, "1.jpg")], [(1, 2, "a dog")], "annotation 1 is of image 2, which is not among"),
        ([(1, "1.jpg"), (2, "2.jpg")], [(1, 1, "a dog")], "1 images have no caption; the first ids are 2"),
        ([(1, "1.jpg")], [(1, 1, " ")], "1 captions are empty; the first ids are 1"),
        ([("1", "1.jpg")], [(1, 1, "a dog")], "images, entry 0: expected id .int., got '1'"),
        ([], [], "holds no images"),
    ],
)
def test_broken_annotations_are_refused(tmp_path, images, annotations, message):
    write(tmp_path, "val2017", images, annotations)
    with pytest.raises(ValueError, match=message):
        read_coco(tmp_path)


def test_a_wrong_place_or_argument_is_told(drawn, tmp_path):
    with pytest.raises(NotADirectoryError, match="expected the folder of MS-COCO"):
        read_coco(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="splits found here: val2017"):
        read_coco(drawn, "train2017")
    with pytest.raises(ValueError, match="per_image: expected at least 1"):
        read_coco(drawn, per_image=0)
    with pytest.raises(ValueError, match="on_missing: expected"):
        read_coco(drawn, on_missing="ignore")
    with pytest.raises(ValueError, match="seed: expected"):
        read_coco(drawn, seed=-1)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="broken JSON at line 1"):
        read_coco(tmp_path)


def test_images_come_in_the_order_of_their_folder(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["images"].reverse()
    path.write_text(json.dumps(content), encoding="utf-8")
    found = read_coco(tmp_path / "coco")
    assert found.image_paths == list_images(tmp_path / "coco" / "val2017")
    assert found.captions.groups == found.image_ids
    assert found.captions == read_coco(drawn).captions
