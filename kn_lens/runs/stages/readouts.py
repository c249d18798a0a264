"""Stages ``readouts`` and ``answer_readouts``: the tokens that the value row of a neuron promotes.

The read-out of a neuron is the output of the model's own head (final norm or masked-LM transform, and unembedding) for
a residual stream that holds nothing but the row, less its output for an empty stream:

    read-out = head(W_out[i]) - head(0)                                                                      [d_vocab]

For a causal model this is the logit lens of the row: a norm, which removes its length, and the unembedding. The
transform of a masked model has a dense layer and an activation function and is not linear, so that the read-out of a
sum of rows is not the sum of their read-outs. ``W_out[i] @ W_E.T``, without the transform, would be linear, but it says
nothing where the transform rotates the stream: see "Why world-bert does not give the new answer" in
``docs/editing.md``. The blocks above the neuron are left out, and so is a norm after the MLP (``Host.norm_after_mlp``).

Records of ``readouts``, a single shard, one row for each distinct found neuron of the run:

    layer, expert, index   no expert where the layer has one MLP
    tokens, logits    lists: the 10 tokens whose logits increase most, highest first, and the increases
    n_facts           number of facts that have the neuron

Records of ``answer_readouts``, one row for each fact with found neurons and kind of neurons:

    relation, key
    neuron_set    ``found``, ``activation`` or ``random``
    n_neurons     number of neurons
    n_saying      number of neurons with a token of the answer among these 10
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.bootstrap import bootstrap_table, fact_share, with_control
from kn_lens._core.notation import key_columns
from kn_lens._core.precision import at_least_float32
from kn_lens.facts import Fact
from kn_lens.hosts import Host
from kn_lens.neurons import Neuron, NeuronSet
from kn_lens.runs.context import RunContext
from kn_lens.runs.directory import ALL, Shard
from kn_lens.runs.passes import Passes
from kn_lens.runs.stage import Progress, Stage, TableDisplay, write_rows
from kn_lens.runs.stages.neurons import NEURONS

if TYPE_CHECKING:
    import pandas as pd

TOP = 10
"""Number of tokens in a read-out."""
KINDS = ("found", "activation", "random")
LOGITS_AT_ONCE = 1 << 24
"""Approximate number of logits in memory at a time."""
NEURONS_PER_FACT = 5
"""Approximate number of found neurons of a fact, for estimates before they are known."""

READOUTS_SCHEMA = pa.schema(
    [
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("index", pa.int32()),
        ("tokens", pa.list_(pa.string())),
        ("logits", pa.list_(pa.float64())),
        ("n_facts", pa.int32()),
    ]
)
ANSWER_READOUTS_SCHEMA = pa.schema(
    [
        ("relation", pa.string()),
        ("key", pa.string()),
        ("neuron_set", pa.string()),
        ("n_neurons", pa.int32()),
        ("n_saying", pa.int32()),
    ]
)


def read_out(
    host: Host, neurons: NeuronSet, k: int = TOP
) -> Iterator[tuple[Neuron, Int[Tensor, " k"], Float[Tensor, " k"]]]:
    """Yield each neuron with the tokens whose logits its value row increases most, highest first, and the increases.

    Args:
        host: the model.
        neurons: the neurons, in the order of the result.
        k: number of tokens; the whole vocabulary where it has no more.

    Cost: one pass through the head for each neuron.
    """
    rows_at_once = max(1, LOGITS_AT_ONCE // host.d_vocab)
    with torch.no_grad():
        zeros = torch.zeros(1, host.d_model, device=host.device, dtype=host.dtype)
        empty = at_least_float32(host.unembed(zeros))
    in_order = iter(neurons)  # as the rows of its layers are
    for layer, layer_rows in neurons.rows_by_layer(host).items():
        for rows in torch.tensor(layer_rows, device=host.device).split(rows_at_once):
            with torch.no_grad():
                increases = at_least_float32(host.unembed(host.value_rows(layer)[rows])) - empty
            top = increases.topk(min(k, host.d_vocab))
            for tokens, logits in zip(top.indices.cpu(), top.values.cpu(), strict=True):
                yield next(in_order), tokens, logits


def _make_readouts(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    if not context.host.has_readouts:
        write_rows(path, [], READOUTS_SCHEMA)
        return
    n_facts: Counter[Neuron] = Counter()
    for relation in context.relations():
        for neurons in context.neurons("found", relation).values():
            n_facts.update(neurons)
    token_texts: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    for neuron, tokens, logits in read_out(context.host, NeuronSet(n_facts)):
        token_ids = tokens.tolist()
        for token in token_ids:
            if token not in token_texts:
                token_texts[token] = context.host.tokenizer.decode([token])
        rows.append(
            {
                **{name: values[0] for name, values in key_columns([neuron]).items()},
                "tokens": [token_texts[token] for token in token_ids],
                "logits": logits.tolist(),
                "n_facts": n_facts[neuron],
            }
        )
        progress(len(rows), len(n_facts))
    write_rows(path, rows, READOUTS_SCHEMA)


def _make_answers(context: RunContext, shard: Shard, path: Path, progress: Progress) -> None:
    if not context.host.has_readouts:
        write_rows(path, [], ANSWER_READOUTS_SCHEMA)
        return
    sets = {kind: context.neurons(kind, shard.relation) for kind in KINDS}
    all_neurons = NeuronSet(_distinct_neurons(context, [shard.relation], KINDS))
    top_tokens: dict[Neuron, set[int]] = {}
    for neuron, tokens, _ in read_out(context.host, all_neurons):
        top_tokens[neuron] = set(tokens.tolist())
        progress(len(top_tokens), len(all_neurons))
    rows: list[dict[str, Any]] = []
    for fact, answer_tokens in _answer_tokens(context, shard.relation).items():
        if not sets["found"][fact]:
            continue
        for kind in KINDS:
            neurons = sets[kind][fact]
            n_saying = sum(not top_tokens[neuron].isdisjoint(answer_tokens) for neuron in neurons)
            rows.append(
                {
                    "relation": fact.relation,
                    "key": fact.key,
                    "neuron_set": kind,
                    "n_neurons": len(neurons),
                    "n_saying": n_saying,
                }
            )
    write_rows(path, rows, ANSWER_READOUTS_SCHEMA)


def _distinct_neurons(context: RunContext, relations: Sequence[str], kinds: Sequence[str]) -> set[Neuron]:
    """Return the neurons of these kinds that any fact of these relations has."""
    distinct: set[Neuron] = set()
    for relation in relations:
        for kind in kinds:
            for neurons in context.neurons(kind, relation).values():
                distinct.update(neurons)
    return distinct


def _answer_tokens(context: RunContext, relation: str) -> dict[Fact, set[int]]:
    """Return the answer tokens of each fact in all of its prompts; the text around an answer can change its tokens."""
    prompts = context.prompts(relation)
    answer_tokens: dict[Fact, set[int]] = {}
    fact_of_row = prompts.fact_index[prompts.prompt_index]
    for fact_index, token in zip(fact_of_row.tolist(), prompts.target_ids.tolist(), strict=True):
        answer_tokens.setdefault(prompts.facts[fact_index], set()).add(token)
    return answer_tokens


def _tables(context: RunContext) -> "dict[str, pd.DataFrame]":
    """Return the share of a fact's neurons that promote its answer: means over facts, then over relations."""
    records = context.all_records(ANSWER_READOUTS)
    if records.empty:
        return {}
    settings = context.settings
    records["share"] = records["n_saying"] / records["n_neurons"]
    tables = {}
    for name, by_relation in (("answer_readouts", False), ("answer_readouts_by_relation", True)):
        table = bootstrap_table(
            records,
            ["neuron_set"],
            fact_share("share"),
            by_relation=by_relation,
            n_resamples=settings.n_resamples,
            seed=settings.seed,
        )
        tables[name] = with_control(table)
    return tables


