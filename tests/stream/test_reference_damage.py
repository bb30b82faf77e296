"""A stored reference that breaks one of its invariants is refused, with the file and the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import ellipsoid_rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from state_files import of, put, rewrite

from clipconformity import ReferenceSet
from clipconformity.cli import main
from clipconformity.stream.state_file import compute_checksum

N, KEPT, DIM = 40, 25, 6


@pytest.fixture
def saved(generator, tmp_path) -> Path:
    """A reference of 40 rows that keeps 25."""
    ReferenceSet.fit(ellipsoid_rows(N, DIM, generator), max_samples=KEPT).save(tmp_path / "r.safetensors")
    return tmp_path / "r.safetensors"


FIELDS = {
    "count of one": ({"count": 1}, "count is 1"),
    "count of none": ({"count": 0}, "count is 0"),
    "count below none": ({"count": -40}, "count is -40"),
    "count beyond all": ({"count": 10**30}, "count is 1000000"),
    "count that float64 does not tell": ({"count": 2**53}, "count is 9007199254740992"),
    "count of another type": ({"count": 40.0}, "count is 40.0"),
    "count of true": ({"count": True}, "count is True"),
    "count of nothing": ({"count": None}, "count is None"),
    "count below the rows kept": ({"count": KEPT - 1}, "sample_keys: 25 rows of 24"),
    "one row kept": ({"max_samples": 1}, "max_samples is 1"),
    "fewer rows allowed than kept": ({"max_samples": KEPT - 1}, "of which at most 24"),
    "more rows allowed than kept": ({"max_samples": KEPT + 1}, "sample_copies are 25 rows of 40, though all"),
    "no dimension": ({"embed_dim": 0}, "embed_dim is 0"),
    "negative dimension": ({"embed_dim": -6}, "embed_dim is -6"),
    "another dimension": ({"embed_dim": DIM + 1}, "raw_sum is not a finite tensor of shape (7,)"),
    "a huge dimension": ({"embed_dim": 10**30}, "embed_dim is 1000000"),
    "another modality": ({"modality": "audio"}, "modality is 'audio'"),
    "spec of a number": ({"spec": 3}, "spec is 3"),
    "dataset of a list": ({"dataset": []}, "dataset is []"),
    "encoder of numbers": ({"encoder_id": {"weights": 3}}, "encoder_id is {'weights': 3}"),
    "normalized of a number": ({"normalized": 1}, "normalized is 1"),
    "grouped of a word": ({"grouped": "no"}, "grouped is 'no'"),
    "a field too many": ({"more": 1}, "expected the fields count, dataset"),
    "too deep": ("[" * 100_000, "metadata cannot be read"),
    "a number of too many digits": ('{"count": ' + "1" * 5000 + "}", "damaged: "),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_damaged_field_is_named_with_the_file(kind, saved):
    fields, message = FIELDS[kind]
    rewrite(saved, reference=fields)
    with pytest.raises(ValueError, match=r"r\.safetensors: damaged: ") as raised:
        ReferenceSet.load(saved)
    assert message in str(raised.value)


TENSORS = {
    "raw_sum of float32": (of("raw_sum", lambda t: t.float()), "raw_sum is of torch.float32"),
    "unit_sum of float32": (of("unit_sum", lambda t: t.float()), "unit_sum is of torch.float32"),
    "second_moment of float16": (of("second_moment", lambda t: t.half()), "second_moment is of torch.float16"),
    "rows of float64": (of("sample_rows", lambda t: t.double()), "sample_rows is of torch.float64"),
    "rows of whole numbers": (of("sample_rows", lambda t: t.long()), "sample_rows is of torch.int64"),
    "keys of float64": (of("sample_keys", lambda t: t.double()), "sample_keys is of torch.float64"),
    "groups of int32": (of("sample_groups", lambda t: t.int()), "sample_groups is of torch.int32"),
    "copies of bool": (of("sample_copies", lambda t: t.bool()), "sample_copies is of torch.bool"),
    "too long a sum": (of("unit_sum", lambda t: t * 1.001), "unit_sum is longer than the unit vectors"),
    "a sum that fits no row": (
        lambda tensors: {
            "unit_sum": -tensors["count"][:, None]
            * torch.nn.functional.normalize(tensors["sample_rows"][0].double(), dim=0)
        },
        "unit_sum does not fit sample_rows",
    ),
    "an infinite sum": (of("raw_sum", put(2, float("inf"))), "raw_sum is not a finite tensor"),
    "no second moment": (of("second_moment", lambda t: t[0]), "second_moment is not a finite tensor of shape (6, 6)"),
    "a crooked second moment": (of("second_moment", put(1, 2, 1.5)), "second_moment is not symmetric"),
    "a negative variance": (of("second_moment", put(3, 3, -1.0)), "second_moment has a negative variance"),
    "another second moment": (of("second_moment", lambda t: 1.1 * t), "second_moment does not fit norm_square_sum"),
    "a crooked unit second moment": (of("unit_second_moment", put(1, 2, 1.5)), "unit_second_moment is not symmetric"),
    "another unit second moment": (
        of("unit_second_moment", lambda t: 1.1 * t),
        "unit_second_moment does not fit count",
    ),
    "a negative unit variance": (
        of("unit_second_moment", put(3, 3, -1.0)),
        "unit_second_moment has a negative variance",
    ),
    "a flipped count": (of("count", put(5, 3.0)), "count: the buckets hold"),
    "a negative count": (of("count", put(5, -1.0)), "count: the buckets hold"),
    "bad rows": (of("bad", lambda t: t + 1), "bad is 1; such a file has no such rows"),
    "rows of unit norm": (of("normalized", lambda t: t + N), "normalized is 40 of 40 rows, and said to be False"),
    "a negative norm": (of("norm_sum", lambda t: -t), "norm_sum does not fit norm_square_sum"),
    "an entry beyond its diagonal": (
        lambda tensors: {"second_moment": tensors["second_moment"] + 1e300 * (1 - torch.eye(DIM, dtype=torch.float64))},
        "second_moment has an entry beyond what its diagonal allows",
    ),
    "norms beyond all": (
        lambda tensors: {
            "norm_square_sum": tensors["norm_square_sum"] * 1e40,
            "norm_sum": tensors["norm_sum"] * 1e20,
        },
        "norm_square_sum is of norms beyond 1e+15",
    ),
    "a row beyond all": (of("sample_rows", put(7, 1e30)), "sample_rows hold a row of norm outside"),
    "a zero row": (of("sample_rows", put(7, 0.0)), "sample_rows hold a zero row"),
    "a row too few": (of("sample_rows", lambda t: t[1:].contiguous()), "sample_rows is not a finite tensor"),
    "a negative key": (of("sample_keys", put(0, -1)), "sample_keys do not rise"),
    "keys out of order": (of("sample_keys", lambda t: t.flip(0)), "sample_keys do not rise"),
    "a key that comes twice": (of("sample_keys", lambda t: t[[0, 0, *range(2, KEPT)]]), "sample_keys do not rise"),
    "no copy": (of("sample_copies", put(3, 0)), "or less than 1 somewhere"),
    "fewer than no copies": (of("sample_copies", put(3, -5)), "or less than 1 somewhere"),
    "more copies than rows": (of("sample_copies", put(3, 17)), "sample_copies are 41 rows"),
    "copies that overflow": (of("sample_copies", lambda t: t.fill_(2**62)), "sample_copies are"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_damaged_tensor_is_named_with_the_file(kind, saved):
    damage, message = TENSORS[kind]
    rewrite(saved, damage(load_file(saved)))
    with pytest.raises(ValueError, match=r"r\.safetensors: damaged: ") as raised:
        ReferenceSet.load(saved)
    assert message in str(raised.value)


def test_copies_must_be_all_rows_where_all_are_kept(generator, saved):
    ReferenceSet.fit(ellipsoid_rows(N, DIM, generator)).save(saved)
    copies = load_file(saved)["sample_copies"]
    assert (len(copies), int(copies.sum())) == (N, N)
    rewrite(saved, {name: part[:-1].contiguous() for name, part in load_file(saved).items() if "sample" in name})
    with pytest.raises(ValueError, match="sample_copies are 39 rows of 40, though all of them were to be kept"):
        ReferenceSet.load(saved)


def test_the_command_tells_a_damaged_reference_in_one_line(saved, capsys):
    rewrite(saved, reference={"count": 10**30})
    other = saved.with_name("other.safetensors")
    ReferenceSet.fit(torch.rand(9, DIM) + 0.1).save(other)
    assert main(["merge", str(other), str(saved), "-o", str(saved.with_name("out.safetensors"))]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "r.safetensors: damaged: count is" in captured.err


@pytest.mark.parametrize("dim", [1, 3, 64])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("kind", ["rows", "repeated", "equal", "in groups", "opposite"])
def test_whole_references_are_read_whatever_they_are_of(kind, offset, dim, generator, tmp_path):
    """Rounding is no damage: one dimension, a mean far above the spread, equal rows, rows that cancel."""
    rows = torch.randn(50, dim, generator=generator, dtype=torch.float64) + offset
    groups = None
    if kind == "repeated":
        rows = rows[torch.randint(50, (50,), generator=generator)]
    elif kind == "equal":
        rows = rows[:1].expand(50, dim)
    elif kind == "in groups":
        groups = torch.arange(50) // 3
    elif kind == "opposite":
        rows = torch.cat([rows, -rows])
    for size in (10, 10_000):
        reference = ReferenceSet.fit(rows, groups=groups, max_samples=size, allow_normalized=True)
        reference.save(tmp_path / "r.safetensors")
        assert ReferenceSet.load(tmp_path / "r.safetensors").count == len(rows)


def refused(path: Path) -> bool:
    try:
        ReferenceSet.load(path)
    except ValueError as error:
        return "\n" not in str(error)
    return False


def test_no_single_bit_of_a_file_can_be_flipped(generator, tmp_path):
    """Every bit of the header and of its length, and of every hundredth byte behind it."""
    path = tmp_path / "r.safetensors"
    ReferenceSet.fit(ellipsoid_rows(9, 2, generator), ids=[f"ö{n}" for n in range(9)], max_samples=5).save(path)
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, head, 7), *range(head, len(whole), 401), len(whole) - 1]
    for place in places:
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert refused(path), (place, bit)
    path.write_bytes(whole)
    assert not refused(path)


def test_a_count_that_is_edited_is_an_error(saved):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    metadata["reference"] = json.dumps(json.loads(metadata["reference"]) | {"count": N + 1})
    save_file(load_file(saved), saved, metadata)
    with pytest.raises(ValueError, match="damaged: its checksum does not fit its content"):
        ReferenceSet.load(saved)


def test_a_reference_without_a_checksum_is_refused(saved):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    del metadata["checksum"]
    save_file(load_file(saved), saved, metadata)
    with pytest.raises(ValueError, match="damaged: it has no checksum"):
        ReferenceSet.load(saved)


def test_a_checksum_depends_on_names_types_shapes_values_and_texts():
    tensor, about = torch.zeros(4), {"a": "b"}
    sums = {
        compute_checksum({"x": tensor}, about),
        compute_checksum({"y": tensor}, about),
        compute_checksum({"x": tensor.reshape(2, 2)}, about),
        compute_checksum({"x": tensor.view(torch.int32)}, about),
        compute_checksum({"x": -tensor}, about),
        compute_checksum({"x": tensor}, {"a": "c"}),
        compute_checksum({"x": tensor}, {"c": "b"}),
    }
    assert len(sums) == 7
    assert compute_checksum({"x": tensor}, about) == compute_checksum({"x": tensor.clone()}, about | {"checksum": "d"})
