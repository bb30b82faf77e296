"""Embedding files of every kind, good and bad."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipconformity import ReferenceSet
from clipconformity.data import read_embeddings, write_embeddings
from clipconformity.provenance import UNKNOWN, Provenance

ROWS = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) + 1
SUFFIXES = [".safetensors", ".npy", ".npz", ".pt"]


def write(path: Path, rows: torch.Tensor, **more) -> Path:
    """Write plain files with the tools of each format, not with the library."""
    if path.suffix == ".safetensors":
        save_file({"embeddings": rows.contiguous(), **more}, path)
    elif path.suffix == ".npy":
        np.save(path, rows.numpy())
    elif path.suffix == ".npz":
        np.savez(path, embeddings=rows.numpy(), **{k: v.numpy() for k, v in more.items()})
    else:
        torch.save({"embeddings": rows, **more} if more else rows, path)
    return path


every_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


@every_suffix
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_kind_of_file_gives_its_rows(suffix, dtype, tmp_path):
    file = read_embeddings(write(tmp_path / f"e{suffix}", ROWS.to(dtype)))
    assert torch.equal(file.embeddings, ROWS.to(dtype))
    assert file.ids[:2] == ["e:0", "e:1"]
    assert len(set(file.ids)) == 20
    assert (file.groups, file.provenance) == (None, UNKNOWN)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_bfloat16_is_read(suffix, tmp_path):
    rows = ROWS.bfloat16()
    assert torch.equal(read_embeddings(write(tmp_path / f"e{suffix}", rows)).embeddings, rows)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_groups_beside_the_embeddings_are_read(suffix, tmp_path):
    groups = torch.arange(20) // 5
    assert torch.equal(read_embeddings(write(tmp_path / f"e{suffix}", ROWS, groups=groups)).groups, groups)


@every_suffix
def test_axes_of_length_one_are_dropped(suffix, tmp_path):
    file = read_embeddings(write(tmp_path / f"e{suffix}", ROWS[:, None, :]))
    assert torch.equal(file.embeddings, ROWS)


def test_a_single_row_is_not_dropped(tmp_path):
    assert read_embeddings(write(tmp_path / "e.npy", ROWS[:1, None])).embeddings.shape == (1, 6)


@pytest.mark.parametrize("kind", [">f4", ">f8", "fortran", "strided"])
def test_numpy_arrays_in_any_memory_order_are_read(kind, tmp_path):
    array = ROWS.numpy()
    given = {"fortran": np.asfortranarray(array), "strided": np.repeat(array, 2, axis=1)[:, ::2]}.get(kind)
    np.save(tmp_path / "e.npy", array.astype(kind) if given is None else given)
    np.testing.assert_allclose(read_embeddings(tmp_path / "e.npy").embeddings, array)


def test_one_array_of_any_name_is_enough(tmp_path):
    np.savez(tmp_path / "e.npz", features=ROWS.numpy())
    assert torch.equal(read_embeddings(tmp_path / "e.npz").embeddings, ROWS)


@pytest.mark.parametrize("shape", [(20,), (20, 3, 2), ()])
@every_suffix
def test_another_shape_is_refused(shape, suffix, tmp_path):
    rows = torch.ones(shape)
    with pytest.raises(ValueError, match=r"e\.\w+: expected shape \(N, D\), got \("):
        read_embeddings(write(tmp_path / f"e{suffix}", rows))


def test_what_is_written_is_read_again(tmp_path):
    groups = torch.arange(20) // 2
    ids = [f"image {i}, “ü”" for i in range(20)]
    write_embeddings(
        tmp_path / "e.safetensors", ROWS, ids=ids, groups=groups, provenance=Provenance("tiny", None, "image")
    )
    file = read_embeddings(str(tmp_path / "e.safetensors"))
    assert torch.equal(file.embeddings, ROWS)
    assert torch.equal(file.groups, groups)
    assert (file.ids, file.provenance) == (ids, Provenance("tiny", None, "image"))
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]


def test_rows_that_are_not_contiguous_are_written(tmp_path):
    write_embeddings(tmp_path / "e.safetensors", ROWS.T.contiguous().T)
    assert torch.equal(read_embeddings(tmp_path / "e.safetensors").embeddings, ROWS)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(tensors, name, metadata):
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        write_embeddings(tmp_path / "e.safetensors", ROWS)
    assert not list(tmp_path.iterdir())


# --- bad files -------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npy: no such file"):
        read_embeddings(tmp_path / "none.npy")


@pytest.mark.parametrize("name", ["e.csv", "e", "e.pkl", "e.json"])
def test_an_unknown_kind_is_refused_naming_those_known(name, tmp_path):
    (tmp_path / name).write_text("1,2")
    with pytest.raises(ValueError, match=r"expected a file ending in \.safetensors, \.npy, \.npz, \.pt"):
        read_embeddings(tmp_path / name)


@every_suffix
@pytest.mark.parametrize("size", [0, 1, 10, 0.3, 0.9, -1])
def test_a_truncated_file_is_refused(suffix, size, tmp_path):
    path = write(tmp_path / f"e{suffix}", ROWS)
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content)) if isinstance(size, float) else size])
    with pytest.raises(ValueError, match="cannot be read as .* without unpickling"):
        read_embeddings(path)


@every_suffix
@pytest.mark.parametrize("seed", range(3))
def test_a_random_file_is_refused(suffix, seed, tmp_path):
    path = tmp_path / f"e{suffix}"
    path.write_bytes(np.random.default_rng(seed).bytes(3000))
    with pytest.raises(ValueError, match="cannot be read as .* without unpickling"):
        read_embeddings(path)


@every_suffix
@pytest.mark.parametrize("seed", range(4))
def test_a_file_with_damaged_bytes_gives_rows_or_an_error_of_one_kind(suffix, seed, tmp_path):
    """Damage in the data itself may pass; no other exception may come out."""
    path = write(tmp_path / f"e{suffix}", ROWS, **({} if suffix == ".npy" else {"groups": torch.arange(20)}))
    content = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    for position in random.integers(0, len(content), 40):
        content[position] = int(random.integers(0, 256))
    path.write_bytes(bytes(content))
    try:
        read_embeddings(path)
    except (ValueError, TypeError) as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right


class Trap:
    """Makes a file if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@every_suffix