def _passes(context: RunContext, relations: list[str], kinds: Sequence[str]) -> Passes:
    """Count one pass through the head for each distinct neuron of these facts, and one for the empty stream."""
    if all(context.run.manifest("neurons", Shard(relation)) for relation in relations):
        return Passes(heads=1 + len(_distinct_neurons(context, relations, kinds)))
    n_facts = sum(len(context.queried_facts(relation)) for relation in relations)
    n_estimated = NEURONS_PER_FACT * len(kinds) * n_facts
    return Passes(heads=1 + min(n_estimated, context.host.n_layers * context.host.d_mlp))


def _readout_passes(context: RunContext, shard: Shard) -> Passes:
    return _passes(context, context.relations(), ["found"])


def _answer_passes(context: RunContext, shard: Shard) -> Passes:
    return _passes(context, [shard.relation], KINDS)


def _one_shard(context: RunContext) -> list[Shard]:
    return [Shard(ALL)]


READOUTS = Stage(
    name="readouts",
    title="Tokens that neurons promote",
    make=_make_readouts,
    needs=(NEURONS,),
    shards=_one_shard,
    passes=_readout_passes,
)
"""The read-out of each found neuron; no table."""

ANSWER_READOUTS = Stage(
    name="answer_readouts",
    title="Whether neurons promote their fact's answer",
    make=_make_answers,
    tables=_tables,
    shown={
        "answer_readouts": TableDisplay(
            f"Share of a fact's neurons with its answer among the {TOP} tokens they promote most"
        )
    },
    needs=(NEURONS,),
    passes=_answer_passes,
)
"""How many of a fact's neurons promote its answer; tables ``answer_readouts`` and by relation."""
