"""The questions that tell whether an update worked, and which other facts it may have changed.

Asked as it was trained, an edited model may give the new answer and yet know nothing new. So an update is also asked
in other wordings, the other way round, and for synonyms (Niu et al. 2024); and facts that should stay are looked at by
what they have in common with it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from kn_lens._refining import prompts_by_fact
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import Host
from kn_lens.prompts import PromptBatch, make_prompts

OWN = "own wording"
SAME_RELATION, OTHER_RELATIONS = "same relation", "other relations"
SAME_SUBJECT, SAME_ANSWER, NEW_ANSWER = "same subject", "same answer", "new answer"
SCOPES = (SAME_RELATION, OTHER_RELATIONS, SAME_SUBJECT, SAME_ANSWER, NEW_ANSWER)
"""The other facts that an update is measured on; a fact may be in several."""

MAX_DISTURBED = 0.1
"""An update disturbs other facts when more than this share of their right answers is no longer given: a choice, halfway
between random rows in the embedded models (3%) and edits that leave little of what a model knows."""


class Question(NamedTuple):
    """A question that an update should change.

    Attributes:
        asked: the question: a fact with the templates to ask it in, and the answer that it has now.
        answer: the answer that it should have then.
    """

    asked: Fact
    answer: str


Questions = Mapping[Fact, Question]
"""For an updated fact, one more question that its update should change."""


def reworded(facts: Iterable[Fact], new_objects: Mapping[Fact, str]) -> dict[Fact, Question]:
    """Ask for the updated facts in the templates of equal facts: held-out wordings.

    Raises:
        ArgumentError: an updated fact is not among them.

    >>> import kn_lens as kn
    >>> fact = kn.FactSet.world("trained").find("Ireland", relation="P36")
    >>> held_out = kn.FactSet.world("held_out")
    >>> len(fact.templates), len(reworded(held_out, {fact: "Tokyo"})[fact].asked.templates)
    (24, 6)
    """
    wordings = {fact: fact for fact in facts}
    for fact in new_objects:
        if fact not in wordings:
            near = did_you_mean(fact.key, (other.key for other in wordings))
            raise ArgumentError(f"There is no other wording of {fact.key}; expected one of each updated fact.{near}")
    return {fact: Question(wordings[fact], answer) for fact, answer in new_objects.items()}


def inverse_questions(
    facts: Iterable[Fact], new_objects: Mapping[Fact, str], inverse: Mapping[str, str]
) -> dict[Fact, Question]:
    """Ask the updates the other way round: once Ireland's capital is Tokyo, Tokyo is the capital of Ireland.

    Args:
        facts: among them those of the inverse relations.
        new_objects: the updates.
        inverse: the inverse of each relation that has one: ``{"P36": "P1376"}``.

    Returns:
        A question for each update whose relation has an inverse in which the facts say exactly one thing about the new
        object; for the others there is nothing to ask.

    >>> import kn_lens as kn
    >>> facts = kn.FactSet.world()
    >>> (question,) = inverse_questions(facts, {facts.find("Ireland", "P36"): "Tokyo"}, {"P36": "P1376"}).values()
    >>> question.asked.key, question.answer
    ('P1376/Tokyo/Japan', 'Ireland')
    """
    about: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        about.setdefault((fact.relation, fact.subject), []).append(fact)
    found = {fact: about.get((inverse.get(fact.relation, ""), new), []) for fact, new in new_objects.items()}
    return {fact: Question(asked[0], fact.subject) for fact, asked in found.items() if len(asked) == 1}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One group of questions as prompts: with the answers that they have now, and with those that they should get.

    Both batches ask the same; an answer of more tokens is asked with more masks, or more rows.
    """

    questions: Questions
    batches: tuple[PromptBatch, PromptBatch]
    prompts_of: tuple[Mapping[Fact, Int[Tensor, " some"]], ...]

    @classmethod
    def of(cls, model: Any, host: Host, name: str, questions: Questions, tokenizer: Any) -> "Asked":
        """Write the prompts.

        Raises:
            ArgumentError: a question of which no prompt is left.
            PromptError: see ``make_prompts``.
        """
        pairs = [_pair(question) for question in questions.values()]
        now, then = (make_prompts(model, dict.fromkeys(side), tokenizer=tokenizer) for side in zip(*pairs, strict=True))
        prompts_of = prompts_by_fact(now), prompts_by_fact(then)
        for pair in pairs:
            if any(fact not in found for fact, found in zip(pair, prompts_of, strict=True)):
                raise ArgumentError(
                    f"{host.name} cannot be asked the question {pair[0].key} of {name!r} in any of its templates; "
                    "expected one that ends with [Y], as causal models need. Leave the fact out of this group."
                )
        for batch in (now, then):
            batch.check_for(host)
        return cls(questions=questions, batches=(now, then), prompts_of=prompts_of)

    def of_update(self, fact: Fact) -> list[tuple[PromptBatch, Int[Tensor, " some"]]]:
        """Return for each batch which of its prompts an updated fact's question has; nothing where it has none."""
        if fact not in self.questions:
            return []
        pair = _pair(self.questions[fact])
        return [(self.batches[side], self.prompts_of[side][pair[side]]) for side in (0, 1)]

    def n_rows(self, fact: Fact) -> int:
        """Return the number of rows of an updated fact's question."""
        return sum(int(batch.rows_per_prompt[chosen].sum()) for batch, chosen in self.of_update(fact))


