"""Stages ``syntax_neurons`` and ``syntax``: the neurons that the same method finds for grammar, as a control.

Niu et al. (2024, "What does the Knowledge Neuron Thesis Have to do with Knowledge?") localise syntactic phenomena with
the method that localises facts: a finding about facts says something about knowledge only as far as it differs from the
finding about grammar. Here a phenomenon takes the place of a relation and a form that of a fact (``minimal_pairs``). A
form is attributed, refined, suppressed and amplified with the same settings; its answer is the right word. The facts
that forms are compared with are drawn once for all forms.

Records of ``syntax_neurons``: as those of ``neurons``, with the phenomenon as ``relation``; kinds ``found`` and
``random``.

Records of ``syntax``, one row for each factor, kind of neurons, form, and fact where one takes part:

    neurons_of    read_on
    syntax        syntax     the form's neurons, on its own sentences
    syntax        facts      the form's neurons, on a fact
    facts         syntax     a fact's neurons, on the form's sentences

    phenomenon, form                      the form is a key
    relation, fact                        the fact is a key; both are empty where no fact takes part
    neuron_set, factor, n_neurons, n_prompts
    before, after                         mean probabilities of the answer
    wrong_before, wrong_after             read on the form: mean probabilities of the wrong word
    accuracy_before, accuracy_after       read on the form: share of sentences with the right word more probable
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from kn_lens._core.bootstrap import bootstrap_table, change_ratio, fact_share, with_control
from kn_lens.attribution import attribute
from kn_lens.facts import Fact
from kn_lens.hosts import Budget
from kn_lens.interventions import Amplify, Change, Ticks, score_answers, score_answers_under
from kn_lens.neurons import NeuronSet, prompts_by_fact
from kn_lens.prompts import PromptBatch
from kn_lens.runs.context import RunContext, neuron_sets, sample_in_order
from kn_lens.runs.directory import Shard
from kn_lens.runs.minimal_pairs import wrong_form
from kn_lens.runs.overlap_tables import table_2
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.attributions import attribution_passes
from kn_lens.runs.stages.interventions import EFFECTS, FACTORS
from kn_lens.runs.stages.neurons import NEURONS, random_controls, refine_scores, write_sets
from kn_lens.runs.stages.syntax_pairs import (
    SYNTAX_PAIRS,
    phenomenon_pairs,
    phenomenon_shards,
    queried_forms,
)

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("found", "random")
OF_SYNTAX, OF_FACTS = "syntax", "facts"
READINGS = ((OF_SYNTAX, OF_SYNTAX), (OF_SYNTAX, OF_FACTS), (OF_FACTS, OF_SYNTAX))
"""Whose neurons are multiplied, and whose answers are read."""
OWN, OTHER, SPECIFIC = "own", "other", "own - other"

SYNTAX_SCHEMA = pa.schema(
    [
        ("neurons_of", pa.string()),
        ("read_on", pa.string()),
        ("phenomenon", pa.string()),
        ("form", pa.string()),
        ("relation", pa.string()),
        ("fact", pa.string()),
        ("neuron_set", pa.string()),
        ("factor", pa.float64()),
        ("n_neurons", pa.int32()),
        ("n_prompts", pa.int32()),
        ("before", pa.float64()),
        ("after", pa.float64()),
        ("wrong_before", pa.float64()),
        ("wrong_after", pa.float64()),
        ("accuracy_before", pa.float64()),
        ("accuracy_after", pa.float64()),
    ]
)


# --- neurons --------------------------------------------------------------------------------------


def _make_neurons(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    settings, phenomenon = context.settings, shard.part
    forms = queried_forms(context, phenomenon)
    found: Mapping[Fact, NeuronSet] = {}
    thresholds: Mapping[str, float] = {}
    if forms:
        scores = attribute(
            context.host,
            context.make_prompts(forms),
            quadrature=settings.quadrature,
            n_steps=settings.n_steps,
            tolerance=settings.tolerance,
            keep=settings.keep,
            memory_budget=context.memory_budget,
            progress=progress,
        )
        refinement = refine_scores(context, scores, settings.attr_threshold)
        found = refinement.neurons
        thresholds = {"found": refinement.share_threshold[phenomenon]}
    write_sets(path, {"found": found, "random": random_controls(context, found)}, thresholds)


def _neuron_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return Table 2 of the phenomena, to compare with Table 2 of the facts."""
    sets: dict[str, dict[str, list[NeuronSet]]] = {}
    for kind in KINDS:
        sets[kind] = {}
        for shard in phenomenon_shards(context):
            records = context.records(SYNTAX_NEURONS.name, shard)
            if len(records):
                sets[kind][shard.part] = list(neuron_sets(records, kind).values())
    if not sets["found"]:
        return {}
    tables = {}
    settings = context.settings
    for name, table in table_2(sets, n_resamples=settings.n_resamples, seed=settings.seed).items():
        tables[f"syntax_{name}"] = table.drop(columns="paper")
    return tables


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Queries:
    """Prompts of several facts or forms, with the clean answers of the model.

    Attributes:
        prompts: the prompts of all of them.
        prompt_ids: by fact, the numbers of its prompts.
        before: by fact, the probability of the answer in each of its prompts, without intervention.
    """

    prompts: PromptBatch
    prompt_ids: Mapping[Fact, Any]
    before: Mapping[Fact, Float[np.ndarray, " prompt"]]

    @classmethod
    def score(cls, context: RunContext, facts: Sequence[Fact], queries: Sequence[Fact], ticks: Ticks) -> "_Queries":
        """Query the model for ``queries``; the result is by the corresponding ``facts``."""
        prompts = context.make_prompts(queries)
        prompt_ids = dict(zip(facts, prompts_by_fact(prompts).values(), strict=True))
        budget = Budget.of(context.host, context.memory_budget)
        clean = score_answers(context.host, prompts, [], budget, ticks).prob
        before = {fact: clean[chosen.numpy()] for fact, chosen in prompt_ids.items()}
        return cls(prompts, prompt_ids, before)

    def score_amplified(
        self,
        context: RunContext,
        readings: Sequence[tuple[Sequence[tuple[Fact, NeuronSet]], float]],
        ticks: Ticks,
    ) -> list[list[Float[np.ndarray, " prompt"]]]:
        """Return for each reading the probabilities of the answer of each fact with its neurons multiplied.

        Args:
            context: the run.
            readings: facts with their neurons, and the factor; all readings share one clean pass.
            ticks: called with the number of rows that were run.
        """
        host = context.host
        sizes_of_readings, changes = [], []
        for interventions, factor in readings:
            sizes, sets, chosen = [], [], []
            for fact, neurons in interventions:
                n_prompts = len(self.prompt_ids[fact])
                sizes.append(n_prompts)
                sets += [neurons] * n_prompts
                chosen.append(self.prompt_ids[fact])
            prompt_ids = torch.cat(chosen).to(self.prompts.tokens.device)
            prompts = self.prompts.select(prompt_ids)
            changes.append(Change.of(host, prompt_ids, prompts, Amplify(sets, factor=factor)))
            sizes_of_readings.append(sizes)
        _, scores = score_answers_under(host, self.prompts, changes, context.memory_budget, ticks)
        probabilities = []
        for changed, sizes in zip(scores, sizes_of_readings, strict=True):
            probabilities.append(np.split(changed.prob, np.cumsum(sizes)[:-1]))
        return probabilities


