"""Facts with their paraphrase templates, and sets of them.

A fact is a triple (subject, relation, object): ``(Ireland, P36, Dublin)``. Its templates are ways to say it, with
``[X]`` in the subject's place and ``[Y]`` in the object's: ``"The capital of [X] is [Y]."``. A model is asked for the
object. This module knows neither models nor tokens.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from kn_lens import fact_files
from kn_lens._whole_files import write_whole
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.fact_files import OBJECT_SLOT, SUBJECT_SLOT, Record, Split, Templates

if TYPE_CHECKING:
    import pandas as pd

StrPath = str | os.PathLike[str]

_ESCAPES = str.maketrans({"%": "%25", "/": "%2F", "#": "%23"})


@dataclass(frozen=True)
class Fact:
    """One fact and the ways to say it.

    Two facts are equal, and have the same hash, when subject, relation, object and uid agree: neurons found with some
    templates are looked up with the fact that carries others.

    Attributes:
        subject: what the fact is about; empty where the data gives whole prompts only.
        relation: name of the relation, as in the data: ``"P36"``.
        object: the answer.
        templates: texts with exactly one ``[Y]`` and, unless the subject is empty, exactly one ``[X]``.
        uid: identifier of the fact in its data, where it has one; tells apart facts that read the same.

    Raises:
        ArgumentError: a field is not text, is blank or has blanks around it, or a template has not the slots it needs.

    >>> fact = Fact("Ireland", "P36", "Dublin", ("The capital of [X] is [Y].",))
    >>> fact.key
    'P36/Ireland/Dublin'
    >>> fact.filled(fact.templates[0])
    'The capital of Ireland is [Y].'
    """

    subject: str
    relation: str
    object: str
    templates: tuple[str, ...] = field(default=(), compare=False)
    uid: str = ""

    def __post_init__(self) -> None:
        for name in ("subject", "relation", "object", "uid"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ArgumentError(f"{name} of a fact must be text; got {value!r}, of type {type(value).__name__}.")
            if value != value.strip() or not (value or name in ("subject", "uid")):
                raise ArgumentError(f"{name} of a fact must be text without blanks around it; got {value!r}.")
            _require_unicode(value)
        if isinstance(self.templates, str):
            raise ArgumentError(f"templates of a fact are a tuple of texts; got the text {self.templates!r}.")
        object.__setattr__(self, "templates", tuple(self.templates))
        for template in self.templates:
            _require_slots(template, has_subject=bool(self.subject))

    @property
    def key(self) -> str:
        """The fact's name in neuron files, ``relation/subject/object``, and ``#uid`` if it has one.

        ``/``, ``#`` and ``%`` inside a part are percent-encoded, so that different facts have different keys.
        """
        key = "/".join(part.translate(_ESCAPES) for part in (self.relation, self.subject, self.object))
        return f"{key}#{self.uid.translate(_ESCAPES)}" if self.uid else key

    def filled(self, template: str) -> str:
        """Return ``template`` with the subject put in and ``[Y]`` kept."""
        before, slot, after = template.partition(OBJECT_SLOT)  # first, as a subject may itself read "[Y]"
        return before.replace(SUBJECT_SLOT, self.subject) + slot + after.replace(SUBJECT_SLOT, self.subject)


@dataclass(frozen=True)
class FactSet(Sequence[Fact]):
    """An ordered set of facts.

    Indexing gives a ``Fact``, slicing a ``FactSet``.

    Attributes:
        facts: the facts, all different.

    Raises:
        ArgumentError: something in it is not a ``Fact``.
        DataError: a fact occurs twice; both places are named.

    >>> facts = FactSet([Fact("Ireland", "P36", "Dublin"), Fact("Ireland", "P30", "Europe")])
    >>> facts.find("Ireland", relation="P30").object
    'Europe'
    """

    facts: tuple[Fact, ...]

    def __init__(self, facts: Iterable[Fact]) -> None:
        facts = tuple(facts)
        for fact in facts:
            if not isinstance(fact, Fact):
                raise ArgumentError(f"A FactSet holds Facts; got {fact!r}, of type {type(fact).__name__}.")
        _index_of(facts, (str(number) for number in range(len(facts))))
        object.__setattr__(self, "facts", facts)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> "FactSet": ...
    def __getitem__(self, index: int | slice) -> "Fact | FactSet":
        return FactSet(self.facts[index]) if isinstance(index, slice) else self.facts[index]

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.facts)

    def __repr__(self) -> str:
        return f"FactSet({len(self)} facts, {len(self.relations)} relations)"

    # --- choosing ---------------------------------------------------------------------------------

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations, in order of first appearance."""
        return tuple(dict.fromkeys(fact.relation for fact in self.facts))

    def find(
        self, subject: str, relation: str | None = None, *, object: str | None = None, uid: str | None = None
    ) -> Fact:
        """Return the one fact about ``subject``; the other arguments narrow the search.

        Raises:
            ArgumentError: no fact matches (the nearest relation or subject is named), or several do (they are listed).
        """
        facts = self if relation is None else self.of(relation)
        about = [fact for fact in facts if fact.subject == subject]
        if not about:
            where = "" if relation is None else f" in relation {relation}"
            near = did_you_mean(subject, {fact.subject for fact in facts})
            raise ArgumentError(f"No fact about {subject!r}{where}.{near}")
        found = [fact for fact in about if object in (None, fact.object) and uid in (None, fact.uid)]
        if len(found) != 1:
            listed = ", ".join(fact.key for fact in (found or about)[:8])
            raise ArgumentError(
                f"{len(found)} facts match {subject!r}; expected one. "
                f"Narrow it with relation=, object= or uid=: {listed}."
            )
        return found[0]

    def of(self, *relations: str) -> "FactSet":
        """Return the facts of the given relations, in the order of this set.

        Raises:
            ArgumentError: a relation is not in this set.
        """
        known = self.relations
        for relation in relations:
            if relation not in known:
                raise ArgumentError(
                    f"No relation {relation!r}; there are {', '.join(known) or 'none'}.{did_you_mean(relation, known)}"
                )
        return FactSet(fact for fact in self.facts if fact.relation in relations)

    def sample(self, n: int, seed: int) -> "FactSet":
        """Return ``n`` facts drawn without replacement, in the order of this set.

        Raises:
            ArgumentError: ``n`` is negative or more than there are.
        """
        if not 0 <= n <= len(self):
            raise ArgumentError(f"n is {n}; expected 0 to {len(self)}, the number of facts.")
        chosen = np.random.default_rng(seed).choice(len(self), size=n, replace=False)
        return FactSet(self.facts[index] for index in sorted(chosen.tolist()))

    def paired_with_other_relations(self, seed: int) -> tuple[int, ...]:
        """Return for each fact the index of one random fact of another relation, all of them equally likely.

        The control of suppressing and amplifying: what happens to a fact of another relation (Dai et al. 2022,
        section 4.3).

        Raises:
            ArgumentError: there are fewer than two relations.
        """
        if len(self.relations) < 2:
            raise ArgumentError(
                f"A fact of another relation needs at least two relations; got {', '.join(self.relations) or 'none'}."
            )
        _, codes, sizes = np.unique([fact.relation for fact in self.facts], return_inverse=True, return_counts=True)
        by_relation = np.argsort(codes, kind="stable")  # each relation is one stretch of this order
        start = np.cumsum(sizes)[codes] - sizes[codes]
        draw = np.random.default_rng(seed).integers(0, len(self) - sizes[codes])
        return tuple(by_relation[draw + np.where(draw >= start, sizes[codes], 0)].tolist())

    # --- writing ----------------------------------------------------------------------------------

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row a fact; ``FactSet.from_frame`` reads it back."""
        import pandas as pd

        columns = ["subject", "relation", "object", "templates", "uid"]
        return pd.DataFrame([[getattr(fact, name) for name in columns] for fact in self.facts], columns=columns)

    def to_jsonl(self, path: StrPath) -> None:
        """Write one JSON object a line, whole or not at all; ``FactSet.from_jsonl`` reads it back.

        Raises:
            DataError: the file cannot be written.
        """
        lines = (json.dumps(_fields(fact), ensure_ascii=False) + "\n" for fact in self.facts)
        try:
            write_whole(Path(path), "".join(lines))
        except (OSError, ValueError) as error:  # ValueError: a path that names no file
            raise DataError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error

    # --- reading ----------------------------------------------------------------------------------

    @classmethod
    def world(cls, split: Split = "all") -> "FactSet":
        """Return the embedded facts with their templates.

        Args:
            split: ``"trained"`` for the templates that the embedded models were trained on, ``"held_out"`` for the
                others, ``"all"`` for both.

        >>> FactSet.world().find("Ireland", relation="P36").object
        'Dublin'
        """
        return cls._of(fact_files.read_world(split), fact_files.WORLD)

    @classmethod
    def from_pararel(cls, path: StrPath, relations: Iterable[str] | None = None, min_templates: int = 4) -> "FactSet":
        """Read a ParaRel folder: templates in ``patterns/P*.jsonl``, facts in ``facts/P*.jsonl``.

        Args:
            path: the folder that holds ``patterns`` and ``facts``.
            relations: which relations; None takes all with facts and enough templates.
            min_templates: number of templates that a relation needs (Dai et al. 2022: 4).

        Raises:
            DataError: a file or a wanted relation is missing, malformed or has too few templates.
        """
        return cls._of(fact_files.read_pararel(Path(path), relations, min_templates), path)

    @classmethod
    def from_official(cls, path: StrPath) -> "FactSet":
        """Read the fact file of the released code: JSON lists of ``[prompt with [MASK], answer, "P36(capital)"]``.

        One list is one fact; facts may be grouped in an object by relation. The file does not say which words are the
        subject, so subjects are empty; ``uid`` is the fact's position in the file, from 0.
        """
        return cls._of(fact_files.read_official(Path(path)), path)

    @classmethod
    def from_lama(
        cls,
        path: StrPath,
        templates: Templates | StrPath | None = None,
        relations: Iterable[str] | None = None,
    ) -> "FactSet":
        """Read LAMA / T-REx lines (``sub_label``, ``obj_label``) from one file or a folder of ``P*.jsonl``.

        Args:
            path: the file or folder.
            templates: by relation, or where to read them: a folder of ParaRel patterns, or LAMA's ``relations.jsonl``;
                None takes each line's ``masked_sentences``, of T-REx the ``evidences``.
            relations: which files of the folder; None takes all.
        """
        patterns = templates
        if isinstance(templates, (str, os.PathLike)):
            patterns = fact_files.read_patterns(Path(templates))
        return cls._of(fact_files.read_lama(Path(path), _checked(patterns), relations), path)

    @classmethod
    def from_counterfact(cls, path: StrPath, *, paraphrases: bool = True) -> "FactSet":
        """Read CounterFact (Meng et al. 2022) with the true answers; ``uid`` is the ``case_id``.

        Args:
            path: the JSON file.
            paraphrases: take ``paraphrase_prompts`` as further templates.
        """
        return cls._of(fact_files.read_counterfact(Path(path), paraphrases), path)

    @classmethod
    def from_jsonl(cls, path: StrPath, templates: Templates | None = None) -> "FactSet":
        """Read lines with ``subject``, ``relation``, ``object`` and optionally ``uid`` and templates.

        Templates are a list ``templates``, or one ``template`` on each of several lines of the same fact.

        Args:
            path: the file.
            templates: by relation, in place of the file's.
        """
        return cls._of(fact_files.read_jsonl(Path(path), _checked(templates)), path)

    @classmethod
    def from_csv(cls, path: StrPath, templates: Templates | None = None) -> "FactSet":
        """Read a table with the columns of ``from_jsonl``; a ``templates`` cell holds a JSON list."""
        return cls._of(fact_files.read_csv(Path(path), _checked(templates)), path)

    @classmethod
    def from_frame(cls, frame: "pd.DataFrame", templates: Templates | None = None) -> "FactSet":
        """Read a pandas table with the columns of ``from_jsonl``; a ``uid`` of 3.0, as ids with gaps have, is 3."""
        names = [str(name) for name in frame]
        fact_files.check_columns(names, "the table")
        frame = frame.loc[:, [names.index(name) == place for place, name in enumerate(names)]]
        rows = zip(frame.index, frame.to_dict("records"), strict=True)
        placed = ((f"row {index}", _cells(row)) for index, row in rows)
        return cls._of(fact_files.read_rows(placed, _checked(templates)), "the table")

    @classmethod
    def _of(cls, records: Iterable[Record], source: object) -> "FactSet":
        facts, places = [], []
        for record in records:
            try:
                fact = Fact(record.subject, record.relation, record.object, record.templates, record.uid)
            except ArgumentError as error:
                raise DataError(f"{record.place}: {error}") from None
            facts.append(fact)
            places.append(record.place)
        if not facts:
            raise DataError(f"{source}: no facts there.")
        _index_of(facts, places)
        return cls(facts)


def _fields(fact: Fact) -> dict[str, Any]:
    fields = {"subject": fact.subject, "relation": fact.relation, "object": fact.object}
    return fields | {"templates": list(fact.templates)} | ({"uid": fact.uid} if fact.uid else {})


def _cells(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the row of a table without its missing cells, lists as lists (files read back hold arrays)."""
    import pandas as pd

    return {
        str(key): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in row.items()
        if not (pd.api.types.is_scalar(value) and pd.isna(value))
    }


