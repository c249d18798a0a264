"""Questions that test an update, and the other facts that it may disturb.

An edited model may give the new answer to the wording of the update alone. So an update is also tested in other
wordings, by its inverse relation, and for synonyms of the new answer (Niu et al. 2024). Facts that should stay the same
are grouped by what they share with the updated fact.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens._core.checks import check_kind
from kn_lens.edits.arguments import check_new_objects, checked_facts
from kn_lens.errors import ArgumentError, NoPromptError, did_you_mean
from kn_lens.facts import Fact, FactSet, check_identity, versions_by_identity
from kn_lens.hosts import Host
from kn_lens.neurons import prompts_by_fact
from kn_lens.prompts import PromptBatch, make_prompts

OWN, HELD_OUT = "own wording", "held-out wording"
SAME_RELATION, OTHER_RELATIONS = "same relation", "other relations"
SAME_SUBJECT, SAME_ANSWER, NEW_ANSWER = "same subject", "same answer", "new answer"
OTHER_FACTS = (SAME_RELATION, OTHER_RELATIONS, SAME_SUBJECT, SAME_ANSWER, NEW_ANSWER)
"""Groups of the other facts on which an update is measured. A fact may be in several."""


class Question(NamedTuple):
    """A question whose answer an update should change.

    Attributes:
        query: a fact with the templates of the question and its current answer.
        answer: the answer that it should have after the update.
    """

    query: Fact
    answer: str

    @property
    def answered(self) -> Fact:
        """The fact of the question with its new answer."""
        return replace(self.query, object=self.answer)


Questions = Mapping[Fact, Question]
"""For each updated fact, one question whose answer its update should change."""


def reworded(
    facts: Iterable[Fact],
    new_objects: Mapping[Fact, str],
) -> dict[Fact, Question]:
    """Return questions about the updated facts in the templates of equal facts: held-out wordings.

    Args:
        facts: facts equal to the updated ones, with other templates.
        new_objects: the updates.

    Raises:
        ArgumentError: an updated fact is not among the facts, or a wrong kind of argument.

    >>> import kn_lens as kn
    >>> fact = kn.FactSet.world("trained").find("Ireland", relation="P36")
    >>> held_out = kn.FactSet.world("held_out")
    >>> len(fact.templates), len(reworded(held_out, {fact: "Tokyo"})[fact].query.templates)
    (24, 6)
    """
    check_new_objects(new_objects)
    wordings = {fact: fact for fact in checked_facts(facts)}
    questions = {}
    for fact, answer in new_objects.items():
        if fact not in wordings:
            near = did_you_mean(fact.key, (other.key for other in wordings))
            raise ArgumentError(f"There is no other wording of {fact.key}; expected one of each updated fact.{near}")
        questions[fact] = Question(wordings[fact], answer)
    return questions


def inverse_questions(
    facts: Iterable[Fact],
    new_objects: Mapping[Fact, str],
    inverse: Mapping[str, str],
) -> dict[Fact, Question]:
    """Return the updates as questions in the inverse relation.

    Once Ireland's capital is Tokyo, Tokyo is the capital of Ireland.

    Args:
        facts: facts that include those of the inverse relations.
        new_objects: the updates.
        inverse: the inverse of each relation that has one: ``{"P36": "P1376"}``.

    Returns:
        A question for each update whose relation has an inverse with exactly one fact about the new object, in
        the language of the update. The other updates have no question.

    Raises:
        ArgumentError: a wrong kind of argument.

    >>> import kn_lens as kn
    >>> facts = kn.FactSet.world()
    >>> (question,) = inverse_questions(facts, {facts.find("Ireland", "P36"): "Tokyo"}, {"P36": "P1376"}).values()
    >>> question.query.key, question.answer
    ('P1376/Tokyo/Japan', 'Ireland')
    """
    check_new_objects(new_objects)
    if not isinstance(inverse, Mapping):
        raise ArgumentError(f"inverse={inverse!r}; expected a mapping between relations, such as {{'P36': 'P1376'}}.")
    facts_about: dict[tuple[str, str, str], list[Fact]] = {}
    for fact in checked_facts(facts):
        facts_about.setdefault((fact.relation, fact.subject, fact.language), []).append(fact)
    questions = {}
    for fact, new_object in new_objects.items():
        inverse_relation = inverse.get(fact.relation, "")
        inverse_facts = facts_about.get((inverse_relation, new_object, fact.language), [])
        if len(inverse_facts) == 1:
            questions[fact] = Question(inverse_facts[0], fact.subject)
    return questions


def translated_questions(
    facts: Iterable[Fact],
    new_objects: Mapping[Fact, str],
) -> dict[str, dict[Fact, Question]]:
    """Return the updates as questions in other languages: does an edit made in one language hold in the others?

    A new object is translated by the facts: it is the object that the facts of the relation with this object have in
    the other language.

    Args:
        facts: facts in several languages, each with its ``language`` and a ``uid`` that its versions share; those of
            the updated facts, and of a fact with each new object, among them.
        new_objects: the updates, of such facts.

    Returns:
        By language, a question for each updated fact of another language that has a version there: the groups that
        ``update_effects`` and ``compare_edits`` take as ``questions``.

    Raises:
        ArgumentError: an updated fact without language or ``uid``, two versions in one language, a new object without a
            translation or with several, or a wrong kind of argument.

    >>> import kn_lens as kn
    >>> facts = kn.FactSet.world(languages=["en", "de", "fr"])
    >>> questions = translated_questions(facts, {facts.find("Ireland", "P36", language="en"): "Vienna"})
    >>> {language: [question.answer for question in group.values()] for language, group in questions.items()}
    {'de': ['Wien'], 'fr': ['Vienne']}
    """
    check_new_objects(new_objects)
    versions = versions_by_identity(checked_facts(facts))
    questions: dict[str, dict[Fact, Question]] = {}
    for fact, new_object in new_objects.items():
        check_identity(fact)
        for language, version in versions.get((fact.relation, fact.uid), {}).items():
            if language != fact.language:
                answer = _translated(new_object, fact, language, versions)
                questions.setdefault(language, {})[fact] = Question(version, answer)
    return questions


def _translated(
    new_object: str,
    fact: Fact,
    language: str,
    versions: Mapping[tuple[str, str], Mapping[str, Fact]],
) -> str:
    """Return the new object of a fact in another language: see ``translated_questions``."""
    translations: set[str] = set()
    for (relation, _), of_fact in versions.items():
        if relation != fact.relation or language not in of_fact or fact.language not in of_fact:
            continue
        if of_fact[fact.language].object == new_object:
            translations.add(of_fact[language].object)
    if len(translations) != 1:
        found = ", ".join(map(repr, sorted(translations))) or "none"
        raise ArgumentError(
            f"The new object {new_object!r} of {fact.key} has the translations {found} into {language!r} among the "
            "objects of its relation; expected one. Choose the object of another fact, or write the questions: "
            "{'de': {fact: kn_lens.Question(version, 'Wien')}}."
        )
    return translations.pop()


def answerable(host: Host, questions: Questions, tokenizer: Any = None) -> dict[Fact, Question]:
    """Return the questions with a template that takes both answers in a model, in these templates alone.

    Args:
        host: the model.
        questions: questions about updates.
        tokenizer: the tokenizer to use instead of the model's own.
    """
    if not questions:
        return {}
    queries: dict[Fact, None] = {}
    for question in questions.values():
        queries[question.query] = None
        queries[question.answered] = None
    try:
        prompts = make_prompts(host, FactSet(queries), tokenizer=tokenizer, unknown_answers="leave_out")
    except NoPromptError:  # no template takes any of the answers
        return {}
    templates: dict[Fact, set[str]] = {}
    for prompt, template in enumerate(prompts.template):
        templates.setdefault(prompts.fact(prompt), set()).add(template)
    kept: dict[Fact, Question] = {}
    for fact, question in questions.items():
        both = templates.get(question.query, set()) & templates.get(question.answered, set())
        fitting = tuple(template for template in question.query.templates if template in both)
        if fitting:
            kept[fact] = Question(replace(question.query, templates=fitting), question.answer)
    return kept


def is_version(fact: Fact, other: Fact) -> bool:
    """Whether two facts are one in two languages."""
    has_identity = bool(fact.uid and fact.language and other.language)
    return has_identity and (fact.relation, fact.uid) == (other.relation, other.uid)


def checked_groups(own: Questions, groups: Any) -> dict[str, Questions]:
    """Return the groups of questions that are not empty, the facts' own wording first.

    Raises:
        ArgumentError: another kind of argument; a group with a reserved name; a question about a fact that is not
            updated, or whose answer does not change.
    """
    expected = "groups by name: {'held out': kn_lens.reworded(facts, new_objects)}"
    check_kind(groups, Mapping, expected, "questions")
    checked = {OWN: own}
    for name, group in groups.items():
        _check_group(own, name, group)
        if group:
            checked[name] = group
    return checked


def _check_group(own: Questions, name: Any, group: Any) -> None:
    if name == OWN or name in OTHER_FACTS:
        raise ArgumentError(f"The questions {name!r} have a name that the table needs; expected another.")
    is_mapping = isinstance(group, Mapping)
    if not is_mapping or not all(isinstance(question, Question) for question in group.values()):
        raise ArgumentError(
            "questions maps a key to another kind than questions; "
            "expected groups by name, such as {'synonym': {fact: kn_lens.Question(fact, 'Edo')}}."
        )
    for fact, question in group.items():
        if fact not in own:
            near = did_you_mean(fact.key, (other.key for other in own))
            raise ArgumentError(f"The questions {name!r} have one for {fact.key}, which is not updated.{near}")
        if question.query.object == question.answer:
            raise ArgumentError(
                f"The question {question.query.key} of {name!r} is to get the answer that it has; expected another."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionPrompts:
    """The prompts of a group of questions, once with the current answers and once with the new ones.

    An answer of several tokens has several masks or rows, so that the two batches differ in more than their targets.

    Attributes:
        questions: the group.
        both: prompts with the current and with the new answers.
        current: prompts with the current answers.
        new: prompts with the new answers.
        prompts_in_both: the prompts in ``both`` of each question, with its current and with its new answer.
        current_prompts: the prompts in ``current`` of each question.
        new_prompts: the prompts in ``new`` of each question with its new answer.
    """

    questions: Questions
    both: PromptBatch
    current: PromptBatch
    new: PromptBatch
    prompts_in_both: Mapping[Fact, Int[Tensor, " prompt"]]
    current_prompts: Mapping[Fact, Int[Tensor, " prompt"]]
    new_prompts: Mapping[Fact, Int[Tensor, " prompt"]]

    @classmethod
    def of(
        cls,
        host: Host,
        name: str,
        questions: Questions,
        tokenizer: Any,
    ) -> "QuestionPrompts":
        """Build the prompts of a group.

        Raises:
            ArgumentError: a question without a prompt.
            PromptError: see ``make_prompts``.
        """
        current_facts: dict[Fact, None] = {}  # in order, each once
        new_facts: dict[Fact, None] = {}
        for question in questions.values():
            current_facts[question.query] = None
            new_facts[question.answered] = None
        both = make_prompts(host, current_facts | new_facts, tokenizer=tokenizer)
        prompts_in_both = prompts_by_fact(both)
        for question in questions.values():
            if question.query not in prompts_in_both or question.answered not in prompts_in_both:
                raise ArgumentError(
                    f"{host.name} cannot be queried with the question {question.query.key} of {name!r} "
                    "in any of its templates; expected one that ends with [Y], as causal models need. "
                    "Leave the fact out of this group."
                )
        both.check_for(host)
        current = both.select(torch.cat([prompts_in_both[fact] for fact in current_facts]))
        new = both.select(torch.cat([prompts_in_both[fact] for fact in new_facts]))
        return cls(
            questions=questions,
            both=both,
            current=current,
            new=new,
            prompts_in_both=prompts_in_both,
            current_prompts=prompts_by_fact(current),
            new_prompts=prompts_by_fact(new),
        )

    @property
    def n_rows(self) -> int:
        """The number of rows of both batches."""
        return self.current.n_rows + self.new.n_rows

    def prompts_of(self, fact: Fact) -> tuple[Int[Tensor, " prompt"], Int[Tensor, " prompt"]]:
        """Return the prompts of an updated fact's question in each of the batches."""
        question = self.questions[fact]
        return self.current_prompts[question.query], self.new_prompts[question.answered]

    def prompts_of_both(self, fact: Fact) -> tuple[Int[Tensor, " prompt"], Int[Tensor, " prompt"]]:
        """Return the prompts of an updated fact's question in ``both``, with the current and with the new answer."""
        question = self.questions[fact]
        return self.prompts_in_both[question.query], self.prompts_in_both[question.answered]

    def n_rows_of(self, fact: Fact) -> int:
        """Return the number of rows of an updated fact's question in both batches; 0 without a question."""
        if fact not in self.questions:
            return 0
        current, new = self.prompts_of(fact)
        n_current = self.current.rows_per_prompt[current].sum()
        n_new = self.new.rows_per_prompt[new].sum()
        return int(n_current + n_new)


def group_other_facts(
    others: PromptBatch,
    fact: Fact,
    new_object: str,
) -> dict[str, Int[np.ndarray, " prompt"]]:
    """Return the prompts of each group of other facts, without those of the updated fact and without empty groups.

    Its versions in other languages are no other facts.
    """
    fields: list[tuple[str, str, str, bool]] = []
    for number in others.fact_index.tolist():
        other = others.facts[number]
        fields.append((other.relation, other.subject, other.object, other == fact or is_version(other, fact)))
    relations, subjects, objects, is_fact = np.array(fields, dtype=object).reshape(-1, 4).T
    same_relation = relations == fact.relation
    same_subject = (subjects == fact.subject) & (subjects != "")
    updated = same_relation & same_subject | is_fact.astype(bool)
    members = {
        SAME_RELATION: same_relation,
        OTHER_RELATIONS: ~same_relation,
        SAME_SUBJECT: same_subject,
        SAME_ANSWER: objects == fact.object,
        NEW_ANSWER: objects == new_object,
    }
    groups = {}
    for name, member in members.items():
        chosen = np.flatnonzero(member & ~updated)
        if len(chosen):
            groups[name] = chosen
    return groups
