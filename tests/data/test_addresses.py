"""Addresses: which are taken, what they name, and that no message shows what is secret in them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from clipconformity.data.addresses import PROTOCOLS, RemotePath, parse_place, refuse_address
from clipconformity.data.files import check_output, refuse_same
from clipconformity.provenance import hide_secrets, shorten_paths

PARTS = [
    ("s3://bucket/a/e_1.npy", "bucket/a/e_1.npy", "s3://bucket/a"),
    ("s3a://bucket/a b.npy", "bucket/a b.npy", "s3://bucket"),
    ("GS://bucket/e.npy", "bucket/e.npy", "gs://bucket"),
    ("memory:///a/e.npy", "a/e.npy", "memory://a"),
    ("hf://datasets/ann/set@v1/e.npy", "datasets/ann/set@v1/e.npy", "hf://datasets/ann/set@v1"),
    ("https://host/a%20b/e%5B1%5D.npy", "/a%20b/e%5B1%5D.npy", "https://host/a%20b"),
    ("https://host/a b.npy", "/a%20b.npy", "https://host"),
    ("http://[::1]:80/a/e.npy?b=/c.npz#d", "/a/e.npy", "http://[::1]:80/a"),
]


@pytest.mark.parametrize(("text", "path", "parent"), PARTS)
def test_an_address_has_the_parts_of_a_path(text, path, parent):
    found = parse_place(text)
    assert isinstance(found, RemotePath)
    assert found.path == path
    assert str(found.parent) == parent
    assert found.name == f"{found.stem}{found.suffix}"
    assert found.suffix == ".npy"
    assert parse_place(found) is found
    assert pickle.loads(pickle.dumps(found)) == found
    sibling = found.parent / found.name
    assert (sibling.protocol, sibling.path) == (found.protocol, found.path)


def test_names_on_the_web_are_those_of_the_files_without_quotes():
    assert parse_place("https://host/a%20b/e%5B1%5D.npy").name == "e[1].npy"
    assert str(parse_place("https://host/a/") / "e 1 #?[%].npy") == "https://host/a/e%201%20%23%3F%5B%25%5D.npy"
    assert (parse_place("https://host/a/") / "e 1 #?[%].npy").name == "e 1 #?[%].npy"
    assert str(parse_place("s3://bucket/a") / "e 1.npy") == "s3://bucket/a/e 1.npy"


@pytest.mark.parametrize(
    ("text", "magic"),
    [
        ("https://host/e.npy?a=*", False),
        ("https://host/*.npy", True),
        ("http://[::1]/e.npy", False),
        ("s3://bucket/e?.npy", True),
        ("s3://bucket/[ab].npy", True),
        ("s3://bucket/e.npy", False),
    ],
)
def test_a_query_and_a_host_are_no_pattern(text, magic):
    assert parse_place(text).magic == magic


@pytest.mark.parametrize("text", ["a/e.npy", "/a/e.npy", "e.npy", "C:/e.npy", "a://b"[1:], "x/s3://b", "a::b.npy"])
def test_a_path_stays_a_path(text):
    assert parse_place(text) == Path(text)
    assert parse_place(Path(text)) == Path(text)


def test_a_file_address_is_a_path_of_this_machine(tmp_path):
    (tmp_path / "a b.npy").touch()
    assert parse_place(f"file://{tmp_path}/a%20b.npy") == tmp_path / "a b.npy"
    assert parse_place("file://localhost/a.npy") == Path("/a.npy")


REFUSED = {
    "simplecache::s3://bucket/e.npy": "a chain of protocols may read other files than it names",
    "zip://e.npy::https://host/e.zip": "a chain of protocols",
    "https://host/e.npy::file:///etc/passwd": "a chain of protocols",
    "reference://index.json": "reference:// is not read; of addresses there are http, https, s3, gs",
    "ftp://ann:pass@host/e.npy": "ftp://host/e.npy: ftp:// is not read",
    "sftp://host/e.npy": "sftp:// is not read",
    "github://a:b@/e.npy": "github:// is not read",
    "dir://a": "dir:// is not read",
    "local:///e.npy": "local:// is not read",
    "data://a": "data:// is not read",
    "file://host/e.npy": "expected file:///folder/file",
    "file://e.npy": "expected file:///folder/file",
    "s3://": "names no file or folder",
    "https:///e.npy": "no valid host; expected https://host/path",
    "https://ann:pa/ss@host/e.npy": "no valid host",
    "https://ann:pass@/e.npy": "no valid host",
    "https://host:port/e.npy": "no valid host",
    "https://host/a\nb.npy": "characters that cannot be printed",
    "s3://bucket/\x1b[31m.npy": "characters that cannot be printed",
}


@pytest.mark.parametrize("text", REFUSED)
def test_other_addresses_are_refused_in_one_line(text):
    with pytest.raises(ValueError, match=re.escape(REFUSED[text])) as error:
        parse_place(text)
    assert "\n" not in str(error.value)
    assert "pass@" not in str(error.value)
    assert "pa/ss" not in str(error.value)


def test_no_protocol_that_lets_a_file_name_others_is_taken():
    dangerous = {
        "file",
        "local",
        "dir",
        "reference",
        "zip",
        "tar",
        "libarchive",
        "simplecache",
        "filecache",
        "blockcache",
    }
    dangerous |= {"cached", "git", "github", "ssh", "sftp", "smb", "ftp", "generic", "data", "dask", "jupyter", "dvc"}
    assert dangerous.isdisjoint(PROTOCOLS)


def test_a_path_that_lost_a_slash_is_told_to_be_text():
    with pytest.raises(ValueError, match=r"s3:/bucket/e\.npy: an address in a Path loses a slash; give it as a text"):
        parse_place(Path("s3://bucket/e.npy"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:pass@host/e.npy?X-Amz-Signature=1f#a", "https://host/e.npy"),
        ("https://token@host:8080/e.npy", "https://host:8080/e.npy"),
        ("https://ann:p@ss@host/e.npy", "https://host/e.npy"),
        ("https://ann:pa/ss@host/e.npy", "https://host/e.npy"),
        ("https://ann:pa?ss@host/e.npy", "https://..."),
        ("https://ann:pa#ss@host/e.npy", "https://host/e.npy"),
        ("https://[::1]:80/e.npy?a", "https://[::1]:80/e.npy"),
        ("https:/ann:pass@host/e.npy?a=b", "https:/host/e.npy"),
        ("s3://key:secret@bucket/e.npy", "s3://bucket/e.npy"),
        ("az://container/e.npy?sv=1&sig=2", "az://container/e.npy"),
        ("s3://bucket/e?.npy", "s3://bucket/e?.npy"),
        ("hf://ann/coco@v1/e.npy", "hf://ann/coco@v1/e.npy"),
        ("https://host/@scope/e.npy", "https://host/@scope/e.npy"),
        ("a --by=https://u:p@h/x?y b s3://a:b@c/d", "a --by=https://h/x b s3://c/d"),
        ("/home/ann@host/x?y=z", "/home/ann@host/x?y=z"),
        ("open_clip:ViT-B-32/openai and hf:a/b@c?", "open_clip:ViT-B-32/openai and hf:a/b@c?"),
        ("a question: why? a:b", "a question: why? a:b"),
    ],
)
def test_what_is_secret_in_an_address_is_not_shown(text, shown):
    assert hide_secrets(text) == shown
    assert hide_secrets(shown) == shown


def test_no_form_of_an_address_shows_what_is_secret():
    found = parse_place("https://ann:pass@host/a/e.npy?sig=1f")
    assert found.text == "https://ann:pass@host/a/e.npy?sig=1f"
    for shown in (str(found), repr(found), f"{found}", f"{[found]}", str(found.parent), str(found / "b"), found.name):
        assert not any(secret in shown for secret in ("ann", "pass", "1f", "sig")), shown


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("https://ann:pass@host/home/e.npy?sig=1f", "https://host/home/e.npy"),
        ("--embeddings=s3://bucket/home/e.npy", "--embeddings=s3://bucket/home/e.npy"),
        ("mine=hf://ann/coco/e.npy", "mine=hf://ann/coco/e.npy"),
        ("file:///home/ann/e.npy", "file:e.npy"),
        ("--by=file:///home/ann/e.npy", "--by=file:e.npy"),
    ],
)
def test_in_a_report_an_address_is_whole_but_for_what_is_secret(word, shown):
    assert shorten_paths(word) == shown


def test_an_address_is_the_same_file_whoever_asks_for_it():
    one, same, other = (
        parse_place(text)
        for text in ("https://ann:a@HOST/e.npy", "https://bob:b@host/e.npy", "https://host/e.npy?part=2")
    )
    refuse_same([("--embeddings", one), ("--embeddings", other)])
    with pytest.raises(ValueError, match="are the same file; name each file once") as error:
        refuse_same([("--embeddings", one), ("--embeddings", other), ("--embeddings", same)])
    assert "ann" not in str(error.value)


def test_outputs_and_other_inputs_are_of_this_machine(tmp_path, monkeypatch):
    message = r"s3:/bucket/r\.safetensors: expected a file to write on this machine, got an address"
    with pytest.raises(ValueError, match=message):
        check_output(Path("s3://bucket/r.safetensors"))
    with pytest.raises(ValueError, match=r"https://host/r\.csv: expected a list on this machine"):
        refuse_address("https://ann:pass@host/r.csv", "a list")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    (tmp_path / "s3:" / "bucket" / "r.safetensors").touch()
    refuse_address(Path("s3:/bucket/r.safetensors"), "a file")  # it is there
