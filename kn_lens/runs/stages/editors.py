"""Stage ``editors``: editors beside one another on known facts of the run.

It runs on request alone (``--stage editors``). Some known facts of each relation (``editor_facts``) get the object of
another fact of the relation, by each editor and one fact at a time: ``kn_lens.compare_edits``, with both controls.
Editors see the first ``editor_wordings`` templates of a fact, and at least one fewer than it has. Its other templates,
and those that the run holds out, are held-out wordings. Other facts are asked in one template each.

The neurons of ``KN`` are found in the wordings that editors see, by ``min_prompts`` of the settings, or by as many
prompts as the fact with the fewest has.

Editors of whole layers edit causal models without experts; in other models ``KN`` is compared with its presets. Edits
among experts have no controls. The second moments that ROME, MEMIT and AlphaEdit take are of the run's ``texts``, or
without them of the stated sample of ``second_moments``; each process computes them once.

Records: the rows of ``compare_edits``, without ``seconds``, which differ each time. An edit that an editor refuses
counts as one that changes nothing, and has its ``why``. A known fact without a new answer that it can be asked for has
one row with an empty ``editor``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kn_lens._core.bootstrap import Statistic, WeightedMean, bootstrap_table, ratio, with_control
from kn_lens._core.intervals import SHARE
from kn_lens.edits import (
    HELD_OUT,
    OTHER_RELATIONS,
    OWN,
    SAME_RELATION,
    Editor,
    NamedEditors,
    Question,
    SecondMoments,
    answerable,
    compare_edits,
    edit_table,
    second_moments,
)
from kn_lens.facts import Fact
from kn_lens.prompts import first_prompts
from kn_lens.runs.context import RunContext
from kn_lens.runs.corpora import corpus_of
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.answers import ANSWERS, known_facts
from kn_lens.runs.stages.updates import ANSWER_FIELDS, objects_by_language, other_facts, with_missing_values

if TYPE_CHECKING:
    import pandas as pd

OTHERS = "other facts"
"""Facts of the relation and of other relations together, as the tables name them."""
N_TRIALS = 3
"""Edits of an editor: its own, and the controls."""
STEPS_PER_EDIT = 25
"""Steps of a search, as editors take by default, each a pass with gradients of the prompts that an editor sees."""

EDITORS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("subject", pa.string()),
        ("object", pa.string()),
        ("key", pa.string()),
        ("new_object", pa.string()),
        ("editor", pa.string()),
        ("neuron_set", pa.string()),
        ("question", pa.string()),
        ("n_neurons", pa.int32()),
        ("norm", pa.float64()),
        ("edit_bytes", pa.int64()),
        *ANSWER_FIELDS,
    ]
)
KEPT = Statistic(
    (WeightedMean("kept", "n_prompts"), WeightedMean("right_before", "n_prompts")),
    ratio,
    bounds=SHARE,
)
"""Share of the right answers to other facts that an edit leaves right."""


# --- records --------------------------------------------------------------------------------------


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings, relation = context.settings, shard.relation
    others = context.make_prompts(other_facts(context, relation, settings.editor_others))
    updates, held_out, why = _plan(context, relation)
    rows: list[dict[str, Any]] = []
    if updates:
        effects = compare_edits(
            context.host,
            updates,
            _editors(context, updates),
            questions={HELD_OUT: held_out},
            others=first_prompts(others),
            controls=not context.host.layout.has_experts,
            refused="unchanged",
            seed=settings.seed,
            memory_budget=context.memory_budget,
            progress=progress,
        )
        rows += effects.to_dict("records")
    for fact, reason in why.items():
        names = {"relation": fact.relation, "subject": fact.subject, "object": fact.object, "key": fact.key}
        rows.append({**names, "why": reason})
    write_rows(path, [with_missing_values(row, EDITORS_SCHEMA) for row in rows], EDITORS_SCHEMA)


def _editors(context: RunContext, facts: Iterable[Fact]) -> Sequence[Editor]:
    """Return the editors of some facts; their second moments are computed once for all shards."""
    settings = context.settings
    fewest = min(len(fact.templates) for fact in facts)
    named = NamedEditors(
        names=settings.editors,
        rome_layer=settings.rome_layer,
        memit_layers=settings.memit_layers,
        min_prompts=min(settings.min_prompts, fewest),
    )

    def moments(layers: list[int]) -> SecondMoments:
        def compute() -> SecondMoments:
            texts = None if settings.texts is None else corpus_of(settings.texts, [], context.source).sentences
            return second_moments(context.host, texts, layers=layers, memory_budget=context.memory_budget)

        return context.kept("second moments for editors", compute)

    return named.editors(context.host, moments)


def _plan(context: RunContext, relation: str) -> tuple[dict[Fact, str], dict[Fact, Question], dict[Fact, str]]:
    """Draw the facts to edit.

    Returns:
        The new object of each, with the templates that editors see; questions in held-out wordings; and for each fact
        that was drawn and cannot be edited, the reason.
    """
    settings = context.settings
    generator = context.generator("editors", relation)
    known = [fact for fact in known_facts(context, relation) if fact.subject]
    objects = objects_by_language(context.source, relation)
    more_wordings = {fact: fact.templates for fact in context.held_out if fact.relation == relation}
    updates: dict[Fact, str] = {}
    held_out: dict[Fact, Question] = {}
    why: dict[Fact, str] = {}
    for index in generator.permutation(len(known)):
        if len(updates) == settings.editor_facts:
            break
        fact = known[index]
        candidates = [name for name in objects[fact.language] if name != fact.object]
        if not candidates:
            why[fact] = f"There is no other object of {relation}."
            continue
        new_object = candidates[generator.integers(len(candidates))]
        fitting = answerable(context.host, {fact: Question(fact, new_object)})
        if not fitting:
            why[fact] = f"No template takes {new_object!r} too."
            continue
        usable = fitting[fact].query.templates
        n_seen = min(settings.editor_wordings, max(1, len(usable) - 1))
        updates[replace(fact, templates=usable[:n_seen])] = new_object
        unseen = (*usable[n_seen:], *more_wordings.get(fact, ()))
        if unseen:
            query = replace(fact, templates=tuple(dict.fromkeys(unseen)))
            held_out |= answerable(context.host, {fact: Question(query, new_object)})
    return updates, held_out, why


# --- tables ---------------------------------------------------------------------------------------


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return what each editor does with the edited and the other facts, and how many edits it refused."""
    import pandas as pd

    records = context.all_records(EDITORS)
    measured = records.loc[records["editor"] != ""]
    if not len(measured):
        return {}
    n_resamples, seed = context.settings.n_resamples, context.settings.seed
    parts = []
    for _, group in measured.groupby("question", sort=False):
        # The columns of the new answer hold NaN for other facts: each question has its own set of measures.
        parts.append(edit_table(group.dropna(axis="columns", how="all"), n_resamples=n_resamples, seed=seed))
    table = pd.concat(parts, ignore_index=True).rename(columns={"n_facts": "n"})
    kept = bootstrap_table(
        others_together(measured), ["editor", "neuron_set"], KEPT, n_resamples=n_resamples, seed=seed
    )
    kept.insert(2, "measure", "kept")
    kept.insert(2, "question", OTHERS)
    table = with_control(pd.concat([table, kept], ignore_index=True))
    return {"editors": table, "editors_refused": _refused(measured)}


