"""Stages ``syntax_neurons`` and ``syntax``: what the same method finds for grammar, as a control.

Niu et al. (2024, "What does the Knowledge Neuron Thesis Have to do with Knowledge?") localise syntactic phenomena in
the way facts are localised: what is found for facts says something about knowledge only as far as it differs. Here a
phenomenon takes the place of a relation and a form that of a fact (``minimal_pairs``): attributed, refined, suppressed
and amplified with the same settings, its right word being the answer. The facts that forms are compared with are drawn
once for all of them.

Records of ``syntax_neurons``: as those of ``neurons``, the phenomenon as ``relation``; kinds ``found`` and ``random``.

Records of ``syntax``, one for each factor, kind of neurons, form, and fact that takes part:

    neurons_of  read_on
    syntax      syntax    the form's neurons on its own sentences
    syntax      facts     the form's neurons on a fact
    facts       syntax    a fact's neurons on the form's sentences

with ``phenomenon`` and ``form`` (a key); ``relation`` and ``fact`` (a key), empty where there is none; ``neurons``,
``factor``, ``n_neurons``, ``n_prompts``; ``before`` and ``after``, mean probabilities of the answer; and, read on the
form, ``wrong_before`` and ``wrong_after``, those of the wrong word, and ``accuracy_before`` and ``accuracy_after``, the
share of sentences in which the right word is the more probable.
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

from kn_lens._bootstrap import change_ratio, share_of, summed_up, with_control
from kn_lens._budget import Budget
from kn_lens._reading import Change, Ticks, read, read_changes
from kn_lens._refining import prompts_by_fact
from kn_lens.attribution import attribute
from kn_lens.experiments import modulation, phenomena, refining
from kn_lens.experiments.minimal_pairs import wrong_form
from kn_lens.experiments.overlap_tables import table_2
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import Shown, Stage, Study, Tick, neuron_sets, write_records
from kn_lens.experiments.sweep import passes_of
from kn_lens.facts import Fact
from kn_lens.interventions import Amplify
from kn_lens.neuron_sets import NeuronSet
from kn_lens.neurons import random_neurons
from kn_lens.prompts import PromptBatch

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("found", "random")
FACTORS = modulation.FACTORS
SYNTAX, FACTS = "syntax", "facts"
READINGS = ((SYNTAX, SYNTAX), (SYNTAX, FACTS), (FACTS, SYNTAX))
"""Whose neurons, and on what they are read."""
OWN, OTHER, SPECIFIC = "own", "other", "own - other"

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("neurons_of", "read_on", "phenomenon", "form", "relation", "fact")),
        ("neurons", pa.string()),
        ("factor", pa.float64()),
        *((name, pa.int32()) for name in ("n_neurons", "n_prompts")),
        *((name, pa.float64()) for name in ("before", "after", "wrong_before", "wrong_after")),
        *((name, pa.float64()) for name in ("accuracy_before", "accuracy_after")),
    ]
)


# --- neurons --------------------------------------------------------------------------------------


def _make_neurons(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    settings, forms = study.settings, phenomena.asked_forms(study, shard.part)
    found: Mapping[Fact, NeuronSet] = {}
    thresholds: Mapping[str, float] = {}
    if forms:
        attr = attribute(
            study.host.model,
            study.ask(forms),
            quadrature=settings.quadrature,
            n_steps=settings.n_steps,
            tolerance=settings.tolerance,
            keep=settings.keep,
            memory_budget=study.memory_budget,
            progress=tick,
        )
        refinement = refining.refined(study, attr, settings.attr_threshold)
        found, thresholds = refinement.neurons, {"found": refinement.share_threshold[shard.part]}
    random = {form: random_neurons(neurons, study.host, study.seeds(form.key)) for form, neurons in found.items()}
    refining.write_sets(path, {"found": found, "random": random}, thresholds)


def _neuron_tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return Table 2 of the phenomena, to be read beside that of the facts."""
    sets: dict[str, dict[str, list[NeuronSet]]] = {kind: {} for kind in KINDS}
    for shard in phenomena.shards_of(study):
        records = study.records(NEURONS.name, shard)
        for kind in KINDS if len(records) else ():
            sets[kind][shard.part] = list(neuron_sets(records, kind).values())
    if not sets["found"]:
        return {}
    tables = table_2(sets, n_resamples=study.settings.n_resamples, seed=study.settings.seed)
    return {f"syntax_{name}": table.drop(columns="paper") for name, table in tables.items()}


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """Prompts of several facts or forms, and what the model answers while nothing is done to it."""

    prompts: PromptBatch
    of: Mapping[Fact, Any]
    before: Mapping[Fact, Float[np.ndarray, " prompt"]]

    @classmethod
    def by(cls, study: Study, facts: Sequence[Fact], asked: Sequence[Fact], tick: Ticks) -> "_Asked":
        """Ask ``asked``, which go by the names of ``facts``."""
        prompts = study.ask(asked)
        of = dict(zip(facts, prompts_by_fact(prompts).values(), strict=True))
        clean = read(study.host, prompts, [], Budget.of(study.host, study.memory_budget), tick).prob
        return cls(prompts, of, {fact: clean[chosen.numpy()] for fact, chosen in of.items()})

    def after(
        self, study: Study, changes: Sequence[tuple[Fact, NeuronSet]], factor: float, tick: Ticks
    ) -> list[Float[np.ndarray, " prompt"]]:
        """Return the answers of each fact while these neurons are multiplied."""
        sizes = [len(self.of[fact]) for fact, _ in changes]
        sets = [neurons for (_, neurons), size in zip(changes, sizes, strict=True) for _ in range(size)]
        chosen = torch.cat([self.of[fact] for fact, _ in changes]).to(self.prompts.tokens.device)
        change = Change.of(study.host, chosen, self.prompts.select(chosen), Amplify(sets, factor=factor))
        _, (log_prob,) = read_changes(study.host, self.prompts, [change], study.memory_budget, tick)
        return np.split(np.exp(log_prob), np.cumsum(sizes)[:-1])


