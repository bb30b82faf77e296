"""Which files folders, patterns and clip-retrieval's layout stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipconformity.data.layout import find_embeddings, find_metadata, list_embedding_files


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def found(*places, modality=None) -> list[str]:
    return [path.name for path in find_embeddings(places, modality).paths]


def test_a_folder_is_read_with_its_subfolders_in_the_order_of_numbers(tmp_path):
    touch(tmp_path, "e10.npy", "e2.npz", "a/e1.safetensors", "b/e3.parquet", "notes.txt", "b/e.json")
    touch(tmp_path, ".hidden.npy", ".cache/e4.npy", "metadata_0.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    files = find_embeddings([tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in files.paths] == [
        "a/e1.safetensors", "b/e3.parquet", "e2.npz", "e10.npy",
    ]  # fmt: skip
    assert files.ignored == 2
    assert sorted(list_embedding_files(tmp_path)) == sorted(files.paths)


def test_a_pattern_is_expanded_unless_a_file_has_that_name(tmp_path):
    touch(tmp_path, "e10.npy", "e9.npy", "f.npy", "a/e1.npy", ".e0.npy")
    assert found(tmp_path / "e*.npy") == ["e9.npy", "e10.npy"]
    assert found(tmp_path / "**" / "e?.npy") == ["e1.npy", "e9.npy"]
    assert found(tmp_path / "*") == ["e1.npy", "e9.npy", "e10.npy", "f.npy"]
    touch(tmp_path, "e[9].npy")
    assert found(tmp_path / "e[9].npy") == ["e[9].npy"]
    with pytest.raises(FileNotFoundError, match=r"g\*\.npy: no file fits this pattern"):
        found(tmp_path / "g*.npy")


def test_places_keep_their_order(tmp_path):
    touch(tmp_path, "b.npy", "a.npy", "c/d.npy")
    assert found(tmp_path / "b.npy", tmp_path / "c", tmp_path / "a.npy") == ["b.npy", "d.npy", "a.npy"]


def test_rows_are_named_by_what_tells_the_files_apart(tmp_path):
    touch(tmp_path, "a/e0.npy", "a/e1.npy", "b/e0.npy", "b/e0.npz")
    names = lambda *paths: find_embeddings([tmp_path / path for path in paths]).names  # noqa: E731
    assert names("a") == ["e0", "e1"]
    assert names("a/e0.npy", "b/e0.npy") == ["a/e0", "b/e0"]
    assert names("b") == ["e0.npy", "e0.npz"]


@pytest.mark.parametrize("start", ["img_emb", "emb"])
def test_a_folder_of_clip_retrieval_is_read_by_the_number_of_its_files(start, tmp_path):
    touch(tmp_path, *(f"{start}/img_emb_{n}.npy" for n in (0, 1, 2, 10, 11)), "metadata/metadata_0.parquet")
    assert found(tmp_path) == [f"img_emb_{n}.npy" for n in (0, 1, 2, 10, 11)]


def test_images_and_texts_together_are_refused_unless_one_is_chosen(tmp_path):
    touch(tmp_path, "img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy", "metadata/metadata_0.parquet")
    for place in (tmp_path, tmp_path / "*"):
        with pytest.raises(
            ValueError, match=r"images \(.*img_emb/img_emb_0\.npy\) and of texts \(.*--modality image or"
        ):
            found(place)
    assert found(tmp_path, modality="image") == ["img_emb_0.npy"]
    assert found(tmp_path, modality="text") == ["text_emb_0.npy"]
    assert found(tmp_path / "text_emb") == ["text_emb_0.npy"]


def test_metadata_are_found_beside_their_file(tmp_path):
    touch(tmp_path, "img_emb/img_emb_7.npy", "metadata/metadata_7.parquet", "img_emb_1.npy", "metadata_1.parquet")
    touch(tmp_path, "img_emb/img_emb_8.npy", "e_7.npy")
    needed = {"needed": True}
    assert find_metadata(tmp_path / "img_emb/img_emb_7.npy", **needed) == tmp_path / "metadata/metadata_7.parquet"
    assert find_metadata(tmp_path / "img_emb_1.npy", **needed) == tmp_path / "metadata_1.parquet"
    assert find_metadata(tmp_path / "img_emb/img_emb_8.npy", **needed) is None
    assert find_metadata(tmp_path / "e_7.npy", **needed) is None


def test_a_folder_without_embeddings_is_refused(tmp_path):
    touch(tmp_path, "a.txt", ".e.npy")
    with pytest.raises(ValueError, match=r"no embeddings in this folder \(looked for \.safetensors, \.npy"):
        find_embeddings([tmp_path])
