"""Stages ``circuits`` and ``queries``: which neurons and heads keep an answer, and which make them active.

Both run on request alone (``--stage circuits``). They take some facts of each relation (``check_facts``), at most
``PAIRS_PER_FACT`` prompts of each, and pair every prompt with another fact of the relation in the same template. Only
pairs are kept in which the model prefers each prompt's own answer to the other's.

``circuits`` scores all neurons and heads (EAP-IG), finds the smallest circuit that keeps ``SHARE`` of the logit
difference, and measures circuits of ``SIZES`` nodes beside controls of the same shape. Its records, one row for each
fact, set and size:

    relation, key
    neuron_set             found (the circuit), activation (the most active nodes), random
    size                   number of nodes
    n_pairs                of the fact
    clean, empty           logit difference of the model, and with all nodes set; means over the pairs
    kept, left             with the circuit alone, and without it
    n_kept                 nodes of the smallest circuit, mean over the pairs
    at_read                share of its nodes that are at the read position
    circuit                in one row of each relation, the smallest circuit of the fact's first pair as the text of its
                           file (``Circuit.to_json``), with the edges between its ``N_DRAWN`` nodes of largest scores;
                           empty elsewhere

``queries`` has the query neurons of the value vectors of attention heads, one row for each of the ``TOP`` neurons of a
fact with the highest scores, which are means over its prompts:

    relation, key
    layer, index           of the neuron
    score                  in nats
    n_prompts              of the fact

A fact without pairs, or a relation without any, has no rows.
"""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from kn_lens._core.bootstrap import (
    Statistic,
    WeightedMean,
    bootstrap_table,
    bootstrap_tables,
    fact_mean,
    fact_share,
    ratio,
)
from kn_lens.circuits import (
    Circuit,
    PromptPairs,
    circuit_edges,
    circuit_scores,
    counterfactual_pairs,
    faithfulness,
    find_circuits,
    query_neurons,
)
from kn_lens.errors import NoPromptError, UnsupportedModelError
from kn_lens.facts import Fact
from kn_lens.hosts import Host
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.facts import FACTS

if TYPE_CHECKING:
    import pandas as pd

SIZES = (10, 30, 100, 300, 1000, 3000)
SHARE = 0.8
"""Share of the logit difference that the smallest circuits keep."""
PAIRS_PER_FACT = 3
N_STEPS = 5
N_TRIED = 30
"""Approximate number of circuits that the search for the smallest tries."""
N_DRAWN = 30
"""Nodes of a recorded circuit whose edges are computed."""
TOP = 20
"""Query neurons in the records of each fact."""
SETS = {"circuit": "found", "active": "activation", "random": "random"}

CIRCUITS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("neuron_set", pa.string()),
        ("size", pa.int64()),
        ("n_pairs", pa.int32()),
        ("clean", pa.float64()),
        ("empty", pa.float64()),
        ("kept", pa.float64()),
        ("left", pa.float64()),
        ("n_kept", pa.float64()),
        ("at_read", pa.float64()),
        ("circuit", pa.string()),
    ]
)
QUERIES_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("layer", pa.int32()),
        ("index", pa.int32()),
        ("score", pa.float64()),
        ("n_prompts", pa.int32()),
    ]
)


def _pairs(context: RunContext, relation: str) -> PromptPairs | None:
    """Return the pairs of the facts that are drawn; None where there are none."""
    facts = context.sample_facts(relation, context.settings.check_facts, "circuits")
    try:
        pairs = counterfactual_pairs(context.host, facts, others=context.queried_facts(relation), known=True)
    except NoPromptError:
        return None
    taken: dict[Fact, int] = defaultdict(int)
    chosen = []
    for number in range(len(pairs)):
        fact = pairs.fact(number)
        if taken[fact] < PAIRS_PER_FACT:
            taken[fact] += 1
            chosen.append(number)
    return pairs.select(chosen)


def _pairs_by_fact(pairs: PromptPairs) -> dict[Fact, list[int]]:
    by_fact: dict[Fact, list[int]] = defaultdict(list)
    for number in range(len(pairs)):
        by_fact[pairs.fact(number)].append(number)
    return by_fact


# --- circuits -------------------------------------------------------------------------------------


