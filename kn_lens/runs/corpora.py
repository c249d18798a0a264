"""Corpora: sentences from BingRel files, plain text or the facts' own templates, matched to the facts in them.

The passages of a fact are the sentences with both its head and its tail, and those with the head only (Dai et al. 2022,
section 4.4, which got them from a search engine).
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kn_lens._core.atomic import read_whole
from kn_lens._core.checks import is_list_of
from kn_lens.errors import DataError, did_you_mean
from kn_lens.facts import OBJECT_SLOT, Fact
from kn_lens.runs.directory import digest_of, digest_of_json

PAIRS = "query_pairs.json"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Passages:
    """The sentences about a fact.

    Attributes:
        both: with its head and its tail.
        head: with its head, and without its tail.
    """

    both: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Corpus:
    """Sentences, and the passages of each fact.

    Attributes:
        sentences: all sentences; random ones are drawn from these.
        passages: of the facts that have any.
    """

    sentences: list[str]
    passages: Mapping[Fact, Passages]


def corpus_of(path: str | Path | None, facts: Iterable[Fact], source: Iterable[Fact]) -> Corpus:
    """Return the passages about facts.

    Args:
        path: a folder in the format of BingRel, or a file of plain text in UTF-8; None fills the templates of all
            facts of the source.
        facts: the facts to find passages of.
        source: all facts of the data.

    Raises:
        DataError: the path is neither, or its content is invalid.

    >>> ireland = Fact("Ireland", "P36", "Dublin", ("The capital of [X] is [Y].",))
    >>> europe = Fact("Ireland", "P30", "Europe", ("[X] lies in [Y].",))
    >>> corpus_of(None, [ireland], [ireland, europe]).passages[ireland]
    Passages(both=['The capital of Ireland is Dublin.'], head=['Ireland lies in Europe.'])
    """
    if path is not None and os.path.isdir(path):
        return _bingrel(Path(path), facts)
    if path is not None:
        sentences = _plain(Path(path))
    else:
        sentences = _filled_templates(source)
    return Corpus(sentences, _matched(sentences, facts))


def digest_of_texts(path: str | Path) -> str:
    """Return a digest of a file, or of all JSON files of a folder.

    Raises:
        DataError: it does not exist.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike Path's, false for names that cannot be
        digests = []
        for file in sorted(path.rglob("*.json")):
            if file.is_file():
                digests.append([str(file.relative_to(path)), _digest_of(file)])
        return digest_of_json(digests)
    if not os.path.isfile(path):
        near = did_you_mean(path.name, (file.name for file in path.parent.glob("*")))
        raise DataError(f"{path}: no such file or folder of texts.{near}")
    return _digest_of(path)


def place_of(name: str, sentence: str) -> tuple[int, int] | None:
    """Return the span (start, end) of a name as whole words in a sentence; None where it does not occur.

    >>> place_of("Oman", "Romania and Oman"), place_of("Oman", "Romania")
    ((12, 16), None)
    """
    return next(iter(places_of(name, sentence)), None)


def places_of(name: str, sentence: str) -> list[tuple[int, int]]:
    """Return the spans of all occurrences of a name as whole words."""
    if name not in sentence:  # nearly always, and much faster to check
        return []
    whole_words = rf"(?<!\w){re.escape(name)}(?!\w)"
    return [match.span() for match in re.finditer(whole_words, sentence)]


def _filled_templates(facts: Iterable[Fact]) -> list[str]:
    """Return the sentences that the facts' templates make, each once."""
    sentences: dict[str, None] = {}  # a dict keeps their order
    for fact in facts:
        for template in fact.templates:
            sentences[fact.filled(template).replace(OBJECT_SLOT, fact.object)] = None
    return list(sentences)