def _make(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    forms = queried_forms(context, shard.part)
    rows: list[dict[str, Any]] = []
    if forms:
        rows = list(_effects(context, shard, forms, compared_facts(context), progress))
    write_rows(path, rows, SYNTAX_SCHEMA)


def compared_facts(context: RunContext) -> list[Fact]:
    """Return the facts that all forms are compared with, drawn from the queried facts of all relations."""
    facts: list[Fact] = []
    for relation in context.relations():
        facts += context.queried_facts(relation)
    return sample_in_order(facts, context.settings.syntax_facts, context.generator("syntax", "facts"))


def _effects(
    context: RunContext, shard: Shard, forms: Sequence[Fact], facts: Sequence[Fact], progress: Progress
) -> Iterator[dict[str, Any]]:
    """Yield the records of the effects between the forms of a phenomenon and the facts."""
    ticks = Ticks(progress, 0)
    right_words = _Queries.score(context, forms, forms, ticks)
    wrong_forms = [wrong_form(form) for form in forms]
    wrong_words = _Queries.score(context, forms, wrong_forms, ticks)
    answers = _Queries.score(context, facts, facts, ticks)
    queries = {OF_SYNTAX: (right_words, wrong_words), OF_FACTS: (answers,)}
    # The readings on one kind of answers share a clean pass; each takes one pass of every row for each set of neurons.
    n_readings = len(KINDS) * len(FACTORS)
    n_form_rows = right_words.prompts.n_rows + wrong_words.prompts.n_rows
    n_rows = n_form_rows * (1 + n_readings * (1 + len(facts)))
    n_rows += answers.prompts.n_rows * (1 + n_readings * len(forms))
    ticks.total = ticks.done + n_rows
    readings: list[_Reading] = []
    for kind in KINDS:
        sets = _sets(context, shard, forms, facts, kind)
        for factor in FACTORS:
            for neurons_of, read_on in READINGS:
                pairs = _pairs(forms, facts, with_facts=neurons_of != read_on)
                interventions = []
                for form, fact in pairs:
                    owner = form if neurons_of == OF_SYNTAX else fact
                    read = form if read_on == OF_SYNTAX else fact
                    interventions.append((read, sets[owner]))
                readings.append(_Reading(kind, factor, neurons_of, read_on, pairs, interventions))
    after: dict[_Reading, list[list[Float[np.ndarray, " prompt"]]]] = {reading: [] for reading in readings}
    for name, groups in queries.items():
        on_group = [reading for reading in readings if reading.read_on == name]
        for group in groups:
            amplified = [(reading.interventions, reading.factor) for reading in on_group]
            for reading, probabilities in zip(
                on_group,
                group.score_amplified(context, amplified, ticks),
                strict=True,
            ):
                after[reading].append(probabilities)
    for reading in readings:
        groups = queries[reading.read_on]
        for number, (form, fact) in enumerate(reading.pairs):
            read, neurons = reading.interventions[number]
            before_means = _means("before", [group.before[read] for group in groups])
            after_means = _means("after", [probabilities[number] for probabilities in after[reading]])
            takes_part = fact is not form
            yield {
                "neurons_of": reading.neurons_of,
                "read_on": reading.read_on,
                "phenomenon": shard.part,
                "form": form.key,
                "relation": fact.relation if takes_part else "",
                "fact": fact.key if takes_part else "",
                "neuron_set": reading.kind,
                "factor": reading.factor,
                "n_neurons": len(neurons),
                "n_prompts": len(groups[0].before[read]),
                **before_means,
                **after_means,
            }


@dataclass(frozen=True, eq=False)
class _Reading:
    """What is read under one kind of neurons, multiplied by one factor.

    Attributes:
        kind: of ``KINDS``.
        factor: of ``FACTORS``.
        neurons_of: whose neurons are multiplied.
        read_on: whose answers are read.
        pairs: each form with the fact that takes part, or with itself.
        interventions: for each pair, whose answer is read, and the neurons.
    """

    kind: str
    factor: float
    neurons_of: str
    read_on: str
    pairs: Sequence[tuple[Fact, Fact]]
    interventions: Sequence[tuple[Fact, NeuronSet]]


def _sets(
    context: RunContext, shard: Shard, forms: Sequence[Fact], facts: Sequence[Fact], kind: str
) -> dict[Fact, NeuronSet]:
    """Return the neurons of the forms and of the facts."""
    form_sets = neuron_sets(context.records(SYNTAX_NEURONS.name, shard), kind)
    sets = {form: form_sets[form.key] for form in forms}
    for relation in dict.fromkeys(fact.relation for fact in facts):
        sets |= context.neurons(kind, relation)
    return sets


def _pairs(forms: Sequence[Fact], facts: Sequence[Fact], with_facts: bool) -> list[tuple[Fact, Fact]]:
    """Return each form with each fact; each form with itself where no fact takes part."""
    pairs = []
    for form in forms:
        for fact in facts if with_facts else [form]:
            pairs.append((form, fact))
    return pairs


def _means(when: str, probabilities: Sequence[Float[np.ndarray, " prompt"]]) -> dict[str, float]:
    """Return means over prompts, for the columns ``before`` or ``after``.

    Args:
        when: the column of the answer.
        probabilities: of the answer; for a form also of the wrong word.
    """
    answer, *wrong_words = probabilities
    row: dict[str, float] = {when: answer.mean()}
    for wrong in wrong_words:
        row[f"wrong_{when}"] = wrong.mean()
        row[f"accuracy_{when}"] = (answer > wrong).mean()
    return row


# --- tables ---------------------------------------------------------------------------------------

MEASURES = {
    "accuracy": fact_share("accuracy_after", "n_prompts"),
    "change of P(right)": change_ratio(),
    "change of P(wrong)": change_ratio("wrong_before", "wrong_after"),
}


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the effects of a form's neurons on the form, and the effects of forms and facts on each other."""
    records = context.all_records(SYNTAX)
    if records.empty:
        return {}
    return {
        "syntax": _form_table(context, records, by_relation=False),
        "syntax_by_phenomenon": _form_table(context, records, by_relation=True),
        "syntax_against_facts": _comparison_table(context, records),
    }


def _form_table(context: RunContext, records: "pd.DataFrame", by_relation: bool) -> "pd.DataFrame":
    """Return the effects of a form's neurons on the probabilities of its words, and on its accuracy.

    Factor 1 stands for the accuracy without intervention.
    """
    import pandas as pd

    settings = context.settings
    own = records.query("neurons_of == read_on == @OF_SYNTAX")
    own = own.assign(relation=own["phenomenon"])
    clean = own.query("factor == @FACTORS[0]").assign(factor=1.0)
    clean["accuracy_after"] = clean["accuracy_before"]
    parts = []
    for measure, statistic in MEASURES.items():
        rows = pd.concat([clean, own], ignore_index=True) if measure == "accuracy" else own
        table = bootstrap_table(
            rows.assign(measure=measure),
            ["measure", "factor", "neuron_set"],
            statistic,
            by_relation=by_relation,
            n_resamples=settings.n_resamples,
            seed=settings.seed,
        )
        parts.append(table)
    table = with_control(pd.concat(parts, ignore_index=True))
    return table.rename(columns={"relation": "phenomenon"})


def _comparison_table(context: RunContext, records: "pd.DataFrame") -> "pd.DataFrame":
    """Return the effects of neurons on their own form or fact, on all facts or forms, and the difference."""
    import pandas as pd

    settings = context.settings
    effects = context.all_records(EFFECTS)
    of_forms = _form_effects(records)
    of_facts = _fact_effects(records, effects)
    compared = pd.concat([of_forms, of_facts], ignore_index=True)
    own = change_ratio(f"before_{OWN}", f"after_{OWN}", f"n_prompts_{OWN}")
    other = change_ratio(f"before_{OTHER}", f"after_{OTHER}", f"n_prompts_{OTHER}")
    parts = []
    for read_on, statistic in ((OWN, own), (OTHER, other), (SPECIFIC, own - other)):
        table = bootstrap_table(
            compared.assign(read_on=read_on),
            ["factor", "neurons_of", "neuron_set", "read_on"],
            statistic,
            n_resamples=settings.n_resamples,
            seed=settings.seed,
        )
        parts.append(table)
    return with_control(pd.concat(parts, ignore_index=True))


def _form_effects(records: "pd.DataFrame") -> "pd.DataFrame":
    """Return one row for each form: the effect of its neurons on itself, and on all facts."""
    forms = records.query("neurons_of == @OF_SYNTAX")
    forms = forms.assign(relation=forms["phenomenon"], key=forms["form"])
    own = forms.query("read_on == @OF_SYNTAX")
    other = forms.query("read_on == @OF_FACTS")
    return _side_by_side(own, other).assign(neurons_of=OF_SYNTAX)


def _fact_effects(records: "pd.DataFrame", effects: "pd.DataFrame") -> "pd.DataFrame":
    """Return one row for each fact: the effect of its neurons on itself, from ``effects``, and on all forms."""
    other = records.query("neurons_of == @OF_FACTS")
    other = other.assign(key=other["fact"])
    own = effects.query("scope == @OWN and neuron_set in @KINDS and key in @other.key")
    return _side_by_side(own, other).assign(neurons_of=OF_FACTS)


def _side_by_side(own: "pd.DataFrame", other: "pd.DataFrame") -> "pd.DataFrame":
    """Return the means of each fact's or form's own prompts beside those of the prompts of all others together."""
    labels = ["relation", "key", "neuron_set", "factor"]
    columns = [*labels, "before", "after", "n_prompts"]
    n_prompts = other["n_prompts"]
    weighted = other.assign(before=other["before"] * n_prompts, after=other["after"] * n_prompts)
    by_label = weighted.groupby(labels, sort=False)
    totals = by_label.agg({"before": "sum", "after": "sum", "n_prompts": "sum"})
    means = totals.reset_index()
    n_prompts = means["n_prompts"]
    means = means.assign(before=means["before"] / n_prompts, after=means["after"] / n_prompts)
    return own.reindex(columns=columns).merge(
        means, on=labels, suffixes=(f"_{OWN}", f"_{OTHER}"), validate="one_to_one"
    )


# --- passes ---------------------------------------------------------------------------------------


def _n_queried(context: RunContext, shard: Shard) -> tuple[int, int]:
    """Return the numbers of queried forms and of their rows; upper bounds, for words of one token, until known."""
    settings, phenomenon = context.settings, shard.part
    if context.run.manifest(SYNTAX_PAIRS.name, shard) is not None:
        forms = queried_forms(context, phenomenon)
        return len(forms), context.n_rows_of(forms)
    sizes: Counter[tuple[str, ...]] = Counter()
    for pair in phenomenon_pairs(context)[phenomenon]:
        if pair.parts is not None:
            sizes[pair.parts[1:3]] += 1
    n_forms = n_rows = 0
    for _, size in sizes.most_common(settings.syntax_forms):
        if size >= settings.min_prompts:
            n_forms += 1
            n_rows += min(size, settings.syntax_sentences)
    return n_forms, n_rows


def _neuron_passes(context: RunContext, shard: Shard) -> Passes:
    _, n_rows = _n_queried(context, shard)
    return attribution_passes(context, n_rows)


def _passes(context: RunContext, shard: Shard) -> Passes:
    """Count two clean passes, of scores and of states, and a pass of every row for each set of neurons not empty."""
    n_forms, n_form_rows = _n_queried(context, shard)  # rows with the right word, and as many with the wrong one
    if not n_forms:
        return Passes()
    facts = compared_facts(context)
    n_fact_rows = context.n_rows_of(facts)
    intervened = 0.0
    for kind in KINDS:
        rows_of_forms = _rows_of_forms_with_neurons(context, shard, kind, n_forms, n_form_rows)
        n_facts = _n_facts_with_neurons(context, kind, facts)
        intervened += len(rows_of_forms) * n_fact_rows
        intervened += sum(rows_of_forms) * 2
        intervened += n_facts * 2 * n_form_rows
    clean = 2 * n_form_rows + n_fact_rows
    return Passes(whole=2 * clean, resumed=len(FACTORS) * intervened)


def _rows_of_forms_with_neurons(context: RunContext, shard: Shard, kind: str, n_forms: int, n_rows: int) -> list[float]:
    """Return the number of rows of each form with neurons; of each form, on average, until the neurons are known."""
    for stage in (SYNTAX_PAIRS, SYNTAX_NEURONS):
        if context.run.manifest(stage.name, shard) is None:
            return [n_rows / n_forms] * n_forms
    sets = neuron_sets(context.records(SYNTAX_NEURONS.name, shard), kind)
    rows: list[float] = []
    for form in queried_forms(context, shard.part):
        if sets[form.key]:
            rows.append(context.n_rows_of([form]))
    return rows


def _n_facts_with_neurons(context: RunContext, kind: str, facts: Sequence[Fact]) -> int:
    """Return the number of facts with neurons; of all facts until the neurons are known."""
    sizes: dict[Fact, int] = {}
    for relation in dict.fromkeys(fact.relation for fact in facts):
        sizes_of_relation = context.n_neurons(kind, relation)
        if sizes_of_relation is None:
            return len(facts)
        sizes |= sizes_of_relation
    return sum(bool(sizes.get(fact)) for fact in facts)


SYNTAX_NEURONS = Stage(
    name="syntax_neurons",
    title="Neurons of syntactic phenomena",
    make=_make_neurons,
    tables=_neuron_tables,
    shown={
        "syntax_table2": TableDisplay("Table 2 of grammar: phenomena in place of relations, forms in place of facts")
    },
    needs=(SYNTAX_PAIRS,),
    settings=(
        "seed",
        "quadrature",
        "n_steps",
        "tolerance",
        "keep",
        "attr_threshold",
        "share_threshold",
        "share_step",
        "max_moves",
        "min_prompts",
    ),
    shards=phenomenon_shards,
    passes=_neuron_passes,
)
"""The neurons of each form; records as of ``neurons``, tables ``syntax_table2`` and by relation."""

SYNTAX = Stage(
    name="syntax",
    title="Syntactic phenomena and facts",
    make=_make,
    tables=_tables,
    shown={
        "syntax": TableDisplay("Grammar: accuracy of a form, and relative change of P(right word) and P(wrong word)"),
        "syntax_against_facts": TableDisplay(
            "Grammar and facts: relative change of P(answer), on the form or fact itself and on others"
        ),
    },
    needs=(SYNTAX_PAIRS, SYNTAX_NEURONS, NEURONS, EFFECTS),
    settings=("seed", "syntax_facts"),
    shards=phenomenon_shards,
    passes=_passes,
)
"""Effects between forms and facts; tables ``syntax``, ``syntax_by_phenomenon`` and ``syntax_against_facts``."""
