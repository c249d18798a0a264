"""Data sets for editing: facts with their new answers, questions that should change, and facts that should not.

    CounterFact     JSON, a list of cases (Meng et al. 2022): ``requested_rewrite`` has the prompt, the subject and the
                    true and new answer; ``paraphrase_prompts``; ``neighborhood_prompts``, about other subjects with
                    the true answer
    KnowEdit        JSON, a list of records (Zhang et al. 2024): ``prompt``, ``subject``, ``target_new``,
                    ``ground_truth``, ``rephrase_prompt``; ``portability`` and ``locality``, groups of prompts with
                    their answers

A prompt is a template up to its ``[Y]``. Prompts that do not name the subject become facts without one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from kn_lens._core.checks import check_path
from kn_lens._core.wording import counted
from kn_lens.edits.arguments import checked_facts
from kn_lens.edits.questions import HELD_OUT, Question, Questions
from kn_lens.errors import ArgumentError, DataError, did_you_mean
from kn_lens.facts import OBJECT_SLOT, SUBJECT_SLOT, WIKIDATA_LABELS, Fact, FactSet, json_document, text_of

KNOWEDIT = "KnowEdit"
"""The relation of all facts of KnowEdit, whose records name none."""
ALIASES = "Subject_Aliasing"
"""The group of ``portability`` that asks for the new answer itself, by other names of the subject."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EditingData:
    """Updates with what to measure them on, as ``compare_edits`` and ``update_effects`` take them.

    Attributes:
        updates: the new answer of each fact; its templates are those that an editor sees.
        questions: groups of questions whose answer should change too, by name.
        others_of: for each fact the facts that its update should leave alone.

    Example:
        >>> import json, tempfile, pathlib
        >>> rewrite = {"prompt": "The capital of {} is", "subject": "Ireland", "relation_id": "P36",
        ...            "target_true": {"str": "Dublin"}, "target_new": {"str": "Rome"}}
        >>> case = {"case_id": 0, "requested_rewrite": rewrite, "paraphrase_prompts": ["Ireland has the capital"],
        ...         "neighborhood_prompts": ["The capital of Leinster is"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "counterfact.json")
        ...     _ = path.write_text(json.dumps([case]))
        ...     data = EditingData.from_counterfact(path)
        >>> data
        EditingData(1 update, 1 question: held-out wording, 1 other fact)
        >>> list(data.updates.values()), data.others[0].templates
        (['Rome'], ('The capital of Leinster is [Y].',))
    """

    updates: Mapping[Fact, str]
    questions: Mapping[str, Questions]
    others_of: Mapping[Fact, tuple[Fact, ...]]

    @property
    def others(self) -> FactSet:
        """The facts that should stay the same, each once: ``others=kn_lens.make_prompts(model, data.others)``."""
        others: dict[Fact, None] = {}
        for of_fact in self.others_of.values():
            others.update(dict.fromkeys(of_fact))
        return FactSet(others)

    def select(self, facts: Iterable[Fact]) -> "EditingData":
        """Return the updates of some facts, with their questions and other facts.

        Raises:
            ArgumentError: another kind of argument, or a fact without an update.
        """
        chosen: dict[Fact, str] = {}
        for fact in checked_facts(facts):
            if fact not in self.updates:
                near = did_you_mean(fact.key, (other.key for other in self.updates))
                raise ArgumentError(f"There is no update of {fact.key}; expected facts of data.updates.{near}")
            chosen[fact] = self.updates[fact]
        updates = {fact: chosen[fact] for fact in self.updates if fact in chosen}
        questions = {}
        for name, group in self.questions.items():
            questions[name] = {fact: question for fact, question in group.items() if fact in chosen}
        others_of = {fact: others for fact, others in self.others_of.items() if fact in chosen}
        return EditingData(updates=updates, questions=questions, others_of=others_of)

    def sample(self, n: int, seed: int) -> "EditingData":
        """Return ``n`` updates, drawn without replacement, in their order.

        Raises:
            ArgumentError: ``n`` is negative or larger than the number of updates.
        """
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 0 <= n <= len(self.updates):
            raise ArgumentError(f"n is {n!r}; expected 0 to {len(self.updates)}, the number of updates.")
        return self.select(FactSet(self.updates).sample(n, seed))

    @classmethod
    def from_counterfact(cls, path: str | PathLike[str]) -> "EditingData":
        """Read CounterFact: new answers, paraphrases as held-out wordings, and neighbours as other facts.

        ``uid`` of a fact is its ``case_id``, as for ``FactSet.from_counterfact``. The generation and attribute prompts
        have no answers and are not read.

        Raises:
            ArgumentError: another kind of argument than a path.
            DataError: the file cannot be read, or a case lacks a field, or its prompt does not hold ``{}`` once.
        """
        path = _checked(path)
        reading = _Reading()
        for number, case in enumerate(_entries(path, "cases")):
            location = f"{path}: case {number}"
            case = _object(case, location)
            rewrite = _object(case.get("requested_rewrite"), f"{location}, requested_rewrite")
            prompt = text_of(rewrite, "prompt", location)
            if prompt.count("{}") != 1:
                raise DataError(
                    f"{location}: the prompt {prompt!r} must hold '{{}}', the subject's place, exactly once."
                )
            relation = text_of(rewrite, "relation_id", location)
            answers = {}
            for name in ("target_true", "target_new"):
                answers[name] = text_of(_object(rewrite.get(name), f"{location}, {name}"), "str", location)
            fact = _fact(
                location,
                text_of(rewrite, "subject", location),
                relation,
                answers["target_true"],
                [_template(prompt.replace("{}", SUBJECT_SLOT))],
                _identifier(case, "case_id", number, location),
            )
            reading.add(location, fact, answers["target_new"])
            reading.ask(location, fact, _texts(case, "paraphrase_prompts", location))
            neighbours = []
            for text in _texts(case, "neighborhood_prompts", location):
                neighbours.append((relation, text, fact.object))
            reading.leave_alone(location, fact, neighbours)
        return cls(updates=reading.updates, questions=reading.groups(), others_of=reading.others_of)

    @classmethod
    def from_knowedit(cls, path: str | PathLike[str]) -> "EditingData":
        """Read KnowEdit: new answers, rephrased prompts, aliases of subjects, and locality.

        ``rephrase_prompt`` gives the group ``held-out wording``, and the prompts of ``portability`` with other names of
        the subject (``Subject_Aliasing``) the group of this name. The other groups of ``portability`` have other
        answers, of which the file does not tell what they are before the edit, and are not read. The prompts of
        ``locality`` are other facts, and their group is their relation. Of answers with several spellings the first is
        taken.

        Raises:
            ArgumentError: another kind of argument than a path.
            DataError: the file cannot be read; a record lacks a field, such as ``ground_truth`` where a fact is new;
                or a prompt does not name the subject.
        """
        path = _checked(path)
        reading = _Reading()
        for number, record in enumerate(_entries(path, "records")):
            location = f"{path}: record {number}"
            record = _object(record, location)
            subject = text_of(record, "subject", location)
            prompt = text_of(record, "prompt", location)
            template = _with_slot(prompt, subject)
            if SUBJECT_SLOT not in template:
                raise DataError(f"{location}: the prompt {prompt!r} does not name the subject {subject!r}. Correct it.")
            fact = _fact(
                location,
                subject,
                KNOWEDIT,
                _answer(record.get("ground_truth"), f"{location}, ground_truth"),
                [template],
                _identifier(record, "case_id", number, location),
            )
            reading.add(location, fact, _answer(record.get("target_new"), f"{location}, target_new"))
            if record.get("rephrase_prompt"):
                reading.ask(location, fact, _texts(record, "rephrase_prompt", location))
            portability = _object(record.get("portability") or {}, f"{location}, portability")
            aliases = []
            for text, _ in _prompts(portability.get(ALIASES), f"{location}, {ALIASES}"):
                aliases.append(text)
            reading.ask(location, fact, aliases, ALIASES)
            locality = []
            for name, group in _object(record.get("locality") or {}, f"{location}, locality").items():
                for text, answer in _prompts(group, f"{location}, {name}"):
                    locality.append((name, text, answer))
            reading.leave_alone(location, fact, locality)
        return cls(updates=reading.updates, questions=reading.groups(), others_of=reading.others_of)

    def __repr__(self) -> str:
        questions = counted(sum(map(len, self.questions.values())), "question")
        names = ", ".join(self.questions) or "none"
        others = counted(len(self.others), "other fact")
        return f"EditingData({counted(len(self.updates), 'update')}, {questions}: {names}, {others})"


