"""Stage ``updates``: rewriting facts; Table 6.

Known facts of each relation, drawn at random, are updated one at a time to the object of another fact of the relation:
``update_effects``. As in the paper, neurons that many facts of the relation have are dropped first. The ``found``
neurons are compared with as many neurons of highest ``activation``, and with as many ``random`` neurons of the same
layers.

Records: the rows of ``update_effects``. A known fact that could not be updated has one row with an empty ``question``;
its ``why`` states the reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kn_lens._core.bootstrap import with_control
from kn_lens.attribution import attribute
from kn_lens.edits import (
    HELD_OUT,
    MAX_DISTURBED,
    OTHER_RELATIONS,
    OWN,
    SAME_RELATION,
    Question,
    Questions,
    answerable,
    disturbed_share,
    edit_table,
    inverse_questions,
    reworded,
    update_effects,
    update_fact,
)
from kn_lens.errors import EditError
from kn_lens.facts import Fact
from kn_lens.neurons import NeuronSet, activation_neurons, prompts_by_fact
from kn_lens.prompts import PromptBatch
from kn_lens.runs.context import RunContext, sample_in_order
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.answers import ANSWERS, known_facts
from kn_lens.runs.stages.neurons import N_COMPARED_KINDS, NEURONS

if TYPE_CHECKING:
    import pandas as pd

PERPLEXITY_RISE = "perplexity_rise"
"""The measure of Table 6: a difference of perplexities. Table 5 has the growth, relative to the perplexity before."""

TABLE_6 = {
    (OWN, "changed"): {"found": 0.485, "random": 0.047},
    (OWN, "success"): {"found": 0.344, "random": 0.0},
    (SAME_RELATION, PERPLEXITY_RISE): {"found": 8.4, "random": 10.1},
    (OTHER_RELATIONS, PERPLEXITY_RISE): {"found": 7.2, "random": 4.3},
}
"""Dai et al. (2022), bert-base-cased on ParaRel: by question, measure and kind of neurons."""

CURRENT_ANSWER_FIELDS = (
    ("n_prompts", pa.int32()),
    ("right_before", pa.float64()),
    ("right_after", pa.float64()),
    ("lost", pa.float64()),
    ("nll_before", pa.float64()),
    ("nll_after", pa.float64()),
)
"""What is recorded of the current answers to a question before and after an edit."""

ANSWER_FIELDS = (
    *CURRENT_ANSWER_FIELDS,
    ("new_right_before", pa.float64()),
    ("new_top5_before", pa.float64()),
    ("new_rank_before", pa.float64()),
    ("new_mrr_before", pa.float64()),
    ("new_nll_before", pa.float64()),
    ("new_right_after", pa.float64()),
    ("new_top5_after", pa.float64()),
    ("new_rank_after", pa.float64()),
    ("new_mrr_after", pa.float64()),
    ("new_nll_after", pa.float64()),
    ("says", pa.string()),
    ("why", pa.string()),
)
"""What is recorded of the current and the new answers before and after an edit, and why there is none."""

UPDATE_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("subject", pa.string()),
        ("object", pa.string()),
        ("key", pa.string()),
        ("new_object", pa.string()),
        ("neuron_set", pa.string()),
        ("question", pa.string()),
        ("n_neurons", pa.int32()),
        *ANSWER_FIELDS,
    ]
)
MISSING = {pa.string(): "", pa.int32(): 0, pa.float64(): np.nan}
"""The value of a cell of each type where the row has none."""


# --- records --------------------------------------------------------------------------------------


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    relation, settings = shard.relation, context.settings
    others = context.make_prompts(other_facts(context, relation, settings.update_others))
    planned, neurons, why = _plan(context, relation, others)
    questions = {fact: Question(fact, new_object) for fact, new_object in planned.items()}
    own = answerable(context.host, questions)
    for fact, new_object in planned.items():
        if fact not in own:
            why[fact] = f"No template takes {new_object!r} too."
    rows: list[dict[str, Any]] = []
    new_objects = {question.query: question.answer for question in own.values()}
    if new_objects:
        effects = update_effects(
            context.host,
            new_objects,
            neurons,
            _most_active(context, neurons),
            questions=_more_questions(context, new_objects),
            others=others,
            lambdas=settings.lambdas,
            scaling=settings.update_scaling,
            signed=settings.update_signed,
            seed=settings.seed,
            memory_budget=context.memory_budget,
            progress=progress,
        )
        rows += effects.to_dict("records")
    for fact, reason in why.items():
        rows.append(
            {
                "relation": fact.relation,
                "subject": fact.subject,
                "object": fact.object,
                "key": fact.key,
                "why": reason,
            }
        )
    write_rows(path, [with_missing_values(row, UPDATE_SCHEMA) for row in rows], UPDATE_SCHEMA)


def with_missing_values(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    """Return a row with a value in every column of a schema, in place of None and NaN too."""
    complete = {}
    for column in schema:
        value = row.get(column.name)
        is_missing = value is None or value != value
        complete[column.name] = MISSING[column.type] if is_missing else value
    return complete


def _plan(
    context: RunContext, relation: str, others: PromptBatch
) -> tuple[dict[Fact, str], dict[Fact, NeuronSet], dict[Fact, str]]:
    """Draw the facts to update.

    Returns:
        The new object of each of these facts; its neurons; and for each fact that was drawn before them and cannot be
        updated, the reason.
    """
    settings, found = context.settings, context.neurons("found", relation)
    objects = objects_by_language(prompts_by_fact(others), relation)
    generator = context.generator("updates", relation)
    known = known_facts(context, relation)
    new_objects: dict[Fact, str] = {}
    neurons: dict[Fact, NeuronSet] = {}
    why: dict[Fact, str] = {}
    for index in generator.permutation(len(known)):
        if len(new_objects) == settings.update_facts:
            break
        fact = known[index]
        of_language = objects.get(fact.language, ())
        candidates = [name for name in of_language if name != fact.object]
        if not candidates:
            why[fact] = f"There is no other object of {relation} among {len(of_language)}."
            continue
        new_object = candidates[generator.integers(len(candidates))]
        try:
            edit = update_fact(
                context.host,
                fact,
                new_object,
                found[fact],
                lambdas=settings.lambdas,
                scaling=settings.update_scaling,
                signed=False,  # the neurons of the edit do not depend on signs, which would take a pass
                neurons_by_fact=found,
                max_share=settings.max_share,
                allow_unknown=True,
            )
        except EditError as error:  # the fact has no neurons, or none of its own
            why[fact] = str(error)
            continue
        new_objects[fact] = new_object
        neurons[fact] = edit.neurons
    return new_objects, neurons, why


def _most_active(context: RunContext, neurons: Mapping[Fact, NeuronSet]) -> dict[Fact, NeuronSet]:
    """Return as many neurons of highest activation for each fact."""
    prompts = context.make_prompts(neurons)
    activations = attribute(context.host, prompts, method="activation", memory_budget=context.memory_budget)
    return activation_neurons(activations, neurons)


def objects_by_language(facts: Iterable[Fact], relation: str) -> dict[str, list[str]]:
    """Return the objects of a relation in each language, in order: a new object is of the language of its fact."""
    objects: dict[str, dict[str, None]] = {}
    for fact in facts:
        if fact.relation == relation:
            objects.setdefault(fact.language, {})[fact.object] = None
    return {language: list(of_language) for language, of_language in objects.items()}


def other_facts(context: RunContext, relation: str, n_facts: int) -> list[Fact]:
    """Return so many facts of the relation, and of other relations, that each edit is measured on beside its own."""
    same_relation = [fact for fact in context.source if fact.relation == relation and fact.templates]
    facts = sample_in_order(same_relation, n_facts, context.generator("edits", relation, "True"))
    facts += context.sample_other_facts(relation, n_facts, "edits", relation, "False")
    return facts


# --- questions ------------------------------------------------------------------------------------


def _more_questions(context: RunContext, new_objects: Mapping[Fact, str]) -> dict[str, Questions]:
    """Return further questions about the updates: held-out wordings, the inverse relation, and synonyms."""
    settings = context.settings
    held_out_facts = set(context.held_out)
    reworded_objects = {fact: name for fact, name in new_objects.items() if fact in held_out_facts}
    questions: dict[str, Questions] = {
        HELD_OUT: reworded(context.held_out, reworded_objects),
        "inverse relation": inverse_questions(context.source, new_objects, dict(_name_pairs(settings.inverses))),
        "synonym": _synonym_questions(new_objects, _name_pairs(settings.synonyms)),
    }
    return {name: answerable(context.host, group) for name, group in questions.items()}


def _synonym_questions(new_objects: Mapping[Fact, str], synonyms: Sequence[tuple[str, str]]) -> dict[Fact, Question]:
    """Return the updates with another name of the new object as the answer; the last synonym of a name counts."""
    questions = {}
    for fact, new_object in new_objects.items():
        for name, synonym in synonyms:
            if name == new_object and synonym != fact.object:
                questions[fact] = Question(fact, synonym)
    return questions


def _name_pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the two names of each text ``"P36=P1376"``."""
    pairs = []
    for text in texts:
        name, _, other = text.partition("=")
        pairs.append((name, other))
    return pairs


