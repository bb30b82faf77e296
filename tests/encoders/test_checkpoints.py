"""A checkpoint of a stranger is refused in one line, soon, and without a download; and so is one that is not there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import clipconformity as cc
from clipconformity.data import hub
from clipconformity.encoders import checkpoints
from clipconformity.encoders.registry import TINY


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What is imported when a first encoder is loaded is not part of the time that a refusal takes."""
    cc.load_encoder("tiny", "cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copytree(TINY, tmp_path / "c")
    return tmp_path / "c"


def edited(folder: Path, name: str, **fields) -> None:
    """Change settings; ``vision_config__x`` is x of vision_config."""
    content = json.loads((folder / name).read_text())
    for key, value in fields.items():
        *outer, inner = key.split("__")
        part = content
        for one in outer:
            part = part[one]
        part[inner] = value
    (folder / name).write_text(json.dumps(content))


def refusal(spec) -> str:
    """What loading ends with, within ten seconds."""
    started = time.perf_counter()
    with pytest.raises((ValueError, TypeError, OSError)) as raised:
        cc.load_encoder(spec, "cpu")
    assert time.perf_counter() - started < 10
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


BOMBS = {
    "layers": ("config.json", {"vision_config__num_hidden_layers": 10**7}, "num_hidden_layers: 10,000,000 layers"),
    "width": ("config.json", {"text_config__hidden_size": 40_000}, "asks for"),
    "words": ("config.json", {"text_config__vocab_size": 10**10}, "asks for"),
    "places": ("config.json", {"text_config__max_position_embeddings": 10**10}, "asks for"),
    "image": ("config.json", {"vision_config__image_size": 10**6}, "image_size: 1,000,000 pixels along a side"),
    "size": ("preprocessor_config.json", {"size": {"height": 10**5, "width": 10**5}}, "pixels along a side"),
    "crop": ("preprocessor_config.json", {"crop_size": 10**6, "do_center_crop": True}, "pixels along a side"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_configuration_that_asks_for_too_much_is_refused_before_it_is_built(kind, folder):
    name, fields, message = BOMBS[kind]
    edited(folder, name, **fields)
    assert message in refusal(folder)


WRONG = {
    "a list": ("config.json", "[]"),
    "a number": ("preprocessor_config.json", "3"),
    "nothing": ("config.json", ""),
    "cut": ("tokenizer_config.json", '{"a": '),
    "deep": ("config.json", '{"a": ' * 50_000),
    "not UTF-8": ("config.json", b"\xff\xfe{}"),
    "NaN": ("config.json", '{"hidden_act": NaN}'),
    "no tokenizer": ("tokenizer.json", "{}"),
    "a tokenizer that is a list": ("tokenizer.json", "[]"),
    "weights of text": ("model.safetensors", "weights"),
    "weights of nothing": ("model.safetensors", ""),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_broken_file_of_a_checkpoint_is_told_in_one_line(kind, folder):
    name, content = WRONG[kind]
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(folder) in refusal(folder)


TYPES = {
    "a word for a width": ("config.json", {"vision_config__hidden_size": "wide"}),
    "a list for a dimension": ("config.json", {"projection_dim": [3]}),
    "nothing for heads": ("config.json", {"text_config__num_attention_heads": None}),
    "no heads": ("config.json", {"text_config__num_attention_heads": 0}),
    "another activation": ("config.json", {"text_config__hidden_act": "none of all"}),
    "a word for a tower": ("config.json", {"vision_config": "vision"}),
    "another model": ("config.json", {"model_type": "unknown"}),
    "a model of text": ("config.json", {"model_type": "bert"}),
    "a number for a model": ("config.json", {"model_type": 3}),
    "a word for a mean": ("preprocessor_config.json", {"image_mean": "grey"}),
    "a mean too short": ("preprocessor_config.json", {"image_mean": [0.5]}),
    "a word for a size": ("preprocessor_config.json", {"size": "large"}),
    "a size of nothing": ("preprocessor_config.json", {"size": {"height": 0, "width": 0}}),
    "another processor": ("preprocessor_config.json", {"image_processor_type": "None"}),
    "a number for a tokenizer": ("tokenizer_config.json", {"tokenizer_class": 3}),
}


@pytest.mark.parametrize("kind", TYPES)
def test_settings_of_wrong_types_are_found_on_loading(kind, folder):
    name, fields = TYPES[kind]
    edited(folder, name, **fields)
    assert str(folder) in refusal(folder)


def test_a_tokenizer_of_another_model_is_told_before_its_tokens_are_looked_up(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["square"] = 10**6
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    encoder = cc.load_encoder(folder, "cpu")
    with pytest.raises(ValueError, match="its tokenizer gives token 1000000, and its model has"):
        encoder.encode_text(["a square"])


def test_a_panic_of_the_tokenizer_is_an_error_like_others(folder, monkeypatch):
    """In Rust they are no Exception; Ctrl-C is none either, and stays."""

    class PanicException(BaseException):
        pass

    pairs = ((PanicException("no entry found for key"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt))
    for error, seen in pairs:

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("clipconformity.encoders.transformers.TransformersEncoder._project_text", fail)
        with pytest.raises(seen):
            cc.load_encoder(folder, "cpu")


def test_a_pipe_in_a_checkpoint_is_refused_and_not_waited_for(folder):
    (folder / "preprocessor_config.json").unlink()
    os.mkfifo(folder / "preprocessor_config.json")
    assert "expected a regular file, got a pipe" in refusal(folder)


def test_weights_in_pickles_alone_are_refused_under_an_unsound_torch(folder, monkeypatch):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    checkpoints.check_checkpoint(folder)  # safetensors are there, and preferred
    (folder / "model.safetensors").unlink()
    assert "holds a pickle, which torch 2.9.1 reads unsafely" in refusal(folder)


def test_the_size_of_a_checkpoint_is_bounded(folder, monkeypatch):
    monkeypatch.setenv("CLIPCONFORMITY_LIMITS", "checkpoint_bytes=1000")
    assert "bytes of a checkpoint are over the limit of 1,000" in refusal(folder)
    monkeypatch.setenv("CLIPCONFORMITY_LIMITS", "config_bytes=100")
    assert "bytes of a checkpoint's configuration or tokenizer are over the limit of 100" in refusal(folder)


OPEN_CLIP = {
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "embed_dim": 16,
}


@pytest.fixture
def local(tmp_path) -> Path:
    """A checkpoint of open_clip."""
    open_clip = pytest.importorskip("open_clip")
    weights = open_clip.CLIP(16, OPEN_CLIP["vision_cfg"], OPEN_CLIP["text_cfg"]).state_dict()
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": {}}))
    return tmp_path


def test_a_sound_checkpoint_of_open_clip_is_loaded(local):
    assert cc.load_encoder(f"open_clip:local-dir:{local}", "cpu").embed_dim == 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_cfg__vision_cfg__width": 10**6}, "asks for"),
        ({"model_cfg__text_cfg__layers": 10**6}, "1,000,000 layers of a model"),
        ({"model_cfg__text_cfg__context_length": 10**6}, "asks for"),
        ({"model_cfg__text_cfg__vocab_size": 10**9}, "asks for"),
        ({"model_cfg__vision_cfg__image_size": 10**5}, "pixels along a side"),
        ({"model_cfg__embed_dim": "wide"}, "its embed_dim is 'wide'"),
        ({"model_cfg__vision_cfg": []}, "has no model_cfg with vision_cfg and text_cfg"),
        ({"model_cfg": 3}, "has no model_cfg"),
        ({"model_cfg__text_cfg__heads": 0}, "open_clip could not load it"),
        ({"preprocess_cfg": {"mean": "grey"}}, ""),
    ],
)
def test_settings_of_open_clip_that_ask_for_too_much_or_are_wrong_are_refused(fields, message, local):
    edited(local, "open_clip_config.json", **fields)
    assert message in refusal(f"open_clip:local-dir:{local}")


# --- the network -----------------------------------------------------------------------------------------------------

GUARD = """
import socket, sys
asked = []
def refuse(*arguments, **_):
    asked.append(arguments[:2])
    raise socket.gaierror(-2, "Name or service not known")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
import clipconformity as cc
from clipconformity.cli import main
"""


def alone(code: str, tmp_path: Path) -> tuple[str, str]:
    """Run code in a process without the hub's switch, where every use of the network is counted and fails."""
    clean = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    clean |= {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, "-c", GUARD + code], env=clean, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout, result.stderr


@pytest.mark.slow
def test_no_file_opens_a_connection_whatever_it_names(tmp_path):
    """References and embeddings of a model on the hub, and checkpoints some of whose parts are there."""
    shutil.copytree(TINY, tmp_path / "c")
    edited(tmp_path / "c", "config.json", _name_or_path="nobody/nothing")
    edited(tmp_path / "c", "tokenizer_config.json", name_or_path="nobody/nothing")
    (tmp_path / "c" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "nobody/nothing"}))
    text = OPEN_CLIP["text_cfg"] | {"hf_model_name": "nobody/nothing", "hf_tokenizer_name": "nobody/nothing"}
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": OPEN_CLIP | {"text_cfg": text}, "preprocess_cfg": {}})
    )
    (tmp_path / "o" / "open_clip_pytorch_model.bin").write_bytes(b"0" * 10_000_000)
    (tmp_path / "texts.txt").write_text("\n".join(f"a {n} circle" for n in range(20)))
    code = f"""
import torch, warnings
from pathlib import Path
from clipconformity.data import write_embeddings
from clipconformity.provenance import Provenance
at = Path({str(tmp_path)!r})
rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) + 1
cc.ReferenceSet.fit(rows, spec="hf:nobody/nothing", modality="text").save(at / "r.safetensors")
write_embeddings(at / "e.safetensors", rows + 0.1, provenance=Provenance("hf:nobody/nothing", None, "text"))
assert main(["score", "--embeddings", str(at / "e.safetensors"), "--reference", str(at / "r.safetensors")]) == 0
assert main(["score", "--captions", str(at / "texts.txt"), "--reference", str(at / "r.safetensors")]) == 2
assert main(["reference", "--embeddings", str(at / "e.safetensors"), "-o", str(at / "s.safetensors")]) == 0
metric = cc.Conformity(cc.ReferenceSet.load(at / "r.safetensors"))
try:
    metric.update(["a circle"])
    raise SystemExit("taken")
except TypeError:
    pass
cc.load_encoder(at / "c", "cpu").encode_text(["a circle"])
try:
    cc.load_encoder(f"open_clip:local-dir:{{at / 'o'}}", "cpu")
    raise SystemExit("loaded")
except (ValueError, OSError, ImportError) as error:
    assert "\\n" not in str(error)
sys.stdout.write("\\nASKED " + repr(asked))
"""
    out, err = alone(code, tmp_path)
    assert out.endswith("ASKED []"), (out[-500:], err[-2000:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "hf:nobody/nothing",
        "open_clip:ViT-B-32/openai",
        "open_clip:hf-hub:nobody/nothing",
        "st:nobody/nothing",
        "st:no-such-model",
    ],
)
def test_without_a_network_a_missing_model_fails_soon_and_in_one_line(spec, tmp_path):
    if spec.startswith("open_clip"):
        pytest.importorskip("open_clip")
    if spec.startswith("st:") and find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed")
    (tmp_path / "texts.txt").write_text("a circle\na square\n")
    out = tmp_path / "e.safetensors"
    code = f"""
import time, transformers
try:
    import open_clip
except ImportError:
    pass
started = time.perf_counter()
code = main(["embed", "--captions", {str(tmp_path / "texts.txt")!r}, "--encoder", {spec!r}, "-o", {str(out)!r}])
sys.stdout.write(f"{{code}} {{time.perf_counter() - started:.1f}} {{len(asked)}}")
"""
    reported, err = alone(code, tmp_path)
    status, seconds, asked = reported.split()
    assert status == "2"
    assert float(seconds) < 10
    assert int(asked) <= 2  # two ways of looking one name up
    assert err.count("\n") == 1, err
    assert f"{spec}: could not be loaded (it is not in the cache, and the model hub does not answer" in err


def test_a_hub_that_takes_connections_and_never_answers_is_given_up(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.perf_counter()
        assert not hub._ask_hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.perf_counter() - started < hub.TIMEOUT + 1


def test_a_hub_that_answers_with_an_error_answers(monkeypatch):
    import http.server
    import threading

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert hub._ask_hub(f"http://127.0.0.1:{server.server_port}")


def test_the_hubs_own_switch_is_as_before_whatever_happens(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(hub, "_ask_hub", lambda _: False)
    for switch in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switch)
        with suppress(KeyError), checkpoints.use_hub(asked=True) as usable:
            assert (usable, constants.HF_HUB_OFFLINE) == (False, True)
            raise KeyError
        assert constants.HF_HUB_OFFLINE is switch
    monkeypatch.setattr(hub, "_ask_hub", lambda _: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with checkpoints.use_hub(asked=True) as usable:
        assert (usable, constants.HF_HUB_OFFLINE) == (True, False)
    with checkpoints.use_hub(asked=False) as usable:
        assert (usable, constants.HF_HUB_OFFLINE) == (False, True)