def _make_circuits(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    pairs = _pairs(context, shard.relation)
    if pairs is None:
        write_rows(path, [], CIRCUITS_SCHEMA)
        return
    host, memory = context.host, context.memory_budget
    scores = circuit_scores(host, pairs, n_steps=N_STEPS, memory_budget=memory)
    progress(1, 3)
    smallest = find_circuits(host, pairs, share=SHARE, scores=scores, memory_budget=memory)
    progress(2, 3)
    measured = faithfulness(host, scores, sizes=SIZES, seed=context.settings.seed, memory_budget=memory)
    drawn = _with_edges(host, pairs[0], smallest[0]).to_json()
    trials: Any = measured.trials
    read_pos = pairs.clean.read_pos.tolist()
    rows: list[dict[str, Any]] = []
    for fact, numbers in _pairs_by_fact(pairs).items():
        at_read = []
        for number in numbers:
            there = [node for node in smallest[number] if node.position == read_pos[number]]
            at_read.append(len(there) / len(smallest[number]))
        of_fact = trials[trials["pair"].isin(numbers)]
        for size in SIZES:
            for name, neuron_set in SETS.items():
                cell = of_fact[(of_fact["size"] == size) & (of_fact["set"] == name)]
                if cell.empty:  # there are fewer nodes
                    continue
                rows.append(
                    {
                        "relation": fact.relation,
                        "key": fact.key,
                        "neuron_set": neuron_set,
                        "size": size,
                        "n_pairs": len(cell),
                        **cell[["clean", "empty", "kept", "left"]].mean().to_dict(),
                        "n_kept": float(np.mean([len(smallest[number]) for number in numbers])),
                        "at_read": float(np.mean(at_read)),
                        "circuit": "" if rows else drawn,
                    }
                )
    write_rows(path, rows, CIRCUITS_SCHEMA)


def _with_edges(host: Host, pair: PromptPairs, circuit: Circuit) -> Circuit:
    """Return a circuit with the edges between its nodes of largest scores; without, where norms cannot be held."""
    strongest = sorted(circuit, key=lambda node: -abs(circuit.scores[node]))[:N_DRAWN]
    try:
        edges = circuit_edges(host, pair.cropped(), Circuit(strongest), n_steps=N_STEPS)
    except UnsupportedModelError:
        edges = {}
    return circuit.with_edges(edges)


def _circuits_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return faithfulness and completeness by size, and the sizes of the smallest circuits."""
    records = context.all_records(CIRCUITS)
    if records.empty:
        return {}
    n_resamples, seed = context.settings.n_resamples, context.settings.seed
    records = records.assign(
        gained=records["kept"] - records["empty"],
        lost=records["clean"] - records["left"],
        gap=records["clean"] - records["empty"],
    )
    gap = WeightedMean("gap")
    statistics = {
        "faithfulness": Statistic((WeightedMean("gained"), gap), ratio),
        "completeness": Statistic((WeightedMean("lost"), gap), ratio),
    }
    curve = bootstrap_tables(records, ["neuron_set", "size"], statistics, n_resamples=n_resamples, seed=seed)
    first = records.drop_duplicates(["relation", "key"]).assign(neuron_set="found")
    sizes = bootstrap_tables(
        first,
        ["neuron_set"],
        {"nodes": fact_mean("n_kept"), "share at the read position": fact_share("at_read")},
        n_resamples=n_resamples,
        seed=seed,
        name="statistic",
    )
    return {"circuits": curve, "circuit_sizes": sizes}


def _circuits_passes(context: RunContext, shard: Shard) -> Passes:
    pairs = _n_pairs(context, shard.relation)
    n_measured = 2 * len(SETS) * len(SIZES)
    of_edges = Passes(whole=3, whole_gradients=N_STEPS + N_DRAWN)
    return pairs * Passes(whole=2 + 2 + 2 + 4 + N_TRIED + n_measured, whole_gradients=N_STEPS) + of_edges


def _n_pairs(context: RunContext, relation: str) -> float:
    """Return the largest number of pairs of a relation."""
    return PAIRS_PER_FACT * min(context.settings.check_facts, len(context.queried_facts(relation)))


CIRCUITS = Stage(
    name="circuits",
    title="Circuits of neurons and heads",
    make=_make_circuits,
    tables=_circuits_tables,
    shown={
        "circuit_sizes": TableDisplay("Circuits: nodes that keep 80% of the logit difference, and where they are"),
        "circuits": TableDisplay("Circuits by size: faithfulness and completeness; controls of the same shape"),
    },
    needs=(FACTS,),
    settings=("seed", "check_facts"),
    passes=_circuits_passes,
    version=2,
)
"""Smallest circuits, and circuits by size; tables ``circuits`` and ``circuit_sizes``."""


# --- queries --------------------------------------------------------------------------------------


def _make_queries(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    pairs = _pairs(context, shard.relation)
    rows: list[dict[str, Any]] = []
    by_fact = {} if pairs is None else _pairs_by_fact(pairs)
    for n_done, (fact, numbers) in enumerate(by_fact.items(), start=1):
        assert pairs is not None
        prompts = pairs.clean.select(numbers)
        found = query_neurons(context.host, prompts, memory_budget=context.memory_budget)
        scores = torch.stack([result.by_neuron for result in found]).mean(0)
        flat = scores.flatten()
        for place in flat.topk(min(TOP, len(flat))).indices.tolist():
            layer, index = divmod(place, scores.shape[1])
            rows.append(
                {
                    "relation": fact.relation,
                    "key": fact.key,
                    "layer": layer,
                    "index": index,
                    "score": float(flat[place]),
                    "n_prompts": len(numbers),
                }
            )
        progress(n_done, len(by_fact))
    write_rows(path, rows, QUERIES_SCHEMA)


def _queries_tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the share of the query neurons in each layer."""
    records = context.all_records(QUERIES)
    if records.empty:
        return {}
    n_layers = context.host.n_layers
    shares = []
    for relation, key in records[["relation", "key"]].drop_duplicates().to_numpy().tolist():
        layers = records.loc[(records["relation"] == relation) & (records["key"] == key), "layer"].to_numpy()
        for layer in range(n_layers):
            share = float((layers == layer).mean())
            shares.append({"relation": relation, "key": key, "layer": layer, "share": share})
    import pandas as pd

    table = bootstrap_table(
        pd.DataFrame(shares),
        ["layer"],
        fact_share("share"),
        n_resamples=context.settings.n_resamples,
        seed=context.settings.seed,
    )
    return {"query_neurons": table.assign(control=1 / n_layers)}


def _queries_passes(context: RunContext, shard: Shard) -> Passes:
    return _n_pairs(context, shard.relation) * Passes(whole=3, heads=512, whole_gradients=N_TRIED / 2)


QUERIES = Stage(
    name="queries",
    title="Query neurons",
    make=_make_queries,
    tables=_queries_tables,
    shown={"query_neurons": TableDisplay("Query neurons: their share in each layer. Control: an even spread")},
    needs=(FACTS,),
    settings=("seed", "check_facts"),
    passes=_queries_passes,
)
"""Query neurons of the value vectors of heads; table ``query_neurons``."""
