"""Facts with their paraphrase templates, and sets of facts.

A fact is a triple (subject, relation, object): ``(Ireland, P36, Dublin)``. Its templates are sentences that express it,
with the slots ``[X]`` for the subject and ``[Y]`` for the object: ``"The capital of [X] is [Y]."``. A model predicts
the object. This module depends neither on models nor on tokenizers.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from kn_lens._core import defaults
from kn_lens._core.atomic import write_whole
from kn_lens._core.checks import check_kind, check_path, check_table, wrong_kind
from kn_lens._core.display import ROWS_SHOWN, enumerated, shortened, table_html
from kn_lens._core.wording import counted
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.facts import readers
from kn_lens.facts.readers import OBJECT_SLOT, SUBJECT_SLOT, Record, Split, Templates
from kn_lens.facts.relations import WIKIDATA_LABELS, relation_name

if TYPE_CHECKING:
    import pandas as pd

StrPath = str | os.PathLike[str]

RELATIONS_SHOWN = 3
"""Number of relations in the text of a set."""

_ESCAPES = str.maketrans({"%": "%25", "/": "%2F", "#": "%23"})


@dataclass(frozen=True)
class Fact:
    """One fact with its templates.

    Two facts are equal, and have the same hash, if their subject, relation, object, uid and language are equal.
    Templates do not count: neurons that were found with one set of templates can be looked up by the same fact with
    another set. The label of the relation does not count either, and is in neither the key nor any digest.

    Attributes:
        subject: the entity that the fact is about; empty where the data holds complete prompts only.
        relation: the name of the relation in the data: ``"P36"``.
        object: the answer.
        templates: texts with exactly one ``[Y]`` and, unless the subject is empty, exactly one ``[X]``.
        uid: the identifier of the fact in the data, if any; it distinguishes facts with the same subject, relation and
            object.
        relation_label: the relation in words, for people: ``"capital"``; empty where the data has none.
        language: the language of subject, object and templates, ``"de"``; empty where the data does not say. In data of
            several languages the versions of one fact share its relation and ``uid``.

    Raises:
        ArgumentError: a field is not text, is empty or has blanks around it, or a template has other slots than these.

    >>> fact = Fact("Ireland", "P36", "Dublin", ("The capital of [X] is [Y].",), relation_label="capital")
    >>> fact
    Fact('Ireland', 'capital (P36)', 'Dublin', 1 template)
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
    relation_label: str = field(default="", compare=False)
    language: str = ""

    def __post_init__(self) -> None:
        for name in ("subject", "relation", "object", "uid", "relation_label", "language"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ArgumentError(f"{name} of a fact must be text; got {value!r}, of type {type(value).__name__}.")
            may_be_empty = name in ("subject", "uid", "relation_label", "language")
            if value != value.strip() or not (value or may_be_empty):
                raise ArgumentError(f"{name} of a fact must be text without blanks around it; got {value!r}.")
            _require_unicode(value)
        if isinstance(self.templates, str):
            raise ArgumentError(f"templates of a fact are a tuple of texts; got the text {self.templates!r}.")
        object.__setattr__(self, "templates", tuple(self.templates))
        for template in self.templates:
            _require_slots(template, has_subject=bool(self.subject))

    def __repr__(self) -> str:
        parts = [repr(shortened(part)) for part in (self.subject, self.relation_name, self.object)]
        parts.append(counted(len(self.templates), "template"))
        if self.uid:
            parts.append(f"uid={shortened(self.uid)!r}")
        if self.language:
            parts.append(f"language={shortened(self.language)!r}")
        return f"Fact({', '.join(parts)})"

    def _repr_html_(self) -> str:
        summary = f"{self.subject}, {self.relation_name}: {self.object}".removeprefix(", ")
        rows = [[template] for template in self.templates[:ROWS_SHOWN]]
        return table_html(summary, ["template"], rows, n_rows=len(self.templates))

    @property
    def relation_name(self) -> str:
        """The relation as tables and figures show it: ``capital (P36)``, or ``P36`` without a label."""
        return relation_name(self.relation, self.relation_label)

    @property
    def key(self) -> str:
        """The name of the fact in neuron files: ``relation/subject/object``.

        ``#uid`` follows if the fact has one, and ``#uid#language`` if it has a language. ``/``, ``#`` and ``%`` inside
        a part are percent-encoded, so that different facts have different keys.
        """
        parts = [part.translate(_ESCAPES) for part in (self.relation, self.subject, self.object)]
        key = "/".join(parts)
        if self.uid or self.language:
            key += f"#{self.uid.translate(_ESCAPES)}"
        if self.language:
            key += f"#{self.language.translate(_ESCAPES)}"
        return key

    def filled(self, template: str) -> str:
        """Return ``template`` with the subject in its slot; the slot ``[Y]`` stays."""
        before, slot, after = template.partition(OBJECT_SLOT)  # first, because a subject may contain "[Y]"
        before = before.replace(SUBJECT_SLOT, self.subject)
        after = after.replace(SUBJECT_SLOT, self.subject)
        return before + slot + after


@dataclass(frozen=True)
class FactSet(Sequence[Fact]):
    """An ordered set of facts. An index selects a ``Fact``, a slice a ``FactSet``.

    Attributes:
        facts: the facts, all different.

    Raises:
        ArgumentError: an element is not a ``Fact``.
        DataError: a fact occurs twice; the message gives both positions.

    >>> facts = FactSet([Fact("Ireland", "P36", "Dublin"), Fact("Ireland", "P30", "Europe")])
    >>> facts.find("Ireland", relation="P30").object
    'Europe'
    """

    facts: tuple[Fact, ...]

    def __init__(self, facts: Iterable[Fact]) -> None:
        if isinstance(facts, (str, Fact)) or not isinstance(facts, Iterable):
            raise wrong_kind(facts, "several Facts: [facts.find('Ireland', 'P36')]")
        facts = tuple(facts)
        for fact in facts:
            check_kind(
                fact, Fact, "Facts alone: kn_lens.Fact('Ireland', 'P36', 'Dublin', templates)", "one of the facts"
            )
        _check_unique(facts, map(str, range(len(facts))))
        object.__setattr__(self, "facts", facts)

    @overload
    def __getitem__(self, index: int) -> Fact: ...
    @overload
    def __getitem__(self, index: slice) -> "FactSet": ...
    def __getitem__(self, index: int | slice) -> "Fact | FactSet":
        if isinstance(index, slice):
            return FactSet(self.facts[index])
        return self.facts[index]

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.facts)

    def __add__(self, other: Iterable[Fact]) -> "FactSet":
        """Return the facts of this set, then those of another.

        Raises:
            ArgumentError: an element is not a ``Fact``.
            DataError: both have a fact.
        """
        return FactSet((*self.facts, *FactSet(other).facts))

    def __repr__(self) -> str:
        names = [relation_name(relation, label) for relation, label in self.relation_labels.items()]
        text = f"{counted(len(self), 'fact')}, {counted(len(names), 'relation')}"
        if names:
            text += f": {shortened(enumerated(names, RELATIONS_SHOWN), 120)}"
        return f"FactSet({text})"

    def _repr_html_(self) -> str:
        rows = []
        for fact in self.facts[:ROWS_SHOWN]:
            rows.append([fact.relation_name, fact.subject, fact.object, len(fact.templates)])
        summary = f"{counted(len(self), 'fact')}, {counted(len(self.relations), 'relation')}"
        return table_html(summary, ["relation", "subject", "object", "templates"], rows, n_rows=len(self))

    # --- choosing ---------------------------------------------------------------------------------

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations, in order of first appearance."""
        return tuple(dict.fromkeys(fact.relation for fact in self.facts))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order of first appearance; facts that do not say theirs have the language ``""``."""
        return tuple(dict.fromkeys(fact.language for fact in self.facts))

    @property
    def relation_labels(self) -> dict[str, str]:
        """The label of each relation, that of its first fact with one; empty where none has."""
        labels = dict.fromkeys(self.relations, "")
        for fact in self.facts:
            if not labels[fact.relation]:
                labels[fact.relation] = fact.relation_label
        return labels

    def relation_name(self, relation: str) -> str:
        """Return a relation as tables and figures show it: ``capital (P36)``, or ``P36`` without a label."""
        return relation_name(relation, self.relation_labels.get(relation, ""))

    def relation_of(self, name: str) -> str:
        """Return the identifier of a relation: ``P36`` for ``"P36"``, ``"capital"`` and ``"capital (P36)"``.

        Raises:
            ArgumentError: no relation of this set has that name (the message names the nearest), or several have.

        >>> FactSet.world().relation_of("capital")
        'P36'
        """
        check_kind(name, str, "names of relations: facts.of('P36', 'capital')", "relation")
        labels = self.relation_labels
        if name in labels:
            return name
        relations = []
        for relation, label in labels.items():
            if label and name in (label, relation_name(relation, label)):
                relations.append(relation)
        if len(relations) > 1:
            raise ArgumentError(f"{name!r} is the label of {', '.join(relations)}; expected one of these.")
        if not relations:
            names = [relation_name(relation, label) for relation, label in labels.items()]
            near = did_you_mean(name, [*labels, *filter(None, labels.values())])
            raise ArgumentError(f"No relation {name!r}; there are {', '.join(names) or 'none'}.{near}")
        return relations[0]

    def find(
        self,
        subject: str,
        relation: str | None = None,
        *,
        object: str | None = None,
        uid: str | None = None,
        language: str | None = None,
    ) -> Fact:
        """Return the one fact about ``subject``; the other arguments narrow the search.

        ``relation`` is an identifier, ``"P36"``, or its label, ``"capital"``.

        Raises:
            ArgumentError: no fact matches (the message names the nearest relation or subject), or several facts do (the
                message lists them).
        """
        check_kind(subject, str, "the name of a subject: facts.find('Ireland', 'P36')", "subject")
        facts = self if relation is None else self.of(relation)
        about = [fact for fact in facts if fact.subject == subject]
        if not about:
            scope = "" if relation is None else f" in relation {self.relation_name(self.relation_of(relation))}"
            near = did_you_mean(subject, {fact.subject for fact in facts})
            raise ArgumentError(f"No fact about {subject!r}{scope}.{near}")
        matches = []
        for fact in about:
            if object in (None, fact.object) and uid in (None, fact.uid) and language in (None, fact.language):
                matches.append(fact)
        if len(matches) != 1:
            candidates = ", ".join(fact.key for fact in (matches or about)[:8])
            raise ArgumentError(
                f"{len(matches)} facts match {subject!r}; expected one. "
                f"Narrow it with relation=, object=, uid= or language=: {candidates}."
            )
        return matches[0]

    def of(self, *relations: str) -> "FactSet":
        """Return the facts of the given relations, named by identifier or label, in the order of this set.

        Raises:
            ArgumentError: a relation is not in this set, or a label is that of several.

        >>> FactSet.world().of("capital", "P30").relations
        ('P36', 'P30')
        """
        chosen = {self.relation_of(relation) for relation in relations}
        return FactSet(fact for fact in self.facts if fact.relation in chosen)

    def in_languages(self, *languages: str) -> "FactSet":
        """Return the facts of the given languages, in the order of this set.

        Raises:
            ArgumentError: no fact is in a language.

        >>> FactSet.world(languages=["en", "de"]).in_languages("de").find("Irland", "P36").object
        'Dublin'
        """
        for language in languages:
            if language not in self.languages:
                near = did_you_mean(language, self.languages)
                there = ", ".join(map(repr, self.languages)) or "none"
                raise ArgumentError(f"No facts in the language {language!r}; there are {there}.{near}")
        return FactSet(fact for fact in self.facts if fact.language in languages)

    def translations(self, fact: Fact) -> dict[str, Fact]:
        """Return the versions of a fact by language, its own included: the facts with its relation and ``uid``.

        Raises:
            ArgumentError: the fact has no ``uid`` or language, or a language has two versions.

        >>> facts = FactSet.world(languages=["en", "de", "es"])
        >>> versions = facts.translations(facts.find("Austria", "P36", language="en"))
        >>> {language: (fact.subject, fact.object) for language, fact in versions.items()}
        {'en': ('Austria', 'Vienna'), 'de': ('Österreich', 'Wien'), 'es': ('Austria', 'Viena')}
        """
        check_kind(fact, Fact, "a Fact: facts.translations(facts[0])", "fact")
        check_identity(fact)
        return versions_by_identity(self.facts).get((fact.relation, fact.uid), {})

    def sample(self, n: int, seed: int) -> "FactSet":
        """Return ``n`` facts drawn without replacement, in the order of this set.

        Raises:
            ArgumentError: ``n`` is negative or larger than the number of facts.
        """
        if not isinstance(n, (int, np.integer)) or not 0 <= n <= len(self):
            raise ArgumentError(f"n is {n!r}; expected 0 to {len(self)}, the number of facts.")
        chosen = np.random.default_rng(seed).choice(len(self), size=n, replace=False)
        return FactSet(self.facts[index] for index in sorted(chosen.tolist()))

    def sample_per_relation(self, n: int, seed: int) -> "FactSet":
        """Return at most ``n`` facts of each relation, drawn without replacement, by relation in the order of this set.

        >>> facts = FactSet.world().sample_per_relation(2, seed=0)
        >>> len(facts), len(facts.relations)
        (22, 11)
        """
        chosen: list[Fact] = []
        for relation in self.relations:
            members = self.of(relation)
            chosen += members.sample(min(n, len(members)), seed)
        return FactSet(chosen)

    def paired_with_other_relations(self, seed: int) -> tuple[int, ...]:
        """Return for each fact the index of one fact of another relation, drawn uniformly at random.

        These pairs are the control for suppression and amplification: the effect of a fact's neurons on a fact of
        another relation (Dai et al. 2022, section 4.3).

        Raises:
            ArgumentError: the set has fewer than two relations.
        """
        if len(self.relations) < 2:
            relations = ", ".join(self.relations) or "none"
            raise ArgumentError(f"A fact of another relation needs at least two relations; got {relations}.")
        _, codes, sizes = np.unique(
            [fact.relation for fact in self.facts],
            return_inverse=True,
            return_counts=True,
        )
        by_relation = np.argsort(codes, kind="stable")  # the facts of each relation are contiguous in this order
        own_size = sizes[codes]
        own_start = np.cumsum(sizes)[codes] - own_size
        draw = np.random.default_rng(seed).integers(0, len(self) - own_size)
        position = draw + np.where(draw >= own_start, own_size, 0)  # skip the fact's own relation
        return tuple(by_relation[position].tolist())

    # --- writing ----------------------------------------------------------------------------------

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with one row for each fact; ``FactSet.from_frame`` reads it."""
        import pandas as pd

        columns = ["subject", "relation", "relation_label", "object", "templates", "uid", "language"]
        rows: list[list[Any]] = []
        for fact in self.facts:
            rows.append([getattr(fact, column) for column in columns])
        return pd.DataFrame(rows, columns=columns)

    def to_jsonl(self, path: StrPath) -> None:
        """Write one JSON object for each fact, one a line; ``FactSet.from_jsonl`` reads the file.

        The file is written completely or not at all.

        Raises:
            DataError: the file cannot be written.
        """
        lines = (json.dumps(_fields(fact), ensure_ascii=False) + "\n" for fact in self.facts)
        try:
            write_whole(Path(path), "".join(lines))
        except (OSError, ValueError) as error:  # ValueError: an invalid path
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path} cannot be written: {reason}.") from error

    # --- reading ----------------------------------------------------------------------------------

    @classmethod
    def world(
        cls,
        split: Split = defaults.SPLIT,
        *,
        languages: Iterable[str] | None = None,
    ) -> "FactSet":
        """Return the facts that ship with the package, with their templates.

        Args:
            split: ``"trained"`` selects the templates that the embedded models were trained on, ``"held_out"`` the
                other templates, ``"all"`` both.
            languages: some of ``"en"``, ``"de"``, ``"es"`` and ``"fr"``: the part of the facts that has translations,
                in each of these languages, which ``world-bert-multilingual`` was trained on. None is the whole world,
                in English.

        >>> FactSet.world().find("Ireland", relation="P36").object
        'Dublin'
        >>> FactSet.world(languages=["de"]).find("Griechenland", relation="P36").object
        'Athen'
        """
        if languages is None:
            return cls.from_records(readers.read_world(split), readers.WORLD)
        return cls.from_records(readers.read_translated_world(split, languages), readers.WORLD)

    @classmethod
    def from_pararel(
        cls,
        path: StrPath,
        relations: Iterable[str] | None = None,
        min_templates: int = 4,
        templates: Templates | StrPath | None = None,
    ) -> "FactSet":
        """Read a ParaRel folder: templates in ``patterns/P*.jsonl``, facts in ``facts/P*.jsonl``.

        Args:
            path: the folder with ``patterns`` and ``facts``.
            relations: the relations to read; None reads every relation with facts and enough templates.
            min_templates: the least number of templates of a relation (Dai et al. 2022: 4).
            templates: templates in place of ParaRel's: by relation, or where to read them (see ``from_lama``).
                ``"kn_lens"`` takes the package's own, eight for each of the 34 relations, all of which end with the
                object; of ParaRel's, made for masked models, many do not, and a causal model takes none of these.

        Raises:
            DataError: a file or a requested relation is missing or malformed, or has too few templates.
        """
        records = readers.read_pararel(_source(path), relations, min_templates, _resolved(templates))
        return cls.from_records(records, path)

    @classmethod
    def from_official(cls, path: StrPath) -> "FactSet":
        """Read the fact file of the released code: JSON lists of ``[prompt with [MASK], answer, "P36(capital)"]``.

        One list is one fact; an object may group the facts by relation. The file does not mark the subject in its
        prompts, so subjects are empty; ``uid`` is the zero-based position of the fact in the file.
        """
        return cls.from_records(readers.read_official(_source(path)), path)

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
            templates: templates by relation, or the path to read them from: a folder of ParaRel patterns, LAMA's
                ``relations.jsonl``, or ``"kn_lens"`` for the package's own (see ``from_pararel``). None uses the
                ``masked_sentences`` of each line, and the ``evidences`` of T-REx.
            relations: the files of the folder to read; None reads all.
        """
        records = readers.read_lama(_source(path), _resolved(templates), relations)
        return cls.from_records(records, path)

    @classmethod
    def from_mlama(
        cls,
        path: StrPath,
        languages: Iterable[str] | None = None,
        relations: Iterable[str] | None = None,
    ) -> "FactSet":
        """Read an mLAMA folder (Kassner et al. 2021): ``LANGUAGE/P*.jsonl`` and ``LANGUAGE/templates.jsonl``.

        The ``uid`` of a fact is its ``lineid``, by which ``translations`` finds it in other languages. mLAMA has one
        template a relation, too few to refine neurons over; ``from_mpararel`` reads several.

        Args:
            path: the folder with a folder for each language.
            languages: the languages to read, named as their folders are; None reads all that have templates.
            relations: the relations to read; None reads all with facts and a template.

        Raises:
            DataError: a file, a language or a relation is missing or malformed.
        """
        return cls.from_records(readers.read_mlama(_source(path), languages, relations), path)

    @classmethod
    def from_mpararel(
        cls,
        path: StrPath,
        languages: Iterable[str] | None = None,
        relations: Iterable[str] | None = None,
        min_templates: int = 4,
    ) -> "FactSet":
        """Read an mParaRel folder (Fierro and Søgaard 2022), of facts and of templates in several languages.

        The files are ``patterns/LANGUAGE/P*.jsonl`` and ``tuples/LANGUAGE/P*.jsonl``. The ``uid`` of a fact is its
        ``lineid``, by which ``translations`` finds it in other languages. Templates that two machine translations share
        are taken once. They have no full stop; a masked model may answer with one.

        Args:
            path: the folder with ``patterns`` and ``tuples``.
            languages: the languages to read, named as their folders are; None reads all that have both.
            relations: the relations to read; None reads all with facts and enough templates.
            min_templates: the least number of templates of a relation in a language.

        Raises:
            DataError: a file, a language or a relation is missing or malformed, or has too few templates.
        """
        return cls.from_records(readers.read_mpararel(_source(path), languages, relations, min_templates), path)

    @classmethod
    def from_counterfact(cls, path: StrPath, *, paraphrases: bool = True) -> "FactSet":
        """Read CounterFact (Meng et al. 2022) with its true answers; ``uid`` is the ``case_id``.

        Args:
            path: the JSON file.
            paraphrases: whether to use ``paraphrase_prompts`` as further templates.
        """
        records = readers.read_counterfact(_source(path), paraphrases)
        return cls.from_records(records, path)

    @classmethod
    def from_jsonl(cls, path: StrPath, templates: Templates | StrPath | None = None) -> "FactSet":
        """Read JSON lines with ``subject``, ``relation``, ``object``, and optionally more.

        ``relation_label`` is the relation in words, ``uid`` an identifier of the fact, ``language`` its language.
        Without a label, ParaRel's 34 relations, such as ``P36``, have that of the package.

        Templates are a list ``templates``, or one ``template`` on each of several lines about the same fact.

        Args:
            path: the file.
            templates: templates in place of the file's: by relation, or where to read them (see ``from_lama``).
        """
        records = readers.read_jsonl(_source(path), _resolved(templates))
        return cls.from_records(records, path)

    @classmethod
    def from_csv(cls, path: StrPath, templates: Templates | StrPath | None = None) -> "FactSet":
        """Read a CSV table with the columns of ``from_jsonl``; a ``templates`` cell holds a JSON list."""
        records = readers.read_csv(_source(path), _resolved(templates))
        return cls.from_records(records, path)

    @classmethod
    def from_frame(
        cls,
        frame: "pd.DataFrame",
        templates: Templates | StrPath | None = None,
    ) -> "FactSet":
        """Read a pandas table with the columns of ``from_jsonl``.

        A ``uid`` of 3.0 is read as 3: pandas stores integer columns with missing cells as floats.
        """
        check_table(frame, "a table: kn_lens.FactSet.from_csv(path) reads a file", "frame")
        names = [str(name) for name in frame]
        readers.check_columns(names, "the table")
        is_first = [names.index(name) == column for column, name in enumerate(names)]
        frame = frame.loc[:, is_first]
        rows = zip(frame.index, frame.to_dict("records"), strict=True)
        located_rows = ((f"row {index}", _cells(row)) for index, row in rows)
        records = readers.read_rows(located_rows, _resolved(templates))
        return cls.from_records(records, "the table")

    @classmethod
    def from_records(cls, records: Iterable[Record], source: object) -> "FactSet":
        """Make facts of the records that a reader yields: what every reader of the package ends with.

        Args:
            records: one for each fact, with the place where it was read.
            source: what was read, for messages.

        Raises:
            DataError: no records, two of one fact, or one that is no fact, with its place.

        >>> records = [Record("line 1", "Ireland", "P36", "Dublin", ("The capital of [X] is [Y].",))]
        >>> FactSet.from_records(records, "my list")[0].object
        'Dublin'
        """
        facts: list[Fact] = []
        locations: list[str] = []
        for record in records:
            try:
                fact = Fact(
                    record.subject,
                    record.relation,
                    record.object,
                    record.templates,
                    record.uid,
                    record.relation_label,
                    record.language,
                )
            except ArgumentError as error:
                raise DataError(f"{record.location}: {error}") from None
            facts.append(fact)
            locations.append(record.location)
        if not facts:
            raise DataError(f"{source}: no facts there.")
        _check_unique(facts, locations)
        return cls(facts)