class _Reading:
    """What has been read of a file."""

    def __init__(self) -> None:
        self.updates: dict[Fact, str] = {}
        self.others_of: dict[Fact, tuple[Fact, ...]] = {}
        self._groups: dict[str, dict[Fact, Question]] = {HELD_OUT: {}, ALIASES: {}}
        self._others: dict[tuple[str, str, str], Fact] = {}

    def add(self, location: str, fact: Fact, new_object: str) -> None:
        """Add an update.

        Raises:
            DataError: an earlier one is of this fact, or the answer does not change.
        """
        if fact in self.updates:
            raise DataError(f"{location}: {fact.key} was in an earlier entry; expected one for each fact.")
        if new_object == fact.object:
            raise DataError(f"{location}: the new answer to {fact.key} is the old one; expected another.")
        self.updates[fact] = new_object

    def ask(self, location: str, fact: Fact, prompts: Sequence[str], group: str = HELD_OUT) -> None:
        """Add the question of a fact in other prompts, with its answers; none where there are no prompts."""
        named = [_with_slot(text, fact.subject) for text in prompts]
        subject = fact.subject
        if not all(SUBJECT_SLOT in template for template in named):
            named, subject = [_template(text) for text in prompts], ""
        if named:
            query = _fact(location, subject, fact.relation, fact.object, named, fact.uid)
            self._groups[group][fact] = Question(query, self.updates[fact])

    def leave_alone(self, location: str, fact: Fact, prompts: Iterable[tuple[str, str, str]]) -> None:
        """Add the other facts of a fact: relation, prompt and answer of each. Equal ones are one fact."""
        others: dict[Fact, None] = {}
        for relation, text, answer in prompts:
            key = (relation, text, answer)
            if key not in self._others:
                uid = f"other {len(self._others)}"  # unlike those of updates
                self._others[key] = _fact(location, "", relation, answer, [_template(text)], uid)
            others[self._others[key]] = None
        self.others_of[fact] = tuple(others)

    def groups(self) -> dict[str, Questions]:
        """Return the groups that have questions."""
        return {name: group for name, group in self._groups.items() if group}


