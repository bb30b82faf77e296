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


def test_results_with_one_caption_an_image_have_no_groups(tmp_path):
    captions = read_captions(write(tmp_path / "a.json", [{"image_id": i, "caption": "a dog"} for i in (3, 4)]))
    assert (captions.ids, captions.groups) == (["3", "4"], None)


def test_a_list_of_strings_is_read(tmp_path):
    assert read_captions(write(tmp_path / "a.json", ["a dog", "a cat"])).texts == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"image_id": 1,', "broken JSON at line 1"),
        ("a.json", {"captions": []}, "expected COCO annotations"),
        ("a.json", [{"image": 1, "text": "a dog"}], "entry 0: expected keys image_id and caption"),
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


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x"])
def test_other_files_are_not_taken_for_lines_of_captions(tmp_path, name):
    (tmp_path / name).write_text("id,caption\n1,a dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected captions in a \.txt file, one a line, or a \.json file"):
        read_captions(tmp_path / name)


def test_a_line_ends_where_a_text_file_ends_one(tmp_path):
    (tmp_path / "x.txt").write_bytes("a\u2028b\r\nc\x85d\n\n".encode())
    assert read_captions(tmp_path / "x.txt").texts == ["a\u2028b", "c\x85d"]