def check_identity(fact: Fact) -> None:
    """Raise unless a fact has what joins its versions in several languages.

    Raises:
        ArgumentError: it has no language or no ``uid``.
    """
    if not fact.language or not fact.uid:
        raise ArgumentError(
            f"{fact.key} has language={fact.language!r} and uid={fact.uid!r}; expected a fact with both, as "
            "kn_lens.FactSet.world(languages=['en', 'de']) and from_mpararel give them."
        )


def versions_by_identity(facts: Iterable[Fact]) -> dict[tuple[str, str], dict[str, Fact]]:
    """Return the versions of facts by language, for each relation and ``uid``; facts without both are left out.

    Raises:
        ArgumentError: two versions of a fact in one language.
    """
    by_identity: dict[tuple[str, str], dict[str, Fact]] = {}
    for fact in facts:
        if not fact.language or not fact.uid:
            continue
        versions = by_identity.setdefault((fact.relation, fact.uid), {})
        if fact.language in versions:
            raise ArgumentError(
                f"{versions[fact.language].key} and {fact.key} are versions of one fact in one language; expected a "
                "uid that tells the facts of a relation apart."
            )
        versions[fact.language] = fact
    return by_identity


def _fields(fact: Fact) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "subject": fact.subject,
        "relation": fact.relation,
        "object": fact.object,
        "templates": list(fact.templates),
    }
    if fact.uid:
        fields["uid"] = fact.uid
    if fact.language:
        fields["language"] = fact.language
    if fact.relation_label or fact.relation in WIKIDATA_LABELS:  # else the reader would take the label of the package
        fields["relation_label"] = fact.relation_label
    return fields


