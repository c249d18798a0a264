"""Questions with the scores of their answers, before and under edits, as columns of tables of effects."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.edits.prompt_edits import score_under_edits
from kn_lens.edits.questions import OTHER_RELATIONS, SAME_RELATION, QuestionPrompts
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.facts import Fact
from kn_lens.hosts import Budget, Host
from kn_lens.interventions import AnswerScores, Intervention, Ticks, score_answers


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredQuestions:
    """A group of questions and the scores of its answers without an edit.

    Attributes:
        prompts: the prompts of the group.
        current: the scores of the current answers.
        new: the scores of the new answers.
        tokenizer: decodes the model's answers.
    """

    prompts: QuestionPrompts
    current: AnswerScores
    new: AnswerScores
    tokenizer: Any

    @classmethod
    def of(
        cls,
        host: Host,
        prompts: QuestionPrompts,
        interventions: Sequence[Intervention],
        budget: Budget,
        tick: Ticks,
        tokenizer: Any,
    ) -> "ScoredQuestions":
        """Score the answers without an edit; ``interventions`` take part in the passes of the current answers."""
        current = score_answers(host, prompts.current, interventions, budget, tick)
        new = score_answers(host, prompts.new, [], budget, tick)
        return cls(prompts=prompts, current=current, new=new, tokenizer=tokenizer)

    def under_edits(
        self,
        host: Host,
        trials: Sequence[tuple[Fact, WeightEdit]],
        budget: Budget,
        tick: Ticks,
    ) -> list[dict[str, Any]]:
        """Score the answers to the question of each trial's fact again, with its edit; edits share passes."""
        if not trials:
            return []
        chosen_current = []
        chosen_new = []
        for fact, edit in trials:
            current, new = self.prompts.prompts_of(fact)
            chosen_current.append((edit, current))
            chosen_new.append((edit, new))
        current_after = score_under_edits(host, self.prompts.current, chosen_current, budget, tick)
        new_after = score_under_edits(host, self.prompts.new, chosen_new, budget, tick)
        effects = []
        for (fact, _), of_current, of_new in zip(trials, current_after, new_after, strict=True):
            effects.append(self._compared(fact, of_current, of_new))
        return effects

    def as_they_are(self, host: Host, facts: Sequence[Fact], budget: Budget, tick: Ticks) -> list[dict[str, Any]]:
        """Score the answers to the questions of facts again, in the model as it is now; all of them share passes."""
        chosen = [prompts for fact in facts for prompts in self.prompts.prompts_of_both(fact)]
        if not chosen:
            return []
        asked = self.prompts.both.select(torch.cat(chosen))
        scores = score_answers(host, asked, [], budget, tick).split([len(prompts) for prompts in chosen])
        effects = []
        for fact, of_current, of_new in zip(facts, scores[::2], scores[1::2], strict=True):
            effects.append(self._compared(fact, of_current, of_new))
        return effects

    def _compared(self, fact: Fact, current_after: AnswerScores, new_after: AnswerScores) -> dict[str, Any]:
        """Return the columns of a fact's question."""
        current, new = self.prompts.prompts_of(fact)
        return {
            **current_answer_columns(self.current.select(_numpy(current)), current_after),
            **new_answer_columns(self.new.select(_numpy(new)), new_after),
            "says": most_frequent(current_after.top_text(self.tokenizer)),
        }


def disturbed_share(rows: Iterable[Mapping[str, Any]]) -> float:
    """Return the share of the right answers to other facts that an update takes away; NaN without right answers.

    Args:
        rows: the rows of one update in the table of ``update_effects``.

    >>> rows = [{"question": "same relation", "n_prompts": 10, "right_before": 0.5, "lost": 0.4}]
    >>> rows += [{"question": "other relations", "n_prompts": 40, "right_before": 1.0, "lost": 0.0}]
    >>> round(disturbed_share(rows), 3)
    0.089
    """
    n_lost = n_right = 0.0
    for row in rows:
        if row["question"] in (
            SAME_RELATION,
            OTHER_RELATIONS,
        ):  # these two groups hold every other fact once
            n_lost += row["n_prompts"] * row["lost"]
            n_right += row["n_prompts"] * row["right_before"]
    if not n_right:
        return math.nan
    return float(n_lost / n_right)


def current_answer_columns(
    before: AnswerScores,
    after: AnswerScores,
) -> dict[str, float]:
    """Return the columns of the current answers."""
    right_before = before.rank == 0
    right_after = after.rank == 0
    return {
        "n_prompts": len(right_before),
        "right_before": float(right_before.mean()),
        "right_after": float(right_after.mean()),
        "lost": float((right_before & ~right_after).mean()),
        "nll_before": float(-before.log_prob.mean()),
        "nll_after": float(-after.log_prob.mean()),
    }


def new_answer_columns(before: AnswerScores, after: AnswerScores) -> dict[str, float]:
    """Return the columns of the new answers."""
    columns = {}
    for when, scores in (("before", before), ("after", after)):
        columns[f"new_right_{when}"] = float((scores.rank == 0).mean())
        columns[f"new_top5_{when}"] = float((scores.rank < 5).mean())
        columns[f"new_rank_{when}"] = float(scores.rank.mean())
        columns[f"new_mrr_{when}"] = float((1 / (1 + scores.rank)).mean())
        columns[f"new_nll_{when}"] = float(-scores.log_prob.mean())
    return columns


def _numpy(chosen: Int[Tensor, " prompt"]) -> Int[np.ndarray, " prompt"]:
    return chosen.cpu().numpy()


def most_frequent(texts: Sequence[str]) -> str:
    """Return the most frequent text; the first of equally frequent ones."""
    return max(dict.fromkeys(texts), key=texts.count)
