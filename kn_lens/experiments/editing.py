"""Stages ``updates`` and ``erasures``: rewriting facts and wiping out relations; Tables 6 and 5.

``updates`` takes some facts of each relation that the model knows, drawn at random, and gives each an object of another
fact of the relation, one at a time: ``update_effects``. First the neurons that many facts of the relation have are
dropped, as in the paper. ``erasures`` sets what a relation's most frequent neurons write to nothing: ``erase_effects``.
Beside the ``found`` neurons stand as many of highest activation, and as many ``random`` ones of the same layers.

Records: the rows of ``update_effects`` and ``erase_effects``. In ``updates``, known facts that could not be updated
have one row, without ``asked``, and in ``why`` what stood in the way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kn_lens._bootstrap import with_control
from kn_lens._refining import prompts_by_fact
from kn_lens.attribution import attribute
from kn_lens.edit_effects import erase_effects, update_effects
from kn_lens.edit_questions import (
    MAX_DISTURBED,
    OTHER_RELATIONS,
    OWN,
    SAME_RELATION,
    Question,
    Questions,
    disturbed_share,
    inverse_questions,
    reworded,
)
from kn_lens.edit_tables import edit_table
from kn_lens.edits import update_fact
from kn_lens.errors import EditError, NoPromptError
from kn_lens.experiments import answers, refining
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, write_records
from kn_lens.facts import Fact
from kn_lens.neuron_sets import NeuronSet
from kn_lens.neurons import activation_neurons
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

N_KINDS = 3

RISE = "perplexity_rise"
"""What Table 6 has; Table 5 has the growth, its share of the perplexity before."""

TABLE_6 = {
    (OWN, "changed"): {"found": 0.485, "random": 0.047},
    (OWN, "success"): {"found": 0.344, "random": 0.0},
    (SAME_RELATION, RISE): {"found": 8.4, "random": 10.1},
    (OTHER_RELATIONS, RISE): {"found": 7.2, "random": 4.3},
}
"""Dai et al. (2022), on bert-base-cased and ParaRel: by what is asked, measure and kind of neurons."""

_PERPLEXITIES = ("perplexity_before", "perplexity_after", "perplexity_growth")
TABLE_5 = {
    (relation, asked, measure): value
    for relation, own, others in (
        ("P19", (1450.0, 2996.0, 1.066), (120.3, 121.6, 0.011)),
        ("P27", (28.0, 38.3, 0.367), (143.6, 149.5, 0.042)),
        ("P106", (2279.0, 5202.0, 1.282), (120.1, 125.3, 0.043)),
        ("P937", (58.0, 140.0, 1.412), (138.0, 151.9, 0.101)),
    )
    for asked, values in ((SAME_RELATION, own), (OTHER_RELATIONS, others))
    for measure, value in zip(_PERPLEXITIES, values, strict=True)
}
"""The same for erasing, by relation, what is asked and measure; of found neurons."""

_READ = ("right_before", "right_after", "lost", "nll_before", "nll_after")
_NEW = tuple(f"new_{what}_{when}" for when in ("before", "after") for what in ("right", "top5", "rank", "mrr", "nll"))
UPDATE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "subject", "object", "key", "new_object", "neurons", "asked")),
        *((name, pa.int32()) for name in ("n_neurons", "n_prompts")),
        *((name, pa.float64()) for name in (*_READ, *_NEW)),
        *((name, pa.string()) for name in ("says", "why")),
    ]
)
ERASE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "neurons", "asked", "measured", "measured_relation")),
        *((name, pa.int32()) for name in ("n_neurons", "n_prompts")),
        *((name, pa.float64()) for name in _READ),
    ]
)


MISSING = {pa.string(): "", pa.int32(): 0, pa.float64(): np.nan}
"""What stands in a column where a row has no such thing."""


# --- updating ---------------------------------------------------------------------------------------------


def _make_updates(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    relation, settings = shard.relation, study.settings
    others = study.ask(_other_facts_of(study, relation, settings.update_others, settings.update_others))
    planned, neurons, why = _planned(study, relation, others)
    own = _askable(study, {fact: Question(fact, new) for fact, new in planned.items()})
    new_objects = {question.asked: question.answer for question in own.values()}
    why |= {fact: f"No template takes {planned[fact]!r} too." for fact in planned if fact not in own}
    rows = [
        {**{name: getattr(fact, name) for name in ("relation", "subject", "object", "key")}, "why": reason}
        for fact, reason in why.items()
    ]
    if new_objects:
        effects = update_effects(
            study.host.model,
            new_objects,
            neurons,
            _most_active(study, neurons),
            questions=_questions(study, new_objects),
            others=others,
            lambdas=settings.lambdas,
            scaling=settings.update_scaling,
            signed=settings.update_signed,
            seed=settings.seed,
            memory_budget=study.memory_budget,
            progress=tick,
        )
        rows = effects.to_dict("records") + rows
    columns = {one.name: [_filled(row.get(one.name), MISSING[one.type]) for row in rows] for one in UPDATE_SCHEMA}
    write_records(path, columns, UPDATE_SCHEMA)


def _filled(value: Any, missing: Any) -> Any:
    """Return a cell of a table; where it holds nothing (None or NaN), what its column has for that."""
    return missing if value is None or value != value else value


def _planned(
    study: Study, relation: str, others: PromptBatch
) -> tuple[dict[Fact, str], dict[Fact, NeuronSet], dict[Fact, str]]:
    """Return new objects and neurons of the facts to update, and why those drawn before them cannot be updated."""
    settings, found = study.settings, study.neurons("found", relation)
    objects = list(dict.fromkeys(fact.object for fact in prompts_by_fact(others) if fact.relation == relation))
    generator = study.generator("updates", relation)
    known = answers.known_facts(study, relation)
    new_objects: dict[Fact, str] = {}
    neurons: dict[Fact, NeuronSet] = {}
    why: dict[Fact, str] = {}
    for fact in (known[i] for i in generator.permutation(len(known))):
        if len(new_objects) == settings.update_facts:
            break
        other = [one for one in objects if one != fact.object]
        if not other:
            why[fact] = f"There is no other object of {relation} among {len(objects)}."
            continue
        new = other[generator.integers(len(other))]
        try:
            edit = update_fact(
                study.host.model, fact, new, found[fact], lambdas=settings.lambdas, scaling=settings.update_scaling,
                signed=False, neurons_by_fact=found, max_share=settings.max_share, allow_unknown=True,
            )  # fmt: skip  # which neurons are its own does not depend on signs, which would take a pass
        except EditError as error:  # it has no neurons, or none of its own
            why[fact] = str(error)
        else:
            new_objects[fact], neurons[fact] = new, edit.neurons
    return new_objects, neurons, why


def _most_active(study: Study, neurons: Mapping[Fact, NeuronSet]) -> dict[Fact, NeuronSet]:
    """Return as many neurons of highest activation as are left of the found ones."""
    activations = attribute(
        study.host.model, study.ask(neurons), method="activation", memory_budget=study.memory_budget
    )
    return activation_neurons(activations, neurons)


def _questions(study: Study, new_objects: Mapping[Fact, str]) -> dict[str, Questions]:
    """Return the updates asked in held-out wordings, the other way round and for synonyms, where there are any."""
    settings = study.settings
    with_others = set(study.held_out)
    held_out = reworded(study.held_out, {fact: new for fact, new in new_objects.items() if fact in with_others})
    inverse = inverse_questions(study.source, new_objects, dict(_pairs(settings.inverses)))
    synonyms = _pairs(settings.synonyms)
    synonym = {
        fact: Question(fact, other)
        for fact, new in new_objects.items()
        for name, other in synonyms
        if name == new and other != fact.object
    }
    questions = {"held-out wording": held_out, "inverse relation": inverse, "synonym": synonym}
    return {name: _askable(study, group) for name, group in questions.items()}


def _askable(study: Study, questions: Questions) -> dict[Fact, Question]:
    """Return the questions that can be asked of the model, in the templates that take both answers."""
    if not questions:
        return {}
    pairs = {fact: (one.asked, replace(one.asked, object=one.answer)) for fact, one in questions.items()}
    try:
        prompts = study.ask(dict.fromkeys(one for pair in pairs.values() for one in pair))
    except NoPromptError:  # none of them can
        return {}
    takes: dict[Fact, set[str]] = {}
    for prompt, template in enumerate(prompts.template):
        takes.setdefault(prompts.fact(prompt), set()).add(template)
    askable: dict[Fact, Question] = {}
    for fact, pair in pairs.items():
        now, then = (takes.get(one, set()) for one in pair)
        if both := tuple(one for one in pair[0].templates if one in now and one in then):
            askable[fact] = Question(replace(pair[0], templates=both), pair[1].object)
    return askable


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, other) for name, _, other in (text.partition("=") for text in texts)]


def _update_tables(study: Study) -> "dict[str, pd.DataFrame]":
    records = study.all_records(UPDATES)
    measured = records.query("asked != ''")
    tables = {"updated": _updated(study, records)}
    if len(measured):
        tables["table6"] = _table_6(study, measured, by_relation=False)
        tables["table6_by_relation"] = _table_6(study, measured, by_relation=True)
    return tables


def _updated(study: Study, records: "pd.DataFrame") -> "pd.DataFrame":
    """Return how many facts were known, updated, updated at the cost of others, and drawn in vain, by relation."""
    import pandas as pd

    rows = []
    for relation in study.relations():
        mine = records.query("relation == @relation")
        left_out = mine.query("asked == ''")
        found = mine.query("asked != '' and neurons == 'found'")
        disturbed = [disturbed_share(rows.to_dict("records")) for _, rows in found.groupby("key")]
        rows.append(
            {
                "relation": relation,
                "asked": len(study.asked_facts(relation)),
                "known": len(answers.known_facts(study, relation)),
                "updated": mine.loc[mine["asked"] != "", "key"].nunique(),
                "disturbing": sum(share > MAX_DISTURBED for share in disturbed),
                "left_out": len(left_out),
                "why": "" if left_out.empty else left_out["why"].iloc[0],
            }
        )
    return pd.DataFrame(rows)


def _table_6(study: Study, records: "pd.DataFrame", by_relation: bool) -> "pd.DataFrame":
    import pandas as pd

    how = {"by_relation": by_relation, "n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    # Measures of a new answer are there where all rows have one; so each question is summed up by itself.
    parts = [
        edit_table(group.dropna(axis="columns", how="all"), **how) for _, group in records.groupby("asked", sort=False)
    ]
    table = pd.concat(parts, ignore_index=True).rename(columns={"n_facts": "n"})
    table = with_control(table)
    cells = zip(table["asked"], table["measure"], table["neurons"], strict=True)
    table["paper"] = [
        np.nan if by_relation else TABLE_6.get((asked, measure), {}).get(kind, np.nan) for asked, measure, kind in cells
    ]
    return table


# --- erasing ----------------------------------------------------------------------------------------------


def _make_erasures(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    import pandas as pd

    relation, settings = shard.relation, study.settings
    found, active = (study.neurons(kind, relation) for kind in ("found", "activation"))
    table = pd.DataFrame(columns=ERASE_SCHEMA.names)
    if any(found.values()):
        others = _other_facts(study, relation, settings.erase_others)
        table = erase_effects(
            study.host.model,
            study.ask([*study.some_facts(relation, settings.erase_facts, "erasures"), *others]),
            found,
            active,
            top=settings.erase_top,
            value=settings.erase_value,
            seed=settings.seed,
            memory_budget=study.memory_budget,
            progress=tick,
        )
    write_records(path, {name: table[name] for name in ERASE_SCHEMA.names}, ERASE_SCHEMA)


def _erase_tables(study: Study) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    records = study.all_records(ERASURES)
    counts = records[records["neurons"] == "found"].groupby("relation")["n_neurons"].first()
    rows = [{"relation": relation, "neurons": int(counts.get(relation, 0))} for relation in study.relations()]
    tables = {"erased": pd.DataFrame(rows)}
    if len(records):
        how = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
        for name, by_relation in (("table5", False), ("table5_by_relation", True)):
            table = edit_table(records, by_relation=by_relation, **how).rename(columns={"n_facts": "n"})
            table = with_control(table)
            of_found = table["neurons"] == "found"
            relations = table["relation"] if by_relation else [""] * len(table)
            cells = zip(relations, table["asked"], table["measure"], strict=True)
            paper = np.array([TABLE_5.get(cell, np.nan) for cell in cells])
            tables[name] = table.assign(paper=np.where(of_found, paper, np.nan))
    return tables


# --- other facts ------------------------------------------------------------------------------------------


def _same_facts(study: Study, relation: str, n: int) -> list[Fact]:
    """Return facts of the relation, of the source, drawn at random."""
    mine = [fact for fact in study.source if fact.relation == relation and fact.templates]
    chosen = study.generator("edits", relation, "True").choice(len(mine), size=min(n, len(mine)), replace=False)
    return [mine[i] for i in sorted(chosen.tolist())]


def _other_facts(study: Study, relation: str, n: int) -> list[Fact]:
    return study.other_facts(relation, n, "edits", relation, "False")


def _other_facts_of(study: Study, relation: str, n_same: int, n_others: int) -> list[Fact]:
    """Return other facts, of this relation and of others."""
    return [*_same_facts(study, relation, n_same), *_other_facts(study, relation, n_others)]


def _update_passes(study: Study, shard: Shard) -> Passes:
    """Activations of the updated facts; all questions and other facts without edits, and with each of them."""
    settings, relation = study.settings, shard.relation
    n_asked = max(1, len(study.asked_facts(relation)))
    answered = study.run.noted("answers", Shard(relation)) is not None
    n_known = len(answers.known_facts(study, relation)) if answered else n_asked
    n = min(settings.update_facts, n_known, round(n_asked * study.share_with_neurons(relation)))
    if not n:
        return Passes()
    others = study.n_rows_of(_other_facts_of(study, relation, settings.update_others, settings.update_others))
    own = n * study.n_rows(relation) / n_asked
    questions = 2 * own * (1.0 + _held_out_share(study, relation) + (relation in dict(_pairs(settings.inverses))))
    return Passes(whole=own + (others + questions) + N_KINDS * (questions + n * others))


def _held_out_share(study: Study, relation: str) -> float:
    """Return how many held-out wordings a fact of a relation has for each of the others."""
    own, held_out = (
        sum(len(fact.templates) for fact in facts if fact.relation == relation)
        for facts in (study.source, study.held_out)
    )
    return held_out / max(1, own)


def _erase_passes(study: Study, shard: Shard) -> Passes:
    """All facts that are asked as they are, and with the relation erased by each kind of neurons."""
    relation, settings = shard.relation, study.settings
    if not study.share_with_neurons(relation):
        return Passes()
    own = study.n_rows_of(study.some_facts(relation, settings.erase_facts, "erasures"))
    return Passes(whole=(1 + N_KINDS) * (own + study.n_rows_of(_other_facts(study, relation, settings.erase_others))))


UPDATES = Stage(
    name="updates",
    title="Updating facts; Table 6",
    make=_make_updates,
    tables=_update_tables,
    shown={"table6": Shown("Table 6: facts updated to another object", ("changed", "success", "top5", RISE))},
    needs=(refining.STAGE, answers.STAGE),
    settings=(
        "seed", "update_facts", "update_others", "lambdas", "update_scaling", "update_signed", "max_share", "inverses",
        "synonyms",
    ),
    across=True,
    passes=_update_passes,
)  # fmt: skip
ERASURES = Stage(
    name="erasures",
    title="Erasing relations; Table 5",
    make=_make_erasures,
    tables=_erase_tables,
    shown={"table5": Shown("Table 5: relations erased", ("changed", *_PERPLEXITIES))},
    needs=(refining.STAGE,),
    settings=("seed", "erase_top", "erase_value", "erase_facts", "erase_others"),
    across=True,
    passes=_erase_passes,
)