# --- tables ---------------------------------------------------------------------------------------


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    records = context.all_records(UPDATES)
    measured = records.query("question != ''")
    tables = {"updated": _count_table(context, records)}
    if len(measured):
        tables["table6"] = _table_6(context, measured, by_relation=False)
        tables["table6_by_relation"] = _table_6(context, measured, by_relation=True)
    return tables


def _count_table(context: RunContext, records: "pd.DataFrame") -> "pd.DataFrame":
    """Return the numbers of facts of each relation that are known, updated, disturb others, and cannot be updated."""
    import pandas as pd

    rows = []
    for relation in context.relations():
        relation_records = records.query("relation == @relation")
        updated = relation_records.query("question != ''")
        left_out = relation_records.query("question == ''")
        n_disturbing = 0
        for _, fact_records in updated.query("neuron_set == 'found'").groupby("key"):
            n_disturbing += disturbed_share(fact_records.to_dict("records")) > MAX_DISTURBED
        rows.append(
            {
                "relation": relation,
                "n_queried": len(context.queried_facts(relation)),
                "n_known": len(known_facts(context, relation)),
                "n_updated": updated["key"].nunique(),
                "n_disturbing": n_disturbing,
                "n_left_out": len(left_out),
                "why": "" if left_out.empty else left_out["why"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def _table_6(context: RunContext, records: "pd.DataFrame", by_relation: bool) -> "pd.DataFrame":
    import pandas as pd

    settings = context.settings
    parts = []
    for _, group in records.groupby("question", sort=False):
        # The columns of the new answer hold NaN for other facts: each question has its own set of measures.
        measured = group.dropna(axis="columns", how="all")
        parts.append(
            edit_table(measured, by_relation=by_relation, n_resamples=settings.n_resamples, seed=settings.seed)
        )
    table = pd.concat(parts, ignore_index=True).rename(columns={"n_facts": "n"})
    table = with_control(table)
    paper = []
    for row in table.to_dict("records"):
        values = {} if by_relation else TABLE_6.get((row["question"], row["measure"]), {})
        paper.append(values.get(row["neuron_set"], np.nan))
    table["paper"] = paper
    return table


# --- passes ---------------------------------------------------------------------------------------


def _passes(context: RunContext, shard: Shard) -> Passes:
    """Count the activations of the updated facts, and all questions and other facts, without and with each edit."""
    settings, relation = context.settings, shard.relation
    n_queried = max(1, len(context.queried_facts(relation)))
    n_known = n_queried
    if context.run.manifest("answers", Shard(relation)) is not None:
        n_known = len(known_facts(context, relation))
    n_with_neurons = round(n_queried * context.share_with_neurons(relation))
    n_updated = min(settings.update_facts, n_known, n_with_neurons)
    if not n_updated:
        return Passes()
    n_other_rows = context.n_rows_of(other_facts(context, relation, settings.update_others))
    n_own_rows = n_updated * context.n_rows(relation) / n_queried
    has_inverse = relation in dict(_name_pairs(settings.inverses))
    n_question_rows = 2 * n_own_rows * (1.0 + _held_out_share(context, relation) + has_inverse)
    clean = n_other_rows + n_question_rows
    edited = n_question_rows + n_updated * n_other_rows
    return Passes(whole=n_own_rows + clean + N_COMPARED_KINDS * edited)


def _held_out_share(context: RunContext, relation: str) -> float:
    """Return the number of held-out templates of a relation's facts, relative to their other templates."""
    n_own = sum(len(fact.templates) for fact in context.source if fact.relation == relation)
    n_held_out = sum(len(fact.templates) for fact in context.held_out if fact.relation == relation)
    return n_held_out / max(1, n_own)


UPDATES = Stage(
    name="updates",
    title="Updating facts; Table 6",
    make=_make,
    tables=_tables,
    shown={
        "table6": TableDisplay(
            "Table 6: facts updated to another object", ("changed", "success", "top5", PERPLEXITY_RISE)
        )
    },
    needs=(NEURONS, ANSWERS),
    settings=(
        "seed",
        "update_facts",
        "update_others",
        "lambdas",
        "update_scaling",
        "update_signed",
        "max_share",
        "inverses",
        "synonyms",
    ),
    across=True,
    passes=_passes,
)
"""Facts updated to another object; records of each update and question, tables ``updated``, ``table6``, by relation."""