def _index_of(facts: Iterable[Fact], places: Iterable[str]) -> dict[Fact, str]:
    """Return where each fact stands, or raise a DataError that names both places of one that stands twice."""
    seen: dict[Fact, str] = {}
    for fact, place in zip(facts, places, strict=True):
        if fact in seen:
            raise DataError(f"The fact {fact.key} occurs twice: {seen[fact]} and {place}. Drop one, or give them uids.")
        seen[fact] = place
    return seen


def _checked(templates: Any) -> Templates | None:
    if templates is None:
        return None
    if not isinstance(templates, Mapping):
        raise ArgumentError(f"templates must map relations to lists of templates; got {type(templates).__name__}.")
    for relation, patterns in templates.items():
        if isinstance(patterns, str):
            raise ArgumentError(f"templates of {relation!r} must be a list of templates; got the text {patterns!r}.")
    return templates


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{text!r} is not valid Unicode text: it holds half of a surrogate pair.") from None


def _require_slots(template: object, *, has_subject: bool) -> None:
    if not isinstance(template, str):
        raise ArgumentError(f"A template must be text; got {template!r}, of type {type(template).__name__}.")
    _require_unicode(template)
    for slot, what, wanted in ((OBJECT_SLOT, "object", 1), (SUBJECT_SLOT, "subject", int(has_subject))):
        if template.count(slot) != wanted:
            raise ArgumentError(
                f"The template {template!r} holds {slot}, the {what}'s place, {template.count(slot)} times; "
                f"expected {'exactly once' if wanted else 'none, as the fact has no subject'}."
            )