def test_a_pickle_is_refused_and_not_run(suffix, tmp_path):
    path = tmp_path / f"e{suffix}"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(ValueError, match="cannot be read"):
        read_embeddings(path)
    assert not (tmp_path / "ran").exists()


def test_a_pt_file_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"embeddings": ROWS, "more": Trap(tmp_path / "ran")}, tmp_path / "e.pt")
    with pytest.raises(ValueError, match="cannot be read as .pt without unpickling"):
        read_embeddings(tmp_path / "e.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_object_array_is_refused_and_not_run(suffix, tmp_path):
    array = np.array([Trap(tmp_path / "ran"), None], dtype=object)
    if suffix == ".npy":
        np.save(tmp_path / "e.npy", array, allow_pickle=True)
    else:
        np.savez(tmp_path / "e.npz", embeddings=array)
    with pytest.raises(ValueError, match=f"cannot be read as {suffix} without unpickling"):
        read_embeddings(tmp_path / f"e{suffix}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[ROWS], "text", {"a": 1}, 3.0])
def test_a_pt_file_without_a_tensor_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "e.pt")
    with pytest.raises(ValueError, match="not a tensor or a dict of tensors"):
        read_embeddings(tmp_path / "e.pt")


@every_suffix
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_integers_are_refused(suffix, dtype, tmp_path):
    with pytest.raises(TypeError, match=r"e\.\w+: expected floating-point raw embeddings"):
        read_embeddings(write(tmp_path / f"e{suffix}", ROWS.to(dtype)))


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.ones((3, 2), complex), np.ones((3, 2), bool)])
def test_arrays_that_are_no_numbers_are_refused(array, tmp_path):
    np.save(tmp_path / "e.npy", array)
    with pytest.raises((ValueError, TypeError), match=r"e\.npy"):
        read_embeddings(tmp_path / "e.npy")


def test_several_arrays_without_a_name_are_refused_naming_them(tmp_path):
    np.savez(tmp_path / "e.npz", a=ROWS.numpy(), b=ROWS.numpy())
    with pytest.raises(ValueError, match=r"one named 'embeddings', got \['a', 'b'\]"):
        read_embeddings(tmp_path / "e.npz")


def test_groups_of_another_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"groups of shape \(19,\) do not match its 20 embeddings"):
        read_embeddings(write(tmp_path / "e.npz", ROWS, groups=torch.arange(19)))


def test_ids_of_another_length_are_refused(tmp_path):
    write_embeddings(tmp_path / "e.safetensors", ROWS, ids=["a"] * 19)
    with pytest.raises(ValueError, match="ids do not match its 20 embeddings"):
        read_embeddings(tmp_path / "e.safetensors")


def test_a_reference_is_not_taken_for_embeddings(tmp_path):
    ReferenceSet.fit(ROWS).save(tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match="it is a reference set, not embeddings"):
        read_embeddings(tmp_path / "r.safetensors")


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "e.npy").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=r"e\.npy"):
        read_embeddings(tmp_path / "e.npy")


def test_a_sparse_tensor_is_refused(tmp_path):
    torch.save(torch.eye(8).to_sparse(), tmp_path / "e.pt")
    with pytest.raises(ValueError, match=r"e\.pt: expected a dense array"):
        read_embeddings(tmp_path / "e.pt")


@pytest.mark.parametrize("about", ["null", "[]", '{"ids": 3}', '{"spec": [1]}'])
def test_metadata_of_other_types_is_refused(tmp_path, about):
    path = tmp_path / "e.safetensors"
    save_file({"embeddings": torch.ones(3, 2)}, path, {"format": "clipconformity-embeddings", "about": about})
    with pytest.raises(ValueError, match=r"e\.safetensors: .*metadata is damaged"):
        read_embeddings(path)
