"""Run directories with made-up results, of any size and with any names, written by the library's own writers."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from kn_lens.facts.facts import Fact
from kn_lens.runs.directory import RunDirectory, Shard, open_run
from kn_lens.runs.settings import Settings

N_LAYERS, D_MLP = 12, 3072
LAST = ("predictions", "neuron_scores", "readouts", "answer_readouts", "syntax")
STAGES = (
    "facts",
    "attributions",
    "neurons",
    "effects",
    "doses",
    "answers",
    "texts",
    "updates",
    "erasures",
    "stability",
    "methods",
    *LAST,
)
ON_REQUEST = ("positions", "circuits", "degenerate", "consistency", "editors")
"""Stages whose tables a run has only where it is asked for them."""
MODEL = {
    "kind": "masked",
    "n_layers": N_LAYERS,
    "d_model": 768,
    "d_mlp": D_MLP,
    "d_vocab": 28996,
    "n_params": 108_340_804,
}


def write_run(
    path: Path,
    *,
    n_relations: int = 3,
    n_facts: int = 4,
    n_prompts: int = 5,
    stages: Sequence[str] = STAGES,
    name: Callable[[str], str] = lambda text: text,
    seed: int = 0,
    labels: Mapping[str, str] | None = None,
) -> Path:
    """Write a run of ``n_facts`` facts for each relation.

    Args:
        path: its directory.
        n_relations: how many relations.
        n_facts: of each.
        n_prompts: of each fact.
        stages: whose records and tables are there.
        name: makes relations, subjects, objects, prompts and tokens out of plain names.
        seed: of all numbers.
        labels: of relations; None writes records without labels, as earlier versions did.
    """
    random = np.random.default_rng(seed)
    config = {"model": "bert-base-cased", "facts": "facts.jsonl", **Settings.of(limit=n_facts).as_dict()}
    provenance = {"made_from": {"versions": {"kn_lens": "0.1.0"}}, "model": MODEL, "device": "cpu"}
    relations = [name(f"P{number}") for number in range(1, n_relations + 1)]
    with open_run(path, config, provenance) as run:
        seen = pd.DataFrame({"layer": [], "index": []}, dtype=int)
        for relation in relations:
            facts = [Fact(name(f"subject {number}"), relation, name(f"object {number}")) for number in range(n_facts)]
            records = _records(facts, n_prompts, name, random)
            if labels is not None and "facts" in records:
                records["facts"]["relation_label"] = labels.get(relation, "")
            seen = pd.concat([seen, records["neuron_scores"][["layer", "index"]]]).drop_duplicates()
            for stage, table in records.items():
                if stage in stages:
                    _write(run, stage, Shard(relation), table)
        for stage in (
            "attributions",
            "doses",
            "updates",
            "erasures",
            "stability",
            "methods",
            "positions",
            "circuits",
            "degenerate",
            "consistency",
            "editors",
            "answer_readouts",
        ):
            if stage in stages:  # the report reads only their tables
                for relation in relations:
                    _write(run, stage, Shard(relation), pd.DataFrame({"relation": [relation]}))
        if "readouts" in stages:
            words = [name(f"word {number}") for number in range(MODEL["d_vocab"])]
            tokens = [
                [words[one] for one in of_neuron] for of_neuron in random.integers(len(words), size=(len(seen), 10))
            ]
            logits = [np.sort(random.normal(size=10))[::-1].tolist() for _ in range(len(seen))]
            _write(run, "readouts", Shard("all"), seen.assign(tokens=tokens, logits=logits, n_facts=1))
        for table, (stage, rows) in _tables(relations, random).items():
            if stage in stages:
                run.write_text(f"tables/{table}.csv", rows.to_csv(index=False))
    return path


def _write(run: RunDirectory, stage: str, shard: Shard, table: pd.DataFrame) -> None:
    with run.writing(stage, shard, inputs="made up", version=1) as path:
        table.to_parquet(path, index=False)


def _records(
    facts: Sequence[Fact], n_prompts: int, name: Callable[[str], str], random: np.random.Generator
) -> dict[str, pd.DataFrame]:
    n, relation, keys = len(facts), facts[0].relation, [fact.key for fact in facts]
    sizes = random.integers(0, 8, n)
    shared = random.choice(D_MLP, 20, replace=False)  # a neuron of a fact is one of these as often as not
    drawn = [
        np.where(random.random(size) < 0.5, random.choice(shared, size), random.integers(D_MLP, size=size))
        for size in sizes
    ]
    index = [sorted(set(of_fact.tolist())) for of_fact in drawn]
    sizes = [len(of_fact) for of_fact in index]
    layer = [[N_LAYERS - 1 - one % 3 for one in of_fact] for of_fact in index]
    of_kind = {"found": index, "random": [[(one + 7) % D_MLP for one in of_fact] for of_fact in index]}
    neurons = pd.concat(
        [
            pd.DataFrame({"relation": relation, "key": keys, "neuron_set": kind, "layer": layer, "index": indices})
            for kind, indices in of_kind.items()
        ]
    )
    before = random.beta(4, 2, n)
    change = {("found", 0.0): 0.6, ("found", 2.0): 1.2, ("random", 0.0): 0.99, ("random", 2.0): 1.01}
    effects = pd.concat(
        [
            pd.DataFrame({"factor": factor, "relation": relation, "key": keys, "neuron_set": kind, "scope": scope})
            .assign(measured=keys, n_neurons=sizes, n_prompts=n_prompts, before=before)
            .assign(after=np.minimum(1, before * (times if scope == "own" else 1)))
            for ((kind, factor), times), scope in product(change.items(), ("own", "other"))
        ]
    )
    owner = np.repeat(np.arange(n), n_prompts)
    shown = pd.DataFrame({"relation": relation, "key": np.array(keys, dtype=object)[owner]})
    probability = random.beta(4, 2, len(owner))
    predictions = shown.assign(
        text=[
            name(f"In sentence {number % n_prompts} the {relation} of {facts[one].subject} is [MASK], they say.")
            for number, one in enumerate(owner.tolist())
        ],
        before=probability,
        after=probability * random.uniform(0.2, 1, len(owner)),
        rank_before=random.integers(0, 3, len(owner)),
        rank_after=random.integers(0, 2000, len(owner)),
        top_before=[facts[one].object for one in owner.tolist()],
        top_after=[name(f"answer {number % 50}") for number in range(len(owner))],
    )
    which = [(key, *pair) for key, *both in zip(keys, layer, index, strict=True) for pair in zip(*both, strict=True)]
    scores = pd.DataFrame(which, columns=["key", "layer", "index"]).astype({"layer": int, "index": int})
    score = random.gamma(2, 0.05, len(scores))
    scores = scores.assign(
        relation=relation, score=score, low=score * 0.8, high=score * 1.3, share=0.8, n_prompts=n_prompts
    )
    return {
        "facts": pd.DataFrame(
            {
                "relation": relation,
                "subject": [fact.subject for fact in facts],
                "object": [fact.object for fact in facts],
                "key": keys,
                "n_templates": n_prompts,
                "n_prompts": n_prompts,
                "n_rows": n_prompts,
                "queried": True,
                "why": "",
            }
        ),
        "neurons": neurons,
        "effects": effects,
        "answers": pd.DataFrame({"relation": relation, "key": keys, "object": keys, "n_prompts": n_prompts}).assign(
            n_right=random.integers(0, n_prompts + 1, n), nll=1.0
        ),
        "predictions": predictions,
        "neuron_scores": scores,
        "texts": _texts(facts, name, random),
    }


def _texts(facts: Sequence[Fact], name: Callable[[str], str], random: np.random.Generator) -> pd.DataFrame:
    rows = []
    for fact, (kind, number) in product(facts, product(("head and tail", "head only", "random"), range(3))):
        text = name(f"Text {number} of kind {kind} about {fact.subject} has [MASK].")
        row = {"relation": fact.relation, "key": fact.key, "texts": kind, "text": text, "word": name("word")}
        rows.append({**row, "found": random.normal(), "activation": random.normal(), "random": random.normal()})
    return pd.DataFrame(rows)


def _tables(relations: Sequence[str], random: np.random.Generator) -> dict[str, tuple[str, pd.DataFrame]]:
    def estimates(stage: str, **labels: Sequence) -> tuple[str, pd.DataFrame]:
        rows = pd.DataFrame(list(product(*labels.values())), columns=list(labels))
        value = random.normal(size=len(rows))
        width = random.uniform(0.05, 0.2, len(rows))
        return stage, rows.assign(value=value, low=value - width, high=value + width, n=12, control=0.01, paper=np.nan)

    effect = {"factor": [0.0, 2.0], "neuron_set": ["found", "activation", "random"], "scope": ["own", "other"]}
    layers = {"neuron_set": ["found", "baseline", "random"], "layer": range(N_LAYERS)}
    tables = {
        "figures4_5": estimates("effects", **effect),
        "figures4_5_by_relation": estimates("effects", **effect, relation=relations),
        "dose_response": estimates("doses", **{**effect, "factor": [0.0, 0.5, 1.5, 2.0, 3.0]}),
        "figure3": estimates("neurons", **layers),
        "table2": estimates(
            "neurons", statistic=["neurons_per_fact", "shared_within", "shared_across"], neuron_set=["found", "random"]
        ),
        "answers": estimates("answers", measure=["accuracy", "perplexity"]),
        "answers_by_relation": estimates("answers", measure=["accuracy", "perplexity"], relation=relations),
        "stability": estimates("stability", varied=["50% of the prompts", "left 20"]),
        "methods": estimates("methods", neuron_set=["refined", "integrated_gradients", "activation", "random"]),
        "positions": estimates("positions", role=["before", "subject_last", "read"], layer=range(N_LAYERS)),
        "circuits": estimates(
            "circuits",
            neuron_set=["found", "activation", "random"],
            size=[10, 100],
            measure=["faithfulness", "completeness"],
        ),
        "degenerate": estimates(
            "degenerate",
            criterion=["answer", "probability"],
            measure=["taken", "degenerate"],
            neuron_set=["found", "activation", "random"],
        ),
        "consistency_by_relation": estimates("consistency", relation=relations, measure=["consistent", "jaccard"]),
        "editors": _of_editors(
            estimates(
                "editors",
                editor=["KN", "ROME"],
                neuron_set=["found", "activation", "random"],
                asked=[("own wording", "success"), ("held-out wording", "success"), ("other facts", "kept")],
            )
        ),
        "answer_readouts": estimates("answer_readouts", neuron_set=["found", "activation", "random"]),
        "syntax": estimates("syntax", measure=["accuracy"], factor=[0.0, 2.0], neuron_set=["found", "random"]),
        "completeness": (
            "attributions",
            pd.DataFrame({"relation": relations, "n_pairs": 60, "largest_gap": 1e-4, "above_tolerance": 0}),
        ),
    }  # fmt: skip
    stage, figure3 = tables["figure3"]
    shares = figure3["value"].abs() / figure3.groupby("neuron_set")["value"].transform(
        lambda of_kind: of_kind.abs().sum()
    )
    tables["figure3"] = stage, figure3.assign(value=shares, low=0.9 * shares, high=1.1 * shares, n_neurons=5)
    stage, table = tables["figures4_5"]
    tables["figures4_5"] = stage, table.assign(paper=[-0.29 if number == 0 else np.nan for number in range(len(table))])
    return tables


def _of_editors(made: tuple[str, pd.DataFrame]) -> tuple[str, pd.DataFrame]:
    """Split the question and the measure of each row."""
    stage, table = made
    questions = [question for question, _ in table["asked"]]
    measures = [measure for _, measure in table["asked"]]
    return stage, table.drop(columns="asked").assign(question=questions, measure=measures)