def _pair(question: Question) -> tuple[Fact, Fact]:
    return question.asked, replace(question.asked, object=question.answer)


def prompts_in_common(others: PromptBatch, fact: Fact, new_object: str) -> dict[str, Int[np.ndarray, " some"]]:
    """Return which prompts are of other facts than the updated one, by what these have in common with it."""
    facts = [others.facts[i] for i in others.fact_index.tolist()]
    relation = np.array([one.relation == fact.relation for one in facts])
    subject = np.array([bool(one.subject) and one.subject == fact.subject for one in facts])
    itself = relation & subject | np.array([one == fact for one in facts])
    members = {
        SAME_RELATION: relation,
        OTHER_RELATIONS: ~relation,
        SAME_SUBJECT: subject,
        SAME_ANSWER: np.array([one.object == fact.object for one in facts]),
        NEW_ANSWER: np.array([one.object == new_object for one in facts]),
    }
    found = {scope: np.flatnonzero(where & ~itself) for scope, where in members.items()}
    return {scope: chosen for scope, chosen in found.items() if len(chosen)}


def checked_groups(own: Questions, questions: Mapping[str, Questions]) -> dict[str, Questions]:
    """Return the groups that ask anything, the facts' own wording first."""
    for name, group in questions.items():
        if name == OWN or name in SCOPES:
            raise ArgumentError(f"The questions {name!r} have a name that the table needs; expected another.")
        for fact, question in group.items():
            if fact not in own:
                near = did_you_mean(fact.key, (other.key for other in own))
                raise ArgumentError(f"The questions {name!r} have one for {fact.key}, which is not updated.{near}")
            if question.asked.object == question.answer:
                raise ArgumentError(
                    f"The question {question.asked.key} of {name!r} is to get the answer that it has; expected another."
                )
    return {OWN: own} | {name: group for name, group in questions.items() if group}


def disturbed_share(rows: Iterable[Mapping[str, Any]]) -> float:
    """Return the share of the right answers to other facts that an update takes away; NaN where there are none.

    Args:
        rows: those of the update in the table of ``update_effects``.

    >>> rows = [{"asked": "same relation", "n_prompts": 10, "right_before": 0.5, "lost": 0.4}]
    >>> rows += [{"asked": "other relations", "n_prompts": 40, "right_before": 1.0, "lost": 0.0}]
    >>> round(disturbed_share(rows), 3)
    0.089
    """
    of_others = [row for row in rows if row["asked"] in (SAME_RELATION, OTHER_RELATIONS)]  # all of them, each once
    lost, right = (sum(row["n_prompts"] * row[name] for row in of_others) for name in ("lost", "right_before"))
    return float(lost / right) if right else math.nan
