"""Texts that a tokenizer does not know are found, on the embedded one and on CLIP's own vocabulary."""

from __future__ import annotations

import pytest

import clipconformity as cc
from clipconformity.data import Captions
from clipconformity.encoders import BaseEncoder, CallableEncoder
from clipconformity.encoders.words import is_known, split_words
from clipconformity.evaluation import caption_source

FOREIGN = {
    "Chinese": "一只猫坐在沙发上",
    "Japanese": "猫が座っている",
    "Korean": "고양이가 앉아 있다",
    "Cyrillic": "человек едет на велосипеде по улице",
    "Greek": "ένας άνθρωπος κάθεται στο γρασίδι",
    "Arabic": "قطة تجلس على العشب الأخضر",
    "Hebrew": "חתול יושב על הדשא",
    "mostly Cyrillic": "photo: собака сидит на траве",
}
ENGLISH = [
    "a man riding a bicycle down a street",
    "A café with a naïve décor, crème brûlée and jalapeños on the menu!",
    "two dogs ☕ and a cat 😍 on a couch #cute",
    "NYC, 1987: xylophones & jacuzzis, TV sets (3x)",
    "a sign that says 猫 on a wall",
    "1, 2, 3 ...",
]
DRAWN = ["a red circle on the left", "There is a tiny yellow STAR at the top!", "a blue ring, réd"]


def of_tokens(encode, unknown=None) -> BaseEncoder:
    """An encoder of which only the words are asked."""

    class Words(BaseEncoder):
        preprocess_images = _project_image = _project_text = _describe_preprocessing = None  # type: ignore[assignment]
        spec = "words"
        _unknown_token = unknown  # type: ignore[assignment]

        def __init__(self):
            self._known_words = {}

        def _tokenise_words(self, words):
            return [encode(word) for word in words]

    return Words()


@pytest.fixture(scope="module")
def tiny():
    return cc.load_encoder("tiny", "cpu")


@pytest.fixture(scope="module")
def clip():
    """CLIP's vocabulary, which open_clip carries: bytes joined to words, those of English above all."""
    return of_tokens(pytest.importorskip("open_clip").SimpleTokenizer().encode)


@pytest.mark.parametrize("script", FOREIGN)
def test_another_script_is_not_known(script, tiny, clip):
    assert tiny.unknown_texts([FOREIGN[script]]) == [0]
    assert clip.unknown_texts([FOREIGN[script]]) == [0]


def test_english_is_known_to_clip_with_accents_emoji_and_a_foreign_word(clip):
    assert clip.unknown_texts(ENGLISH) == []


def test_the_embedded_model_knows_the_words_of_its_scenes_alone(tiny):
    assert tiny.unknown_texts(DRAWN) == []
    assert tiny.unknown_texts([*DRAWN, "emoji alone 😍😍😍", "😍", "a photograph of a zebra"]) == [3, 4, 5]


def test_a_multilingual_vocabulary_of_whole_words_or_of_signs_is_not_warned_of():
    words = of_tokens(lambda word: [hash(word)], unknown=1)
    signs = of_tokens(lambda word: [3, *map(ord, word)] if ord(word[0]) > 0x3000 else [len(word)], unknown=1)
    assert words.unknown_texts([*FOREIGN.values(), *ENGLISH]) == []
    assert signs.unknown_texts([FOREIGN["Chinese"], FOREIGN["Japanese"], FOREIGN["Korean"], *ENGLISH]) == []


def test_an_unknown_token_counts_where_it_is_half_of_a_word():
    assert not is_known("dog", [3, 1], 1)  # the start of a word and what is unknown
    assert is_known("naïve", [3, 1, 4], 1)
    assert is_known("dog", [1], None)


def test_words_are_runs_of_letters_of_any_script_and_emoji():
    assert split_words("It's 2 dogs, naïve") == ["It", "s", "dogs", "naïve"]
    assert split_words("cafe\u0301 привет, 猫x करीब ❤\ufe0f 👩\u200d💻") == [
        "café",
        "привет",
        "猫x",
        "करीब",
        "❤",
        "👩💻",
    ]


def test_a_word_is_looked_up_once():
    asked = []
    encoder = of_tokens(lambda word: asked.append(word) or [1, 2])
    encoder.unknown_texts(["a dog and a dog", "a cat"])
    encoder.unknown_texts(["a cat and a dog"])
    assert sorted(asked) == ["a", "and", "cat", "dog"]


def test_captions_are_counted_and_warned_of_once_with_an_example(tiny):
    texts = [*DRAWN, *FOREIGN.values()]
    captions = Captions(texts, [f"id-{number}" for number in range(len(texts))])
    with pytest.warns(UserWarning, match=r"8 of 11 captions are mostly of words .* of tiny .* id 'id-3'") as reported:
        source = caption_source(captions, tiny, batch_size=4)
    list(source)
    assert len(reported) == 1
    assert source.remarks["unknown_words"] == {"count": 8, "examples": [f"id-{number}" for number in range(3, 8)]}


def test_captions_that_are_known_have_no_remark(tiny):
    source = caption_source(Captions(DRAWN, ["a", "b", "c"]), tiny)
    list(source)
    assert source.remarks == {}


def test_an_encoder_that_tells_no_tokens_is_not_asked():
    import torch

    encoder = CallableEncoder(
        lambda images: torch.ones(len(images), 2), lambda texts: torch.ones(len(texts), 2), 2, spec="mine"
    )
    source = caption_source(Captions([FOREIGN["Greek"]], ["a"]), encoder)
    list(source)
    assert source.remarks == {}
