"""docs/framing.md says what the judge says."""

from __future__ import annotations

import re
from pathlib import Path

from framers import WHY, vectors

from lusca_comm._shim import ffi, lib

PAGE = (Path(__file__).parents[2] / "docs" / "framing.md").read_text()
ROWS = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.split("## Reasons")[1], re.MULTILINE))


def test_every_reason_is_in_the_table() -> None:
    texts = [ffi.string(lib.lc_bad_text(why)).decode() for why in WHY]
    assert sorted(texts) == sorted(set(ROWS) - {"reason", "---"})


def test_the_statuses_are_those_of_the_corpus() -> None:
    names = {name: ffi.string(lib.lc_bad_text(why)).decode() for why, name in WHY.items()}
    verdicts = [row[1].split() for row in vectors("requests.txt", 3)]
    verdicts += [row[2].split() for row in vectors("responses.txt", 4)]
    refused = [v for v in verdicts if len(v) == 2 and v[0].isdigit() and v[0] != "502"]
    assert refused
    for status, why in refused:
        assert ROWS[names[why]] == status