def _make(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    forms = phenomena.asked_forms(study, shard.part)
    rows = list(_measured(study, shard, forms, compared_facts(study), tick)) if forms else []
    write_records(path, {name: [row.get(name) for row in rows] for name in SCHEMA.names}, SCHEMA)


def compared_facts(study: Study) -> list[Fact]:
    """Return the facts that all forms are compared with, drawn from those asked."""
    facts = [fact for relation in study.relations() for fact in study.asked_facts(relation)]
    n = min(len(facts), study.settings.syntax_facts)
    chosen = study.generator("syntax", "facts").choice(len(facts), size=n, replace=False)
    return [facts[i] for i in sorted(chosen.tolist())]


def _measured(
    study: Study, shard: Shard, forms: Sequence[Fact], facts: Sequence[Fact], tick: Tick
) -> Iterator[dict[str, Any]]:
    ticks = Ticks(tick, 0)
    right = _Asked.by(study, forms, forms, ticks)
    wrong = _Asked.by(study, forms, [wrong_form(form) for form in forms], ticks)
    known = _Asked.by(study, facts, facts, ticks)
    asked = {SYNTAX: (right, wrong), FACTS: (known,)}
    n_own = right.prompts.n_rows + wrong.prompts.n_rows
    # Each reading has a clean pass of its own, and a changed one of every row for everything that is done to it.
    n_each = n_own * (2 + 1 + len(facts)) + known.prompts.n_rows * (1 + len(forms))
    ticks.total = ticks.done + len(KINDS) * len(FACTORS) * n_each
    records = study.records(NEURONS.name, shard)
    for kind in KINDS:
        of_key = neuron_sets(records, kind)
        sets = {form: of_key[form.key] for form in forms}
        for relation in dict.fromkeys(fact.relation for fact in facts):
            sets |= study.neurons(kind, relation)
        for factor in FACTORS:
            for neurons_of, read_on in READINGS:
                pairs = [(form, fact) for form in forms for fact in ([form] if neurons_of == read_on else facts)]
                owners = [form if neurons_of == SYNTAX else fact for form, fact in pairs]
                measured = [form if read_on == SYNTAX else fact for form, fact in pairs]
                changes = [(one, sets[owner]) for one, owner in zip(measured, owners, strict=True)]
                answers = [one.after(study, changes, factor, ticks) for one in asked[read_on]]
                for (form, fact), (read_fact, neurons), *after in zip(pairs, changes, *answers, strict=True):
                    yield {
                        "neurons_of": neurons_of,
                        "read_on": read_on,
                        "phenomenon": shard.part,
                        "form": form.key,
                        "relation": "" if fact is form else fact.relation,
                        "fact": "" if fact is form else fact.key,
                        "neurons": kind,
                        "factor": factor,
                        "n_neurons": len(neurons),
                        **_compared([one.before[read_fact] for one in asked[read_on]], after),
                    }


def _compared(
    before: Sequence[Float[np.ndarray, " prompt"]], after: Sequence[Float[np.ndarray, " prompt"]]
) -> dict[str, float]:
    """Return the means of the answer's probabilities, and of a form's two words how they stand to each other."""
    row: dict[str, float] = {"n_prompts": len(before[0])}
    for when, (answer, *wrong) in (("before", before), ("after", after)):
        row[when] = answer.mean()
        for other in wrong:
            row |= {f"wrong_{when}": other.mean(), f"accuracy_{when}": (answer > other).mean()}
    return row


# --- tables ---------------------------------------------------------------------------------------

MEASURES = {
    "accuracy": share_of("accuracy_after", "n_prompts"),
    "change of P(right)": change_ratio(),
    "change of P(wrong)": change_ratio("wrong_before", "wrong_after"),
}


def _tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return what a form's neurons do to it, and how much less to facts; the same of facts, and how much to grammar."""
    import pandas as pd

    records = study.all_records(STAGE)
    if records.empty:
        return {}
    how: dict[str, Any] = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    own = records.query("neurons_of == read_on == @SYNTAX")
    own = own.assign(relation=own["phenomenon"])
    clean = own.query("factor == @FACTORS[0]").assign(factor=1.0)
    clean["accuracy_after"] = clean["accuracy_before"]
    tables = {}
    for name, by_relation in (("syntax", False), ("syntax_by_phenomenon", True)):
        parts = []
        for measure, statistic in MEASURES.items():
            rows = pd.concat([clean, own], ignore_index=True) if measure == "accuracy" else own
            labels = ["measure", "factor", "neurons"]
            parts.append(summed_up(rows.assign(measure=measure), labels, statistic, by_relation=by_relation, **how))
        tables[name] = with_control(pd.concat(parts, ignore_index=True)).rename(columns={"relation": "phenomenon"})
    effects = study.all_records(modulation.EFFECTS)
    compared = pd.concat([_of_forms(records), _of_facts(records, effects)], ignore_index=True)
    measures = {one: change_ratio(f"before_{one}", f"after_{one}", f"n_prompts_{one}") for one in (OWN, OTHER)}
    measures[SPECIFIC] = measures[OWN] - measures[OTHER]
    parts = [
        summed_up(compared.assign(read_on=read_on), ["factor", "neurons_of", "neurons", "read_on"], measure, **how)
        for read_on, measure in measures.items()
    ]
    tables["syntax_against_facts"] = with_control(pd.concat(parts, ignore_index=True))
    return tables


def _of_forms(records: "pd.DataFrame") -> "pd.DataFrame":
    """Return one row a form: its neurons on itself, and on all facts."""
    mine = records.query("neurons_of == @SYNTAX")
    mine = mine.assign(relation=mine["phenomenon"], key=mine["form"])
    return _wide(mine.query("read_on == @SYNTAX"), mine.query("read_on == @FACTS")).assign(neurons_of=SYNTAX)


def _of_facts(records: "pd.DataFrame", effects: "pd.DataFrame") -> "pd.DataFrame":
    """Return one row a fact: its neurons on itself, as the stage ``effects`` has it, and on all forms."""
    other = records.query("neurons_of == @FACTS")
    other = other.assign(key=other["fact"])
    own = effects.query("facts == @OWN and neurons in @KINDS and key in @other.key")
    return _wide(own, other).assign(neurons_of=FACTS)


def _wide(own: "pd.DataFrame", other: "pd.DataFrame") -> "pd.DataFrame":
    """Return the means of each fact's or form's prompts, and of the prompts of all others together, side by side."""
    labels = ["relation", "key", "neurons", "factor"]
    totals = other[["before", "after"]].mul(other["n_prompts"], axis=0).assign(n_prompts=other["n_prompts"])
    totals = totals.groupby([other[name] for name in labels], sort=False).sum().reset_index()
    totals[["before", "after"]] = totals[["before", "after"]].div(totals["n_prompts"], axis=0)
    columns = [*labels, "before", "after", "n_prompts"]
    return own[columns].merge(totals[columns], on=labels, suffixes=(f"_{OWN}", f"_{OTHER}"), validate="one_to_one")


# --- passes ---------------------------------------------------------------------------------------


def _n_asked(study: Study, shard: Shard) -> tuple[int, int]:
    """Return how many forms of a phenomenon are asked, and in how many rows; until it is known, at most, of a token."""
    settings = study.settings
    if study.run.noted(phenomena.STAGE.name, shard) is not None:
        forms = phenomena.asked_forms(study, shard.part)
        return len(forms), study.ask(forms).n_rows if forms else 0
    sizes = Counter(pair.parts[1:3] for pair in phenomena.pairs_of(study)[shard.part] if pair.parts is not None)
    largest = [size for _, size in sizes.most_common(settings.syntax_forms) if size >= settings.min_prompts]
    return len(largest), sum(min(size, settings.syntax_sentences) for size in largest)


def _passes_of_neurons(study: Study, shard: Shard) -> Passes:
    return passes_of(study, _n_asked(study, shard)[1])


def _passes(study: Study, shard: Shard) -> Passes:
    """Each reading has a clean pass of its own, and a changed one of every row under every set of some neurons."""
    n_forms, n_own = _n_asked(study, shard)  # rows with the right words, and as many with the wrong ones
    if not n_forms:
        return Passes()
    facts = compared_facts(study)
    n_known = study.n_rows_of(facts)
    changed = 0.0
    for kind in KINDS:
        forms, found = _with_neurons(study, shard, kind, n_forms, n_own, facts)
        changed += len(forms) * n_known + sum(forms) * 2 + found * 2 * n_own
    clean = 2 * n_own + n_known
    n_times = len(KINDS) * len(FACTORS)
    return Passes(whole=clean + n_times * (clean + 2 * n_own), resumed=len(FACTORS) * changed)


def _with_neurons(
    study: Study, shard: Shard, kind: str, n_forms: int, n_rows: int, facts: Sequence[Fact]
) -> tuple[list[float], int]:
    """Return how many rows each form with neurons has, and how many facts have some: all, while that is not known."""
    rows: list[float] = [n_rows / n_forms] * n_forms
    n_facts = len(facts)
    if all(study.run.noted(name, shard) is not None for name in (phenomena.STAGE.name, NEURONS.name)):
        of_key = neuron_sets(study.records(NEURONS.name, shard), kind)
        rows = [study.n_rows_of([form]) for form in phenomena.asked_forms(study, shard.part) if of_key[form.key]]
    relations = dict.fromkeys(fact.relation for fact in facts)
    if all(study.run.noted(refining.STAGE.name, Shard(relation)) is not None for relation in relations):
        found = {fact for one in relations for fact, neurons in study.neurons(kind, one).items() if neurons}
        n_facts = sum(fact in found for fact in facts)
    return rows, n_facts


NEURONS = Stage(
    name="syntax_neurons",
    title="Neurons of syntactic phenomena",
    make=_make_neurons,
    tables=_neuron_tables,
    shown={"syntax_table2": Shown("Table 2 of grammar: a phenomenon in a relation's place, a form in a fact's")},
    needs=(phenomena.STAGE,),
    settings=(
        "seed", "quadrature", "n_steps", "tolerance", "keep", "attr_threshold", "share_threshold", "share_step",
        "max_moves", "min_prompts",
    ),
    shards=phenomena.shards_of,
    passes=_passes_of_neurons,
)  # fmt: skip
STAGE = Stage(
    name="syntax",
    title="Syntactic phenomena beside facts",
    make=_make,
    tables=_tables,
    shown={
        "syntax": Shown(
            "Grammar: what a form's neurons do to the right and the wrong word, relative, and its accuracy"
        ),
        "syntax_against_facts": Shown(
            "Grammar beside facts: change of P(answer), relative, on itself and on the others"
        ),
    },
    needs=(phenomena.STAGE, NEURONS, refining.STAGE, modulation.EFFECTS),
    settings=("seed", "syntax_facts"),
    shards=phenomena.shards_of,
    passes=_passes,
)