def _matched(sentences: Iterable[str], facts: Iterable[Fact]) -> dict[Fact, Passages]:
    """Return the passages of each fact that has any; heads are looked up by their first word."""
    by_word: dict[str, list[Fact]] = {}
    for fact in facts:
        if words := re.findall(r"\w+", fact.subject):
            by_word.setdefault(words[0], []).append(fact)
    passages: dict[Fact, Passages] = {}
    for sentence in sentences:
        for word in dict.fromkeys(re.findall(r"\w+", sentence)):
            for fact in by_word.get(word, ()):
                if not place_of(fact.subject, sentence):
                    continue
                of_fact = passages.setdefault(fact, Passages())
                group = of_fact.both if place_of(fact.object, sentence) else of_fact.head
                group.append(sentence)
    return passages


def _digest_of(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _plain(path: Path) -> list[str]:
    try:
        text = read_whole(path).decode()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a null character
        raise DataError(f"{path}: cannot be read as text in UTF-8 ({error}).") from error
    sentences: dict[str, None] = {}  # a dict keeps their order
    for line in text.splitlines():
        for part in _SENTENCE_END.split(line):
            if sentence := part.strip():
                sentences[sentence] = None
    return list(sentences)


def _bingrel(folder: Path, facts: Iterable[Fact]) -> Corpus:
    """Read the files of BingRel: a list of bags for each relation, in the order of its (head, tail) pairs."""
    pairs_path = _pairs_path(folder)
    pairs = _read_json_pairs(pairs_path)
    facts_of: dict[tuple[str, str, str], list[Fact]] = {}
    for fact in facts:
        facts_of.setdefault((fact.relation, fact.subject, fact.object), []).append(fact)
    sentences: dict[str, None] = {}
    passages: dict[Fact, Passages] = {}
    for path in sorted(folder.glob("*.json")):
        relation = path.stem.removeprefix("final_distant_allbags_").removesuffix("_new")
        if path.name == PAIRS:
            continue
        if relation not in pairs:
            near = did_you_mean(relation, pairs)
            raise DataError(f"{path}: {pairs_path.name} has no relation {relation!r}.{near}")
        pairs_of_relation = pairs[relation]
        bags = _json(path)
        if not isinstance(bags, list) or len(bags) != len(pairs_of_relation):
            n_expected = len(pairs_of_relation)
            raise DataError(f"{path}: expected a list of {n_expected} bags, one for each pair of {relation}.")
        for number, (bag, pair) in enumerate(zip(bags, pairs_of_relation, strict=True)):
            try:
                head, tail, of_pair = _read_bag(bag, pair)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}[{number}]: expected {{'th_bags': [text, ...], 'h_bags': [text, ...]}} and a pair of head "
                    f"and tail in {PAIRS} ({type(error).__name__}: {error})."
                ) from error
            for sentence in (*of_pair.both, *of_pair.head):
                sentences[sentence] = None
            for fact in facts_of.get((relation, head, tail), ()):
                passages[fact] = of_pair
    return Corpus(list(sentences), passages)


def _pairs_path(folder: Path) -> Path:
    """Return the path of the file of pairs, in the folder of BingRel or beside it.

    Raises:
        DataError: there is none.
    """
    for parent in (folder, folder.parent):
        path = parent / PAIRS
        if path.is_file():
            return path
    raise DataError(f"{folder}: there is no {PAIRS} in it or beside it; expected BingRel, or a file of plain text.")


def _read_json_pairs(path: Path) -> dict[str, list[Any]]:
    """Return the list of (head, tail) pairs of each relation.

    Raises:
        DataError: the file holds something else.
    """
    pairs = _json(path)
    if isinstance(pairs, dict) and is_list_of(list, [*pairs.values()]):
        return pairs
    raise DataError(f"{path}: expected an object with a list of pairs of head and tail for each relation.")


def _read_bag(bag: Any, pair: Any) -> tuple[str, str, Passages]:
    """Return the head and the tail of a pair, and the sentences of its bag.

    Raises:
        KeyError, TypeError, ValueError: they are something else.
    """
    head, tail = pair
    passages = Passages(both=bag["th_bags"], head=bag["h_bags"])
    if not is_list_of(list, [passages.both, passages.head]):
        raise TypeError("the sentences are no list")
    if not is_list_of(str, [head, tail, *passages.both, *passages.head]):
        raise TypeError("a sentence or a name is no text")
    return head, tail, passages


def _json(path: Path) -> Any:
    try:
        return json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error
