"""Run directories with known records, written by the library's own writers, for ``kn_lens.compare_runs``."""

from dataclasses import dataclass, replace

import numpy as np

from kn_lens import Fact, NeuronSet
from kn_lens._core.notation import key_columns
from kn_lens.runs.data import digest_of_facts
from kn_lens.runs.directory import Shard, open_run
from kn_lens.runs.settings import Settings
from kn_lens.runs.stage import write_records
from kn_lens.runs.stages.answers import ANSWERS_SCHEMA
from kn_lens.runs.stages.facts import FACTS_SCHEMA
from kn_lens.runs.stages.interventions import EFFECTS_SCHEMA
from kn_lens.runs.stages.neurons import NEURONS_SCHEMA
from kn_lens.runs.stages.order import ON_REQUEST, STAGES

TEMPLATES = ("[X] has [Y].", "[Y], of [X].", "The [Y] of [X].")
KINDS = ("found", "activation", "random")
VERSIONS = {stage.name: stage.version for stage in (*STAGES, *ON_REQUEST)}
TABLES = ("coverage", "answers", "table2", "figures4_5")


@dataclass(frozen=True)
class MadeFact:
    """What a run says of one fact."""

    fact: Fact
    n_right: int
    nll: float
    neurons: dict[str, NeuronSet]
    effects: dict[tuple[float, str, str], tuple[float, float]]  # (factor, facts, neurons) -> before, after
    n_prompts: int = 4
    queried: bool = True

    @property
    def key(self):
        return self.fact.key

    @property
    def known(self):
        return 2 * self.n_right >= self.n_prompts


def made_facts(seed, sizes=(5, 4, 6), n_layers=4, width=6, right=None):
    """Facts of several relations, which share some neurons of a narrow model and few beyond."""
    rng = np.random.default_rng(seed)
    made = []
    for r, n in enumerate(sizes):
        for i in range(n):
            sets = {
                kind: NeuronSet((int(rng.integers(n_layers)), int(rng.integers(r, r + width))) for _ in range(4))
                for kind in KINDS
            }
            effects = {
                (factor, scope, kind): (float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.1, 0.9)))
                for factor in (0.0, 2.0)
                for scope in ("own", "other")
                for kind in KINDS
            }
            fact = Fact(f"subject {i}", f"P{r}", f"object {rng.integers(2)}", TEMPLATES)
            n_right = int(rng.integers(2, 5)) if right is None else right
            made.append(MadeFact(fact, n_right, float(rng.uniform(0, 2)), sets, effects))
    return made


def of_objects(made, like):
    """The same facts as in another list, with the results of this one."""
    return [replace(one, fact=other.fact) for one, other in zip(made, like, strict=True)]


def write_run(
    path, made, *, n_layers=4, kind="masked", tags=None, version="0.1.0", tables=TABLES, requested=None, **settings
):
    """Write a finished run of these facts; ``requested`` are the rows of stages on request, by schema and name."""
    config = {"model": "made", "facts": "made.jsonl", **Settings.of(**settings).as_dict()}
    provenance = {
        "made_from": {
            "versions": {"kn_lens": version},
            "model": {"architecture": "Made", "dtype": "float32", "device": "cpu"},
        },
        "model": {"kind": kind, "n_layers": n_layers, "d_mlp": 99, "n_params": 1000},
        "n_relations": len({one.fact.relation for one in made}),
        **({} if tags is None else {"tags": tags}),
    }
    with open_run(path, config, provenance) as run:
        for relation in dict.fromkeys(one.fact.relation for one in made):
            mine = [one for one in made if one.fact.relation == relation]
            queried_facts = [one for one in mine if one.queried]
            _write(run, FACTS_SCHEMA, "facts", relation, [_fact_row(one) for one in mine])
            if queried_facts:
                rows = [
                    {"relation": relation, "key": one.key, "object": one.fact.object, "n_prompts": one.n_prompts,
                     "n_right": one.n_right, "nll": one.nll}
                    for one in queried_facts
                ]  # fmt: skip
                _write(run, ANSWERS_SCHEMA, "answers", relation, rows)
                rows = [
                    {"relation": relation, "key": one.key, "neuron_set": kind, **key_columns(sets),
                     "share_threshold": 0.7}
                    for kind in KINDS for one in queried_facts for sets in [one.neurons[kind]]
                ]  # fmt: skip
                _write(run, NEURONS_SCHEMA, "neurons", relation, rows)
                rows = [
                    {"factor": factor, "relation": relation, "key": one.key, "neuron_set": kind, "scope": scope,
                     "measured": one.key, "n_neurons": len(one.neurons[kind]), "n_prompts": one.n_prompts,
                     "before": before, "after": after}
                    for one in queried_facts for (factor, scope, kind), (before, after) in one.effects.items()
                ]  # fmt: skip
                _write(run, EFFECTS_SCHEMA, "effects", relation, rows)
                for stage, (schema, of_stage) in (requested or {}).items():
                    _write(run, schema, stage, relation, [row for row in of_stage if row["relation"] == relation])
        for table in tables:
            run.write_text(f"tables/{table}.csv", "made\n")
    return path


def _fact_row(one):
    fact, n = one.fact, one.n_prompts
    row = {
        "relation": fact.relation,
        "relation_label": fact.relation_label,
        "subject": fact.subject,
        "object": fact.object,
        "key": fact.key,
        "why": "",
    }
    return {
        **row,
        "digest": digest_of_facts([fact]),
        "n_templates": 3,
        "n_prompts": n,
        "n_rows": n,
        "queried": one.queried,
    }


def _write(run, schema, stage, relation, rows):
    with run.writing(stage, Shard(relation), "made up", VERSIONS[stage]) as path:
        write_records(path, {name: [row[name] for row in rows] for name in schema.names}, schema)
