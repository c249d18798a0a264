"""Minimal pairs: an acceptable and an unacceptable sentence that differ in one word (BLiMP; Warstadt et al. 2020).

A *form* of a phenomenon is a right word with its wrong counterpart: for subject-verb agreement "is" in place of "are",
and "are" in place of "is". It is queried like a fact: its templates are the right sentences, its answer is the word.

    form     Fact(subject="", relation=phenomenon, object=right, uid=wrong)
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kn_lens.errors import DataError
from kn_lens.facts import OBJECT_SLOT, SUBJECT_SLOT, WORLD, Fact, FactSet, json_lines, text_of
from kn_lens.runs.directory import digest_of_json

EMBEDDED = WORLD / "minimal_pairs.jsonl"
WORD_SLOT = "[W]"
FACTS_OF_A_PATTERN = 4
"""Number of facts that each pattern of the embedded pairs is filled with."""

_WORD = re.compile(r"(\w+(?:['\u2019-]\w+)*)")


@dataclass(frozen=True)
class Pair:
    """Two sentences, one of them right.

    Attributes:
        phenomenon: the phenomenon; BLiMP's ``UID``.
        good: the right one.
        bad: the wrong one.
        by_prefix: whether the text before the first difference decides which is right; BLiMP's ``one_prefix_method``.
    """

    phenomenon: str
    good: str
    bad: str
    by_prefix: bool

    @cached_property
    def parts(self) -> tuple[str, str, str, str] | None:
        """The text before the word, the right word, the wrong one, and the text behind.

        None where the sentences do not differ in exactly one word.

        >>> Pair("number", "The books lie here.", "The book lie here.", False).parts
        ('The ', 'books', 'book', ' lie here.')
        """
        good, bad = _WORD.split(self.good), _WORD.split(self.bad)  # words at the odd indices
        if len(good) != len(bad):
            return None
        differing = []
        for index, (good_part, bad_part) in enumerate(zip(good, bad, strict=True)):
            if good_part != bad_part:
                differing.append(index)
        if len(differing) != 1 or differing[0] % 2 == 0:
            return None
        (index,) = differing
        return "".join(good[:index]), good[index], bad[index], "".join(good[index + 1 :])

    def told_before(self) -> bool:
        """Return whether the text before the word decides which word is right, as a causal model needs."""
        if self.parts is None:
            return False
        before, _, _, behind = self.parts
        return bool(before.strip()) and (self.by_prefix or not _WORD.search(behind))


def form_of(phenomenon: str, right: str, wrong: str, templates: Iterable[str]) -> Fact:
    """Return a form as a fact; its templates have ``[Y]`` in the word's place."""
    return Fact("", phenomenon, right, tuple(templates), uid=wrong)


def wrong_form(form: Fact) -> Fact:
    """Return the form with the same sentences and the wrong word as its answer."""
    return replace(form, object=form.uid, uid=form.object)


def read_pairs(path: str | Path | None) -> list[Pair]:
    """Read minimal pairs.

    Args:
        path: a file of JSON lines as BLiMP has them (``sentence_good``, ``sentence_bad``, ``UID``, and
            ``one_prefix_method``, false where it is not there), or a folder of such files; None takes the embedded
            pairs, written in the words of the embedded models.

    Raises:
        DataError: there is no such file, or a line is no pair.

    >>> read_pairs(None)[0].good
    'The capital of China is Beijing.'
    """
    if path is None:
        return list(_embedded())
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if os.path.isdir(path) else [path]
    pairs = []
    for file in files:
        for location, row in json_lines(file):
            pairs.append(_pair(location, row))
    if not pairs:
        raise DataError(f"{path}: no pairs there; expected JSON lines, in a file or in the files *.jsonl of a folder.")
    return pairs


def digest_of_pairs(path: str | Path) -> str:
    """Return a digest of the pairs that ``read_pairs`` reads; raises as it does."""
    pairs = read_pairs(path)
    rows = []
    for pair in pairs:
        rows.append([pair.phenomenon, pair.good, pair.bad, pair.by_prefix])
    return digest_of_json(rows)


def _pair(location: str, row: Mapping[str, Any]) -> Pair:
    phenomenon = text_of(row, "UID", location)
    good = text_of(row, "sentence_good", location)
    bad = text_of(row, "sentence_bad", location)
    by_prefix = row.get("one_prefix_method", False)
    if not (phenomenon and good and bad):
        raise DataError(f"{location}: expected a UID and two sentences; got {phenomenon!r}: {good!r}, {bad!r}.")
    if not isinstance(by_prefix, bool):
        raise DataError(f"{location}: 'one_prefix_method' must be true or false; got {by_prefix!r}.")
    for sentence in (good, bad):
        if SUBJECT_SLOT in sentence or OBJECT_SLOT in sentence:
            raise DataError(f"{location}: {sentence!r} has a slot of templates, [X] or [Y]; expected a plain sentence.")
    return Pair(phenomenon, good, bad, by_prefix)


def _embedded() -> Iterator[Pair]:
    """Yield the embedded pairs: patterns filled with facts at even distances in their relation."""
    world = FactSet.world()
    facts_of = {relation: world.of(relation) for relation in world.relations}
    for number, (location, row) in enumerate(json_lines(EMBEDDED)):
        facts = facts_of[text_of(row, "relation", location)]
        pattern = text_of(row, "pattern", location)
        good = text_of(row, "good", location)
        bad = text_of(row, "bad", location)
        for turn in range(FACTS_OF_A_PATTERN):
            index = 7 * number + turn * len(facts) // FACTS_OF_A_PATTERN
            fact = facts[index % len(facts)]
            sentence = pattern.replace(SUBJECT_SLOT, fact.subject)
            sentence = sentence.replace(OBJECT_SLOT, fact.object)
            sentences = {
                "sentence_good": sentence.replace(WORD_SLOT, good),
                "sentence_bad": sentence.replace(WORD_SLOT, bad),
            }
            yield _pair(location, {**row, **sentences})
