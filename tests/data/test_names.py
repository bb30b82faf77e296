"""Names in little memory are the same names."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from clipconformity.data.names import Names, Places


def test_names_are_those_that_were_added_whatever_their_kinds():
    chosen = random.Random(0)
    names, listed, place = Names(), [], 0
    for number in range(200):
        if chosen.random() < 0.5:
            more = Places("e" if chosen.random() < 0.8 else "f", place, place + chosen.randrange(5))
            place = more.stop + chosen.randrange(2)
        else:
            more = [f"ü{number} \ud800 {n}" for n in range(chosen.randrange(4))]
        if chosen.random() < 0.3:
            again = Names()
            again.extend(more)
            names.extend(again)
        else:
            names.extend(more)
        listed += list(more)
    assert list(names) == listed
    assert names == listed
    assert [names[n] for n in range(len(listed))] == listed
    assert [names[-1], names[3:9:2]] == [listed[-1], listed[3:9:2]]
    assert names != listed[:-1]
    assert names != [*listed[:-1], "other"]
    with pytest.raises(IndexError):
        names[len(listed)]


def test_places_are_sliced_as_lists_are():
    places = Places("e", 3, 20)
    for part in (slice(2, 5), slice(None, None, 3), slice(-4, None), slice(5, 2), slice(0, 99)):
        assert list(places[part]) == list(places)[part]
    assert "e:7" in places
    with pytest.raises(IndexError):
        places[17]


def test_a_million_names_take_a_few_bytes_each():
    tracemalloc.start()
    placed, packed = Names(), Names()
    for start in range(0, 10**6, 10**4):
        placed.extend(Places("e", start, start + 10**4))
    small = tracemalloc.get_traced_memory()[0]
    for start in range(0, 10**6, 10**4):
        packed.extend([f"{n:012}.png" for n in range(start, start + 10**4)])
    more = tracemalloc.get_traced_memory()[0] - small
    tracemalloc.stop()
    assert small < 10_000
    assert more < 10**6 * (16 + 8) * 1.25  # letters and place, and what grows ahead
    assert packed[654321] == "000000654321.png"
