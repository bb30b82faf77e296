"""Where embeddings come from: what fits together, what differs a little, and what is refused."""

from __future__ import annotations

import pytest

from clipconformity.provenance import UNKNOWN, Provenance

KNOWN = Provenance("open_clip:ViT-B-32/openai", {"weights": "a", "preprocessing": "p", "precision": "float32"}, "image")


def other(**changes) -> Provenance:
    return Provenance(KNOWN.spec, dict(KNOWN.encoder_id) | changes, "image")


def test_the_same_origin_fits_without_a_remark():
    assert KNOWN.check(other()) == []


def test_what_is_not_known_is_not_held_against_anything():
    assert KNOWN.check(UNKNOWN) == UNKNOWN.check(KNOWN) == []


@pytest.mark.parametrize("part", ["weights", "preprocessing"])
def test_another_encoder_is_refused_by_name(part):
    with pytest.raises(ValueError, match=f"{part} of the encoder: the reference .* encode both with the same one"):
        KNOWN.check(other(**{part: "x"}))


def test_other_weights_are_named_before_other_preprocessing():
    with pytest.raises(ValueError, match="^weights of the encoder"):
        KNOWN.check(other(weights="x", preprocessing="x"))


def test_another_precision_is_a_warning_and_a_remark():
    with pytest.warns(UserWarning, match="conformities may differ slightly"):
        remarks = KNOWN.check(other(precision="bfloat16"))
    assert len(remarks) == 1
    assert "precision of the encoder" in remarks[0]


def test_another_modality_is_refused_with_the_right_article():
    with pytest.raises(ValueError, match="the samples are text and the reference is image.*; give a text reference"):
        KNOWN.check(Provenance(modality="text"))
    with pytest.raises(ValueError, match="give an image reference"):
        Provenance(modality="text").check(KNOWN)


def test_specs_are_compared_where_no_identity_is_known():
    with pytest.raises(ValueError, match="encoder 'b' and the reference from 'a'"):
        Provenance("a").check(Provenance("b"))


def test_the_same_weights_may_go_by_two_names():
    named = Provenance("a folder", {"weights": "a"})
    assert KNOWN.is_same_encoder(named)
    assert not KNOWN.is_same_encoder(Provenance("a folder", {"weights": "b"}))
    assert not Provenance("a").is_same_encoder(Provenance("b"))
    assert KNOWN.is_same_encoder(UNKNOWN)


def test_descriptions_agree_or_are_refused():
    assert Provenance.combine([UNKNOWN, KNOWN, Provenance(modality="image")]) == KNOWN
    with pytest.raises(ValueError, match="modality: the files disagree: image and text"):
        Provenance.combine([KNOWN, Provenance(modality="text")])


def test_a_modality_that_is_none_is_refused():
    with pytest.raises(ValueError, match="modality: expected 'image', 'text' or None, got 'audio'"):
        Provenance(modality="audio")