def _cells(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the row of a table without its missing cells, and with arrays, as Parquet files hold them, as lists."""
    import pandas as pd

    cells: dict[str, Any] = {}
    for key, value in row.items():
        if pd.api.types.is_scalar(value) and pd.isna(value):
            continue
        cells[str(key)] = value.tolist() if isinstance(value, np.ndarray) else value
    return cells


def _check_unique(facts: Iterable[Fact], locations: Iterable[str]) -> None:
    """Raise a ``DataError`` with both locations of a fact that occurs twice."""
    seen: dict[Fact, str] = {}
    for fact, location in zip(facts, locations, strict=True):
        if fact in seen:
            raise DataError(
                f"The fact {fact.key} occurs twice: {seen[fact]} and {location}. Drop one, or give them uids."
            )
        seen[fact] = location


def _checked(templates: Any) -> Templates | None:
    if templates is None:
        return None
    if not isinstance(templates, Mapping):
        raise ArgumentError(f"templates must map relations to lists of templates; got {type(templates).__name__}.")
    for relation, patterns in templates.items():
        if isinstance(patterns, str):
            raise ArgumentError(f"templates of {relation!r} must be a list of templates; got the text {patterns!r}.")
    return templates


def _resolved(templates: Templates | StrPath | None) -> Templates | None:
    """Return templates by relation, read from their source if it is named."""
    if isinstance(templates, (str, os.PathLike)):
        return readers.read_patterns(Path(templates))
    return _checked(templates)


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentError(f"{text!r} is not valid Unicode text: it holds half of a surrogate pair.") from None


def _source(path: StrPath) -> Path:
    """Return the path of a file or folder of facts.

    Raises:
        ArgumentError: another kind of argument, such as a table.
    """
    check_path(path)
    return Path(path)


def _require_slots(template: object, *, has_subject: bool) -> None:
    if not isinstance(template, str):
        raise ArgumentError(f"A template must be text; got {template!r}, of type {type(template).__name__}.")
    _require_unicode(template)
    slots = {"object": (OBJECT_SLOT, 1), "subject": (SUBJECT_SLOT, int(has_subject))}
    for role, (slot, expected) in slots.items():
        count = template.count(slot)
        if count != expected:
            raise ArgumentError(
                f"The template {template!r} holds {slot}, the {role}'s place, {count} times; "
                f"expected {'exactly once' if expected else 'none, as the fact has no subject'}."
            )