# --- fields -----------------------------------------------------------------------------------------------


def _checked(path: Any) -> Path:
    check_path(path)
    return Path(path)


def _entries(path: Path, what: str) -> Sequence[Any]:
    entries = json_document(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a list of at least one of {what}.")
    return entries


def _object(value: Any, location: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{location}: got {type(value).__name__}; expected a JSON object.")
    return value


def _texts(entry: Mapping[str, Any], name: str, location: str) -> list[str]:
    """Return a text, or a list of texts, of an entry; none where the field is missing."""
    value = entry.get(name, [])
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{location}: {name!r} holds {_kind(text)}; expected texts.")
    return [text.strip() for text in texts]


def _prompts(group: Any, location: str) -> list[tuple[str, str]]:
    """Return the prompts of a group with their answers."""
    entries = [] if group is None else group
    if not isinstance(entries, list):
        entries = [entries]
    prompts = []
    for entry in entries:
        entry = _object(entry, location)
        answer = _answer(entry.get("ground_truth"), location)
        for text in _texts(entry, "prompt", location):
            prompts.append((text, answer))
    return prompts


def _answer(value: Any, location: str) -> str:
    """Return the first spelling of an answer: a text, a list of texts, or a list of such lists."""
    while isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{location}: got {_kind(value)}; expected the text of an answer.")
    return value.strip()


def _kind(value: Any) -> str:
    return "an empty text" if isinstance(value, str) else f"a value of type {type(value).__name__}"


def _identifier(entry: Mapping[str, Any], name: str, number: int, location: str) -> str:
    value = entry.get(name, number)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DataError(f"{location}: {name!r} is {value!r}; expected text or a whole number.")
    return str(value).strip()


def _with_slot(prompt: str, subject: str) -> str:
    """Return the template of a prompt, with a slot at the last mention of the subject, where there is one.

    A mention inside a longer word counts where there is no other: "Ali" is not named by the end of "Mali".
    """
    if not subject:
        return _template(prompt)
    name = re.escape(subject)
    mentions = [*re.finditer(rf"(?<!\w){name}(?!\w)", prompt)] or [*re.finditer(name, prompt)]
    if not mentions:
        return _template(prompt)
    return _template(prompt[: mentions[-1].start()] + SUBJECT_SLOT + prompt[mentions[-1].end() :])


def _template(prompt: str) -> str:
    """Return the template of a prompt; without the full stop masked models would answer with one."""
    return f"{prompt.rstrip()} {OBJECT_SLOT}."


def _fact(location: str, subject: str, relation: str, answer: str, templates: Sequence[str], uid: str) -> Fact:
    """Return a fact.

    Raises:
        DataError: the fields are none of a fact, with the place of their entry.
    """
    label = WIKIDATA_LABELS.get(relation, "")
    try:
        return Fact(subject, relation, answer, tuple(dict.fromkeys(templates)), uid, label)
    except ArgumentError as error:
        raise DataError(f"{location}: {error}") from None
