"""The corpus: what each row of bytes is taken for, at once, byte by byte, and split anywhere."""

from __future__ import annotations

import pytest
from framers import (
    ABOUT,
    REQUEST,
    RESPONSE,
    WHY,
    Chunks,
    Head,
    Limits,
    cuts,
    edits,
    judge,
    mutated,
    raw,
    split,
    vectors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lusca_comm._shim import ffi, lib

REQUESTS = [(what, 0, verdict, raw(data)) for what, verdict, data in vectors("requests.txt", 3)]
RESPONSES = [
    (what, ABOUT[about], verdict, raw(data))
    for what, about, verdict, data in vectors("responses.txt", 4)
]
HEADS = [(REQUEST, *row) for row in REQUESTS] + [(RESPONSE, *row) for row in RESPONSES]
CHUNKS = [
    (what, verdict, raw(data), raw(out)) for what, verdict, data, out in vectors("chunks.txt", 4)
]


@pytest.mark.parametrize(("framer", "what", "about", "verdict", "data"), HEADS)
def test_a_head_is_what_the_corpus_says(framer, what, about, verdict, data) -> None:
    whole = judge(data, framer, about)
    assert whole.verdict == verdict
    bytewise = Head(framer, about)
    for i in range(len(data)):
        bytewise.feed(data[i : i + 1])
    assert bytewise.told == whole.told


@pytest.mark.parametrize(("what", "verdict", "data", "out"), CHUNKS)
def test_a_chunked_body_is_what_the_corpus_says(what, verdict, data, out) -> None:
    whole = Chunks().feed(data)
    assert (whole.verdict, whole.out) == (verdict, out)
    bytewise = Chunks()
    for i in range(len(data)):
        bytewise.feed(data[i : i + 1])
    assert (bytewise.verdict, bytewise.out) == (verdict, out)


def test_every_reason_has_its_row() -> None:
    seen = {verdict.split()[-1] for _, _, _, verdict, _ in HEADS} | {row[1] for row in CHUNKS}
    of_other_tests = {"LONG_LINE", "LONG_HEAD", "FIELDS", "RECORD", "FRAME"}
    assert set(WHY.values()) - seen == of_other_tests
    assert [why for why in WHY if not lib.lc_bad_text(why)] == []
    assert ffi.string(lib.lc_bad_text(lib.LC_BADS)) == b""


limits = st.builds(
    Limits,
    st.integers(0, 120) | st.just(16384),
    st.integers(0, 200) | st.just(65536),
    st.integers(0, 5) | st.just(256),
)


@settings(max_examples=400)
@given(st.sampled_from(HEADS), edits, limits, cuts)
def test_a_head_split_anywhere_is_the_same(row, changes, within, at) -> None:
    framer, _, about, _, data = row
    data = mutated(data, changes)
    pieces = Head(framer, about, within)
    for piece in split(data, at):
        pieces.feed(piece)
    assert pieces.told == judge(data, framer, about, within).told


@settings(max_examples=400)
@given(st.sampled_from(CHUNKS), edits, limits, cuts)
def test_a_chunked_body_split_anywhere_is_the_same(row, changes, within, at) -> None:
    data = mutated(row[2], changes)
    pieces = Chunks(within)
    for piece in split(data, at):
        if pieces.verdict == "more":
            pieces.feed(piece)
        else:
            pieces.rest += piece
    whole = Chunks(within).feed(data)
    assert (pieces.verdict, pieces.out) == (whole.verdict, whole.out)


@settings(max_examples=300)
@given(st.sampled_from(HEADS), edits, limits)
def test_a_verdict_outlives_what_comes_behind_it(row, changes, within) -> None:
    """The first byte that decides has decided: what follows is the next message's."""
    framer, _, about, _, data = row
    data = mutated(data, changes)
    first = Head(framer, about, within)
    for n in range(len(data)):
        if first.feed(data[n : n + 1]).verdict != "more":
            assert judge(data[: n + 1], framer, about, within).told == first.told
            assert judge(data, framer, about, within).told == first.told
            break
