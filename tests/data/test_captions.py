"""Caption files: what they hold, and what is refused."""

import json

import pytest

from clipconformity.data import read_captions


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_text_lines_keep_their_numbers(tmp_path):
    captions = read_captions(write(tmp_path / "a.txt", "a dog\n\n  a cat \n"))
    assert captions.texts == ["a dog", "a cat"]
    assert captions.ids == ["1", "3"]
    assert captions.groups is None


def test_annotations_are_grouped_by_image(tmp_path):
    entries = [{"id": 7, "image_id": 1, "caption": "a dog"}, {"id": 8, "image_id": 1, "caption": "a hound"}]
    captions = read_captions(write(tmp_path / "a.json", {"images": [], "annotations": entries}))
    assert (captions.ids, captions.groups) == (["7", "8"], [1, 1])


def test_results_are_grouped_by_image(tmp_path):
    captions = read_captions(write(tmp_path / "a.json", [{"image_id": i, "caption": "a dog"} for i in (3, 4)]))
    assert (captions.ids, captions.groups) == (["3", "4"], [3, 4])


TWO = {"texts": ["a dog", "a cat"], "groups": ["x/dog.png", "cat.png"]}
RECORDS = [{"image": "x/dog.png", "text": "a dog"}, {"image": "cat.png", "text": "a cat"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", RECORDS),
        ("a.json", {"x/dog.png": "a dog", "cat.png": "a cat"}),
        ("a.jsonl", "\n".join(map(json.dumps, RECORDS)) + "\n\n"),
        ("a.csv", "image,split,text\nx/dog.png,val,a dog\ncat.png,val,a cat\n"),
        ("a.CSV", '\ufeffimage,text\r\n"x/dog.png","a dog"\r\ncat.png, a cat \r\n'),
        ("a.tsv", "image\tcaption\nx/dog.png\ta dog\ncat.png\ta cat\n"),
        ("a.json", [{"image_name": one["image"], "prediction": one["text"], "split": "test"} for one in RECORDS]),
    ],
)
def test_the_forms_that_people_have(tmp_path, name, content):
    captions = read_captions(write(tmp_path / name, content))
    assert {"texts": captions.texts, "groups": captions.groups} == TWO
    assert captions.ids == captions.groups
    assert not captions.remark


def test_names_of_coco_files_and_numbers_in_tables_are_image_ids(tmp_path):
    named = [{"image_name": f"val/COCO_val2014_{n:012d}.jpg", "prediction": "a dog"} for n in (5, 391895)]
    table = "image_id,caption\n5,a dog\n391895,a dog\n"
    for name, content in (("a.json", named), ("a.csv", table)):
        assert read_captions(write(tmp_path / name, content)).groups == [5, 391895]


def test_several_captions_of_an_image_are_one_group(tmp_path):
    content = {"dog.png": ["a dog", "a hound"], "cat.png": ["a cat"]}
    captions = read_captions(write(tmp_path / "a.json", content))
    assert captions.ids == ["dog.png#1", "dog.png#2", "cat.png#1"]
    assert captions.groups == ["dog.png", "dog.png", "cat.png"]


def test_of_two_columns_the_first_known_is_read_and_the_other_is_told(tmp_path):
    entry = {"image_name": "dog.png", "captions": ["a hound", "a pet"], "prediction": "a dog"}
    path = write(tmp_path / "a.json", [entry])
    captions = read_captions(path)
    assert captions.texts == ["a dog"]
    assert captions.remark == f"{path}: captions are read from 'prediction'; 'captions' can be had with --column."
    assert read_captions(path, "captions").texts == ["a hound", "a pet"]
    assert read_captions(write(tmp_path / "b.csv", "words\na dog\n"), "words").ids == ["1"]


def test_a_string_in_each_line(tmp_path):
    captions = read_captions(write(tmp_path / "a.jsonl", '"a dog"\n\n"a cat"\n'))
    assert (captions.texts, captions.ids, captions.groups) == (["a dog", "a cat"], ["1", "3"], None)


def test_a_list_of_strings_is_read(tmp_path):
    assert read_captions(write(tmp_path / "a.json", ["a dog", "a cat"])).texts == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"image_id": 1,', "broken JSON at line 1"),
        ("a.json", {"info": 3}, "expected a list of captions, COCO annotations"),
        ("a.json", [{"image": 1, "words": "a dog"}], "entry 0: expected keys image_id and caption.*with --column"),
        ("a.json", [*RECORDS, {"image": "c.png"}], "entry 2: expected keys image and text"),
        ("a.json", [*RECORDS, "a dog"], "entry 2: expected keys image and text, got str"),
        ("a.json", ["a dog", *RECORDS], "entry 1.*expected a caption in words"),
        ("a.json", [*RECORDS, {"image": 3, "text": "a dog"}], "entry 2: its image is 3 and that of entry 0 'x/dog"),
        ("a.jsonl", '{"image": 1, "text": "a dog"}\n{"image": 2,\n', "broken JSON at line 2"),
        ("a.csv", "image,text\n1,a dog\n2\n", "line 3: expected 2 columns"),
        ("a.csv", "image,text\n1,a dog,3\n", "line 2: expected 2 columns"),
        ("a.csv", "text,text\n1,a dog\n", "line 1: two columns have one name"),
        ("a.csv", "1,a dog\n2,a cat\n", "line 2: expected keys image_id and caption"),
        ("a.csv", 'image,text\n1,"a dog', "broken table after line 1"),
        ("a.csv", "image,text\n1," + "a" * 200_000, "broken table after line 1: field larger"),
        ("a.csv", "", "holds no captions"),
        ("a.json", [{"image_id": 1, "caption": " "}], "entry 0 .*expected a caption in words"),
        ("a.json", [], "holds no captions"),
        ("a.json", "3", "expected a list of captions"),
        ("a.json", "[" * 100_000, "broken JSON: nested too deeply"),
        ("a.txt", "\n \n", "holds no captions"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=rf"a\.\w+: {message}"):
        read_captions(write(tmp_path / name, content))


def test_absent_and_binary_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of captions"):
        read_captions(tmp_path / "absent.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_captions(tmp_path / "b.txt")


@pytest.mark.parametrize("name", ["x.xlsx", "x.parquet", "x"])
def test_other_files_are_not_taken_for_lines_of_captions(tmp_path, name):
    (tmp_path / name).write_text("id,caption\n1,a dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"whose name ends in \.txt \(one a line\), \.json, \.jsonl"):
        read_captions(tmp_path / name)


def test_a_line_ends_where_a_text_file_ends_one(tmp_path):
    (tmp_path / "x.txt").write_bytes("a\u2028b\r\nc\x85d\n\n".encode())
    assert read_captions(tmp_path / "x.txt").texts == ["a\u2028b", "c\x85d"]
