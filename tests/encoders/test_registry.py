"""A family of encoders is one row."""

from __future__ import annotations

import sys
from pkgutil import resolve_name
from types import ModuleType

import pytest
import torch

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.encoders import CallableEncoder, available_encoders, registry
from clipconformity.encoders.registry import FAMILIES, Family, Package


def load_plain(model, *, spec, device, dtype):
    """An encoder of another family: texts by their length."""
    encoder = CallableEncoder(
        lambda images: torch.ones(len(images), 2), lambda texts: torch.ones(len(texts), 2), embed_dim=2, spec=spec
    )
    encoder.asked = (model, spec, device.type, dtype)
    return encoder


@pytest.fixture
def plain(monkeypatch):
    """A family that is added by its row alone."""
    module = ModuleType("another_family")
    module.load = load_plain
    monkeypatch.setitem(sys.modules, "another_family", module)
    row = Family("plain:", "MODEL", "another_family:load", Package("no_such_module", "no-such-package", "plain"))
    monkeypatch.setattr(registry, "FAMILIES", (*FAMILIES, row))


def test_a_row_is_enough_to_load_an_encoder(plain):
    encoder = cc.load_encoder("plain:small", "cpu")
    assert encoder.asked == ("small", "plain:small", "cpu", torch.float32)
    assert encoder(["a red circle"]).shape == (1, 2)


def test_a_row_is_enough_to_be_listed_with_what_it_needs(plain):
    listed = available_encoders()
    assert set(listed) == {"tiny", "open_clip", "hf", "st", "plain"}
    assert listed["plain"] == {
        "spec": "plain:MODEL",
        "installed": None,
        "install": "pip install 'clipconformity[plain]'",
    }


@pytest.mark.parametrize("command", ["embed", "reference", "score"])
def test_a_row_is_enough_to_be_in_the_help(command, plain, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "'tiny', 'open_clip:MODEL/PRETRAINED', 'hf:ORGANISATION/MODEL', 'st:MODEL', 'plain:MODEL' or a local directory"
        in shown
    )


@pytest.mark.parametrize("spec", ["plane:small", "plaim:small"])
def test_a_row_is_enough_to_be_suggested_and_named_in_the_error(spec, plain):
    with pytest.raises(ValueError, match=r"'plain:MODEL' or a local directory; did you mean 'plain:small'\?"):
        cc.load_encoder(spec)


def test_the_files_of_a_row_are_those_of_the_folder_that_it_names(plain, tmp_path):
    (tmp_path / "weights.bin").touch()
    assert list(registry.find_encoder_files(f"plain:{tmp_path}")) == [tmp_path / "weights.bin"]


def test_specs_name_the_files_that_they_did(tmp_path):
    (tmp_path / "weights.bin").touch()
    weights = tmp_path / "weights.bin"
    for spec in (f"open_clip:local-dir:{tmp_path}", f"hf:{tmp_path}", str(tmp_path)):
        assert list(registry.find_encoder_files(spec)) == [weights]
    assert list(registry.find_encoder_files(f"open_clip:ViT-B-32/{weights}")) == [weights]
    assert registry.TINY / "config.json" in list(registry.find_encoder_files("tiny"))


def test_a_row_whose_start_begins_another_spec_is_not_taken_for_it():
    assert [family.name for family in FAMILIES if family.model("tiny-clip") is not None] == []
    assert FAMILIES[0].model("tiny") == registry.TINY


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_every_loader_is_there(family):
    assert callable(resolve_name(family.loader))
