"""Ends of errors about unknown names: what the user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping

from clipconformity.stream.readouts import ReadOut

_FRECHET = (
    " It is the Frechet distance of the raw embeddings, not of Inception features: published FIDs do not compare."
)
_KERNEL = " It is the MMD with the cosine kernel on the embeddings; 'cmmd' has a Gaussian kernel."
_VENDI = " An Inception score needs a classifier; this is the effective number of different samples."
OTHER_NAMES = {
    "fid": ("frechet", _FRECHET),
    "fd": ("frechet", ""),
    "clipfid": ("frechet", ""),
    "kid": ("cosine_mmd", f"{_KERNEL} KID has a cubic one on Inception features."),
    "mmd": ("cosine_mmd", _KERNEL),
    "is": ("vendi", _VENDI),
    "inceptionscore": ("vendi", _VENDI),
    "memorization": ("nearest", ""),
    "memorisation": ("nearest", ""),
    "duplicates": ("nearest", ""),
    "kl": ("conformity", ""),
    "typicality": ("conformity", ""),
    "variety": ("conformity", ""),
}
"""Names that people know from elsewhere, as :func:`_strip` gives them: the nearest read-out, and how it differs."""


def suggest_name(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the closest known one."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def suggest_metric(name: str, known: Mapping[str, ReadOut], core: Collection[str]) -> str:
    """Return the end of an error about an unknown metric: the one of this spelling, figure or name elsewhere.

    Args:
        name: The unknown name.
        known: The read-outs by name.
        core: Names of those that every score has.
    """
    letters = _strip(name)
    for one in known:
        if _strip(one) == letters:
            return f"; did you mean {one!r}?"
    if letters in OTHER_NAMES:
        meant, difference = OTHER_NAMES[letters]
        return f"; did you mean {meant!r}?{difference}"
    for one, read_out in known.items():
        if letters in (_strip(field.name) for field in read_out.fields):
            return "; every score has it, leave it out." if one in core else f"; did you mean {one!r}, which gives it?"
    return suggest_name(name, known)


def suggest_figure(name: str, given: Collection[str], known: Mapping[str, ReadOut]) -> str:
    """Return the end of an error about an unknown figure: the closest one, or the metric that gives it.

    Args:
        name: The unknown name.
        given: The figures that there are.
        known: The read-outs by name.
    """
    meant, difference = OTHER_NAMES.get(_strip(name), (name, ""))
    for one, read_out in known.items():
        if meant in (field.name for field in read_out.fields):
            asked = "" if meant == name else f"; did you mean {meant!r}?{difference}"
            return f"{asked or ';'} {meant!r} comes with --metrics {one}."
    return suggest_name(name, given)


def _strip(name: str) -> str:
    """Return the letters and digits of a name alone, in lower case."""
    return "".join(filter(str.isalnum, name.lower()))
