"""Words that a tokenizer knows: it neither drops them, nor makes them unknown, nor splits them into letters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby

MAX_TOKENS_PER_LETTER = 0.8
"""Tokens per letter from which on a word counts as split into letters.

Measured on CLIP's vocabulary: English and accented words 0.1 to 0.67, Cyrillic, Arabic and Greek ones 0.8 to 2.
"""
MAX_UNKNOWN_SHARE = 0.5
"""Share of letters in unknown words above which a text is unknown."""
_ASCII = re.compile("[A-Za-z]+")
_SIGNS = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
"""Characters for a syllable or a word, for which one token each is normal."""
_INVISIBLE = str.maketrans("", "", "\u200d\ufe0e\ufe0f")
"""Characters that join emoji, or choose their appearance."""


def split_words(text: str) -> list[str]:
    """Split a text into words: runs of letters, and of symbols such as emoji.

    Example:
        >>> split_words("A naïve café, 2 dogs ☕")
        ['A', 'naïve', 'café', 'dogs', '☕']
    """
    return _ASCII.findall(text) if text.isascii() else list(_split_runs(text))


def _split_runs(text: str) -> Iterator[str]:
    for kind, letters in groupby(unicodedata.normalize("NFC", text).translate(_INVISIBLE), _classify_character):
        if kind:
            yield "".join(letters)


def _classify_character(letter: str) -> str:
    category = unicodedata.category(letter)
    return "letter" if category[0] in "LM" else "sign" if category == "So" else ""


def is_known(word: str, tokens: Sequence[int], unknown: int | None) -> bool:
    """Whether a tokenizer knows a word.

    Args:
        word: A run of letters or signs.
        tokens: Its tokens, without start and end.
        unknown: The tokenizer's unknown token, if it has one.

    Example:
        >>> is_known("dog", [5], 1), is_known("dog", [1], 1), is_known("dog", [], 1)
        (True, False, False)
        >>> is_known("собака", [7, 8, 9, 10, 11, 12], None)  # a token a letter
        False
    """
    if not tokens or 2 * sum(token == unknown for token in tokens) >= len(tokens):
        return False
    if len(word) < 3 or _SIGNS.search(word) or _classify_character(word[0]) == "sign":
        return len(tokens) <= len(word) + 1  # some tokenizers begin every word with a separate token
    return len(tokens) < MAX_TOKENS_PER_LETTER * len(word)


def is_mostly_unknown(words: Sequence[str], known: dict[str, bool]) -> bool:
    """Whether most letters of a text are in words that are not known."""
    letters = sum(map(len, words))
    return sum(len(word) for word in words if not known[word]) > MAX_UNKNOWN_SHARE * letters