def others_together(records: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row for each edit, ``neuron_set`` and fact about all other facts, with ``kept``, of those right before.

    Args:
        records: of the stage, of measured facts.
    """
    rows = records.loc[records["question"].isin([SAME_RELATION, OTHER_RELATIONS])]
    weighted = rows.assign(
        right_before=rows["right_before"] * rows["n_prompts"],
        kept=(rows["right_before"] - rows["lost"]) * rows["n_prompts"],
    )
    labels = ["relation", "key", "editor", "neuron_set"]
    sums = weighted.groupby(labels, sort=False)[["right_before", "kept", "n_prompts"]].sum().reset_index()
    return sums.assign(right_before=sums["right_before"] / sums["n_prompts"], kept=sums["kept"] / sums["n_prompts"])


def _refused(measured: "pd.DataFrame") -> "pd.DataFrame":
    """Return for each editor the number of edits, and of those that it refused, with its first reason."""
    import pandas as pd

    own = measured.loc[(measured["neuron_set"] == "found") & (measured["question"] == OWN)]
    rows = []
    for editor, of_editor in own.groupby("editor", sort=False):
        refused = of_editor.loc[of_editor["why"] != "", "why"]
        reason = refused.iloc[0] if len(refused) else ""
        rows.append({"editor": editor, "n_facts": len(of_editor), "n_refused": len(refused), "why": reason})
    return pd.DataFrame(rows)


# --- passes ---------------------------------------------------------------------------------------


def _passes(context: RunContext, shard: Shard) -> Passes:
    """Count the searches of the editors, and all questions and other facts, without and with each edit."""
    settings, relation = context.settings, shard.relation
    n_queried = max(1, len(context.queried_facts(relation)))
    n_facts = min(settings.editor_facts, n_queried)
    if context.run.manifest(ANSWERS.name, Shard(relation)) is not None:
        n_facts = min(n_facts, len(known_facts(context, relation)))
    n_editors = len(settings.editors) or len(NamedEditors().names_for(context.host))
    n_rows = context.n_rows(relation) / n_queried
    n_asked = 2 * n_rows + 2 * settings.editor_others
    n_seen = min(n_rows, settings.editor_wordings)
    searched = n_facts * n_editors * STEPS_PER_EDIT * n_seen
    return Passes(whole=n_asked + N_TRIALS * n_editors * n_facts * n_asked, gradients=searched)


EDITORS = Stage(
    name="editors",
    title="Editors beside one another",
    make=_make,
    tables=_tables,
    shown={
        "editors": TableDisplay(
            "Editors: known facts given another object. Control: the same rows of change in random places",
            ("success", "kept"),
        )
    },
    needs=(ANSWERS,),
    settings=(
        "seed",
        "editors",
        "editor_facts",
        "editor_wordings",
        "editor_others",
        "rome_layer",
        "memit_layers",
        "texts_digest",
        "min_prompts",
    ),
    across=True,
    passes=_passes,
)
"""Editors on known facts; records of each edit and question, tables ``editors`` and ``editors_refused``."""
