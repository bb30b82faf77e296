"""References on the model hub: from a hub on this machine, and from the cache that the hub's own client then left."""

from __future__ import annotations

import hashlib
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest
import torch

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.data import hub
from clipconformity.data.hub import Address, is_shared

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
ADDRESS = "hf://ann/coco/image.safetensors"


class Hub(BaseHTTPRequestHandler):
    """What the client asks of a hub for one file: where it is, and its bytes."""

    content = b""
    breaks_off = False

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def _answer(self, whole: bool) -> None:
        if self.path == "/":
            return self._head(200)
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo not in ("ann/coco", "datasets/ann/coco"):
            return self._head(404, {"X-Error-Code": "RepoNotFound"})
        commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
        if commit is None:
            return self._head(404, {"X-Error-Code": "RevisionNotFound"})
        if name != "image.safetensors":
            return self._head(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        etag = hashlib.sha256(self.content).hexdigest()
        self._head(200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Content-Length": str(len(self.content))})
        if whole:
            self.wfile.write(self.content[: len(self.content) // 2] if self.breaks_off else self.content)
        return None

    def _head(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {"Content-Length": "0"}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub that is switched off."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def reference():
    generator = torch.Generator().manual_seed(0)
    encoder = SimpleNamespace(spec="tiny", id={"weights": "w", "preprocessing": "p|q", "precision": "float32"})
    rows = torch.randn(60, 8, generator=generator) + 1
    return cc.ReferenceSet.fit(rows, spec=encoder, modality="image", dataset="coco val2017")


@pytest.fixture
def online(reference, tmp_path, monkeypatch):
    """A hub on this machine that has the reference."""
    reference.save(tmp_path / "made.safetensors")
    kind = type("Kind", (Hub,), {"content": (tmp_path / "made.safetensors").read_bytes()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants._HF_DEFAULT_ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    yield kind
    server.shutdown()
    server.server_close()


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def same(one, other) -> bool:
    return one.describe() == other.describe() and torch.equal(one.conformities, other.conformities)


@pytest.mark.parametrize(
    "address", [ADDRESS, "hf://ann/coco@v1/image.safetensors", "hf://datasets/ann/coco/image.safetensors"]
)
def test_a_shared_reference_is_downloaded_and_is_in_the_cache_without_a_connection(
    address, online, reference, cache, monkeypatch
):
    assert same(cc.ReferenceSet.load(address), reference)
    offline(monkeypatch)
    assert same(cc.ReferenceSet.load(address), reference)
    kind = "datasets" if "datasets" in address else "models"
    commit = COMMITS["v1" if "@v1" in address else "main"]
    assert (cache / f"{kind}--ann--coco" / "snapshots" / commit / "image.safetensors").is_file()


def test_a_revision_that_is_not_in_the_cache_is_not_another(online, monkeypatch):
    cc.ReferenceSet.load(ADDRESS)
    offline(monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"ann/coco@v1/image\.safetensors: cannot be fetched"):
        cc.ReferenceSet.load("hf://ann/coco@v1/image.safetensors")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf://ann/other/image.safetensors", "there is no repository ann/other, or it is private"),
        ("hf://ann/coco/text.safetensors", "the repository has no file 'text.safetensors'"),
        ("hf://ann/coco@v9/image.safetensors", "the repository has no revision 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(address, reason, online):
    with pytest.raises(FileNotFoundError) as reported:
        cc.ReferenceSet.load(address)
    assert str(reported.value).startswith(f"{address}: cannot be fetched ({reason}")
    assert "\n" not in str(reported.value)


def test_nothing_in_the_cache_and_no_hub_is_one_line_within_seconds(tmp_path, capsys):
    began = time.monotonic()
    status = main(["score", "--embeddings", "e.npy", "--reference", ADDRESS])
    assert (status, time.monotonic() - began < 5) == (2, True)
    reported = capsys.readouterr().err
    assert reported.count("\n") == 1
    assert f"error: {ADDRESS}: cannot be fetched (it is not in the cache, and the model hub does not answer" in reported


def test_a_hub_that_does_not_answer_is_one_line_within_seconds(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="the model hub does not answer"):
        cc.ReferenceSet.load(ADDRESS)
    assert time.monotonic() - began < 5


def test_an_interrupted_download_is_told(online, cache, monkeypatch):
    cc.ReferenceSet.load(ADDRESS)
    (blob,) = (cache / "models--ann--coco" / "blobs").iterdir()
    half = blob.read_bytes()[: blob.stat().st_size // 2]
    blob.unlink()  # as it lies while a download is under way: the pointer leads nowhere yet
    blob.with_name(f"{blob.name}.incomplete").write_bytes(half)
    offline(monkeypatch)
    with pytest.raises(FileNotFoundError, match=f"an interrupted download of {len(half):,} bytes lies in the cache"):
        cc.ReferenceSet.load(ADDRESS)


def test_a_download_that_breaks_off_is_one_line_and_no_reference(online, capfd):
    online.breaks_off = True
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"image\.safetensors: cannot be fetched \(") as reported:
        cc.ReferenceSet.load(ADDRESS)
    assert capfd.readouterr() == ("", "")
    assert "\n" not in str(reported.value)
    assert time.monotonic() - began < 60


def test_a_damaged_file_of_the_hub_is_refused(online):
    online.content = online.content[:-8] + bytes(8)
    with pytest.raises(ValueError, match="damaged"):
        cc.ReferenceSet.load(ADDRESS)


@pytest.mark.filterwarnings("default")
def test_a_shared_reference_of_another_encoder_is_refused(online, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    given = ["score", "--images", str(tmp_path / "images"), "--encoder", "tiny", "--reference", ADDRESS]
    assert main([*given, "--quiet"]) == 2
    assert "of the encoder: the reference (tiny) has" in capsys.readouterr().err


def test_addresses_are_taken_apart_and_put_together():
    for text in (ADDRESS, "hf://ann/coco@v1/sub/image.safetensors", "hf://datasets/ann/coco@main/i.safetensors"):
        assert str(Address.parse(text)) == text
    assert Address.parse("hf://ann/coco@refs%2Fpr%2F1/x").revision == "refs/pr/1"
    assert not is_shared("ann/coco")


@pytest.mark.parametrize("text", ["hf://", "hf://ann", "hf://ann/coco/../x", "hf://ann/coco//x", "hf://ann/co co/x"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="expected hf://user/repo/file"):
        cc.ReferenceSet.load(text)


def test_an_address_without_a_file_says_what_is_missing():
    with pytest.raises(ValueError, match=r"names no file; expected hf://ann/coco/FILE\.safetensors"):
        cc.ReferenceSet.load("hf://ann/coco")


def test_no_name_in_a_file_asks_the_hub(reference, tmp_path, monkeypatch):
    reference.dataset = ADDRESS
    reference.save(tmp_path / "r.safetensors")
    monkeypatch.setattr(hub, "is_hub_reachable", lambda: pytest.fail("the hub was asked"))
    assert cc.ReferenceSet.load(tmp_path / "r.safetensors").dataset == ADDRESS


# --- sharing ----------------------------------------------------------------------------------------------------------


class Api:
    """What is asked of ``HfApi``, and kept."""

    def __init__(self, error: Exception | None = None) -> None:
        self.made: list[tuple[str, dict[str, object]]] = []
        self.files: dict[str, bytes] = {}
        self.error = error

    def create_repo(self, repo_id: str, **options: object) -> None:
        self.made.append((repo_id, options))

    def create_commit(self, repo_id: str, operations, *, commit_message: str, repo_type: str):
        if self.error is not None:
            raise self.error
        for one in operations:
            with one.as_file() as file:
                self.files[one.path_in_repo] = file.read()
        return SimpleNamespace(oid="c" * 40)


def test_what_is_shared_is_the_reference_with_a_card_that_says_what_it_is(reference, tmp_path):
    api = Api()
    address = reference.push_to_hub("ann/coco", licence="cc-by-4.0", about="Drawn by lot.", api=api)
    assert address == f"hf://ann/coco@{'c' * 40}/reference.safetensors"
    assert api.made == [("ann/coco", {"repo_type": "model", "private": None, "exist_ok": True})]
    assert sorted(api.files) == ["README.md", "reference.safetensors"]
    (tmp_path / "r.safetensors").write_bytes(api.files["reference.safetensors"])
    assert same(cc.ReferenceSet.load(tmp_path / "r.safetensors"), reference)
    card = api.files["README.md"].decode()
    checksum = hashlib.sha256(api.files["reference.safetensors"]).hexdigest()
    for line in (
        "license: cc-by-4.0",
        "# Reference set: coco val2017",
        "Drawn by lot.",
        "| dataset | coco val2017 |",
        "| encoder | tiny |",
        "| encoder: weights | w |",
        "| encoder: preprocessing | p\\|q |",
        "| samples | 60 |",
        "| dimension | 8 |",
        "| rows kept | 60 |",
        "| licence of the data | cc-by-4.0 |",
        f"| SHA-256 | {checksum} |",
        'reference = cc.ReferenceSet.load("hf://ann/coco/reference.safetensors")',
    ):
        assert line in card.splitlines()


def test_the_head_of_a_card_is_one_of_the_hub(reference):
    api = Api()
    reference.push_to_hub("datasets/ann/coco", licence="CC-BY-4.0", file="image.safetensors", private=True, api=api)
    assert api.made == [("ann/coco", {"repo_type": "dataset", "private": True, "exist_ok": True})]
    card = huggingface_hub.RepoCard(api.files["README.md"].decode(), ignore_metadata_errors=False)
    assert card.data.license == "cc-by-4.0"


@pytest.mark.parametrize("licence", ["", " ", None, "my own words", "mit\nx: y"])
def test_a_card_without_licence_is_refused_before_anything_is_asked(licence, reference):
    api = Api()
    with pytest.raises(ValueError, match="licence: expected that of the data"):
        reference.push_to_hub("ann/coco", licence=licence, api=api)
    assert (api.made, api.files) == ([], {})
    with pytest.raises(TypeError, match="licence"):
        reference.push_to_hub("ann/coco", api=api)


@pytest.mark.parametrize(
    ("repo", "file", "message"),
    [
        ("coco", "r.safetensors", "expected hf://user/repo/file"),
        ("ann/coco/r.safetensors", "r.safetensors", "name the file by file="),
        ("ann/coco", "../r.safetensors", "expected hf://user/repo/file"),
        ("ann/coco", "r.npz", "file: expected a name that ends in .safetensors"),
    ],
)
def test_a_name_that_does_not_fit_is_refused(repo, file, message, reference):
    with pytest.raises(ValueError, match=message):
        reference.push_to_hub(repo, licence="mit", file=file, api=Api())


def test_what_the_hub_refuses_is_one_line(reference):
    error = RuntimeError("403 Forbidden\nRequest-ID: 1\nno rights")
    with pytest.raises(OSError, match=r"cannot be shared \(403 Forbidden\); log in by `hf auth login`") as reported:
        reference.push_to_hub("ann/coco", licence="mit", api=Api(error))
    assert "\n" not in str(reported.value)


def test_without_a_hub_nothing_is_shared(reference):
    with pytest.raises(OSError, match="the model hub does not answer or is switched off"):
        reference.push_to_hub("ann/coco", licence="mit")


def test_a_missing_client_is_told_with_the_way_to_install_it(reference, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (lambda: cc.ReferenceSet.load(ADDRESS), lambda: reference.push_to_hub("a/b", licence="mit", api=Api())):
        with pytest.raises(ImportError, match="pip install huggingface_hub"):
            use()


def test_the_card_of_an_unknown_encoder_says_so(reference):
    bare = cc.ReferenceSet.fit(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)) + 1)
    api = Api()
    bare.push_to_hub("ann/coco", licence="other", api=api)
    assert "| encoder | unknown |" in api.files["README.md"].decode()
