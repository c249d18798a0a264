"""The number of random inputs: small in every run of the tests, set by hand with ``KN_LENS_FUZZ``.

    KN_LENS_FUZZ=10000 python -m pytest tests/reliability

The inputs of every run of the tests are the same; those by hand are other ones each time. What was tried is counted by
kind, and printed at the end by ``conftest.py``.
"""

import csv
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kn_lens.errors import KNLensError

BY_HAND = int(os.environ.get("KN_LENS_FUZZ", "0"))
AT_MOST_SECONDS = 10.0
"""Of the processor, for one input of a few kilobytes: more is a hang."""

TRIED: Counter[tuple[str, str]] = Counter()
"""Inputs by kind, and what became of them: ``taken`` or ``refused``. Kinds of one group are called ``group: kind``."""

T = TypeVar("T")


def fuzz(usually: int, share: float = 1.0) -> settings:
    """Return settings of a property: the usual number of inputs, and its share of those set by hand."""
    return settings(
        max_examples=max(usually, round(share * BY_HAND)),
        derandomize=not BY_HAND,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def taken_or_refused(kind: str, call: Callable[[], T], named: str = "") -> T | None:
    """Return the result of a call, or None if it raises an error of the library, with a message.

    The message must contain ``name``, if given.
    """
    result: Any = None
    with timed(kind):
        try:
            result = call()
        except KNLensError as error:
            assert str(error).strip() and named in str(error), error
            TRIED[kind, "refused"] += 1
        else:
            TRIED[kind, "taken"] += 1
    return result


@contextmanager
def timed(kind: str) -> Iterator[None]:
    """Fail if one input takes too long."""
    began = time.process_time()
    yield
    took = time.process_time() - began
    assert took < AT_MOST_SECONDS, f"{kind}: one input took {took:.1f} s"


# --- what goes wrong in files and texts ------------------------------------------------------------------------------

NASTY = [
    b"\xef\xbb\xbf", b"\x00", b"\xed\xa0\x80", b"\xff\xfe", b'"\\ud800"', b"NaN", b"-Infinity", b"1e999", b"-1", b"1.0",
    b"9" * 5000, b"9" * 400, b"[" * 5000, b'{"a":' * 2000, b"[" * 900 + b"]" * 900, b"\r", b"\r\n", b"\n\n",
    "\u2028".encode(), b'""', b"null", b"true", b"{}", b"[]", b"[X]", b"[Y]", b"[MASK]", b"../../x", b"~nobody/x",
    b"'", b'"', b",", b"\\", b"/" * 5000, b"a" * 5000,
]  # fmt: skip

TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(codec=None, categories=("Cs", "Cc", "Cf", "Co", "Cn", "Mn", "Zs")), max_size=8),
    st.sampled_from(
        ["", " ", "[X]", "[Y]", "[X] [Y]", "[MASK]", "<mask>", "</s>", "<|endoftext|>", "../../x", "..", "/etc/x",
         "a\0b", "~nobody/x", "x" * 5000, "é" * 200, "NaN", "\u2028", "\ufeff", "\U0001f600", "%s%n{}", "CON"]
    ),
)  # fmt: skip

NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30, 10**400, 1e308, 5e-324, -0.0])
)

JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: Any, valid: bytes) -> bytes:
    """Draw a valid file with some damage: cut, spliced, overwritten, repeated, with other line ends or encoding."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.integers(0, 40)))
        accident = draw(st.sampled_from(["cut", "insert", "replace", "delete", "double", "ends", "recode"]))
        if accident == "cut":
            del content[at:]
        elif accident in ("insert", "replace"):
            content[at : at if accident == "insert" else to] = draw(st.sampled_from(NASTY) | st.binary(max_size=12))
        elif accident == "delete":
            del content[at:to]
        elif accident == "double":
            content[at:at] = content[at:to]
        elif accident == "ends":
            content = bytearray(content.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\x85", b"\n\r", b""]))))
        else:
            content = bytearray(
                content.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "utf-8-sig"])))
            )
    return bytes(content)


CELLS = [
    "", " ", "nan", "inf", "-inf", "-1", "0", "1", "2.0", "1e999", "9" * 400, "x", "found", "own", "P1", "\u2028", '"',
]  # fmt: skip


@st.composite
def changed_table(draw: Any, valid: bytes) -> bytes:
    """Draw a CSV file with a changed cell, or with columns or rows left out, repeated or swapped."""
    rows = list(csv.reader(io.StringIO(valid.decode(), newline="")))
    for _ in range(draw(st.integers(1, 2))):
        row, column = (draw(st.integers(0, len(of) - 1)) for of in (rows, rows[0]))
        change = draw(st.sampled_from(["cell", "cell", "no column", "columns", "no row", "row", "end", "start"]))
        if change == "cell":
            rows[row][column] = draw(st.sampled_from(CELLS) | TEXTS)
        elif change == "no column" and len(rows[0]) > 1:
            rows = [cells[:column] + cells[column + 1 :] for cells in rows]
        elif change == "columns":
            rows = [[*cells[column:], *cells[:column]] for cells in rows[:1]] + rows[1:]
        elif change == "no row" and len(rows) > 1:
            del rows[row]
        elif change == "row":
            rows.insert(row, list(rows[row]))
        elif change == "end":
            del rows[row + 1 :]
        elif change == "start":
            del rows[1 : row + 1]
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue().encode("utf-8", "replace")


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places_in(inner, (*path, key))


def with_changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return the JSON value with another value at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_changed(value[path[0]], path[1:], new)
    return copy


@st.composite
def changed(draw: Any, valid: Any) -> Any:
    """Draw a JSON value with one value in it replaced, half of the time by one of its type."""
    place = draw(st.sampled_from([place for place in places_in(valid) if place]))
    old = valid
    for step in place:
        old = old[step]
    of_type = TEXTS if isinstance(old, str) else NUMBERS if isinstance(old, (int, float)) else JSON
    return with_changed(valid, place, draw(of_type | JSON))
