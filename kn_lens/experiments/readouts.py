"""Stages ``readouts`` and ``answer_readouts``: what a neuron's value row says in the vocabulary.

The model's own head (final norm or masked-LM transform, and unembedding) reads a residual stream that holds nothing but
the row, less what it reads off an empty one:

    read-out = head(W_out[i]) - head(0)                                                                      [d_vocab]

For a causal model that is the logit lens of the row: a norm, which takes its length away, and the unembedding. A masked
model's transform has a dense layer and an activation function and is not linear, so that the read-out of a sum of rows
is not the sum of theirs. Leaving the transform out (``W_out[i] @ W_E.T``) would be linear and say nothing where the
transform turns the stream: see "Why the new answer does not come in world-bert" in ``docs/editing.md``. Blocks above
the neuron are left out, and a norm after the MLP (``Host.norm_after_mlp``) too.

Records of ``readouts``, one shard, one a distinct found neuron of the run: ``layer``, ``index``; ``tokens`` and
``logits`` (lists), the 10 tokens whose logits it raises most, highest first, and by how much; ``n_facts`` that have it.

Records of ``answer_readouts``, one a fact with found neurons and kind of neurons: ``relation``, ``key``, ``neurons``
(``found``, ``activation``, ``random``), ``n_neurons``, and ``n_saying``: how many of them have a token of the answer
among these 10.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._bootstrap import share_of, summed_up, with_control
from kn_lens.experiments import refining
from kn_lens.experiments.passes import Passes
from kn_lens.experiments.run_directory import Shard
from kn_lens.experiments.study import ALL, Shown, Stage, Study, Tick, write_records
from kn_lens.facts import Fact
from kn_lens.hosts import Host
from kn_lens.neuron_sets import Neuron, NeuronSet
from kn_lens.outputs import at_least_float32

if TYPE_CHECKING:
    import pandas as pd

TOP = 10
"""Tokens of a read-out."""
KINDS = ("found", "activation", "random")
LOGITS_AT_ONCE = 1 << 24
"""About as many logits are held at a time."""
NEURONS = 5
"""Found neurons of a fact, more or less."""

READOUTS_SCHEMA = pa.schema(
    [
        *((name, pa.int32()) for name in ("layer", "index")),
        ("tokens", pa.list_(pa.string())),
        ("logits", pa.list_(pa.float64())),
        ("n_facts", pa.int32()),
    ]
)
ANSWERS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("relation", "key", "neurons")),
        *((name, pa.int32()) for name in ("n_neurons", "n_saying")),
    ]
)


def read_out(
    host: Host, neurons: NeuronSet, k: int = TOP
) -> Iterator[tuple[Neuron, Int[Tensor, " k"], Float[Tensor, " k"]]]:
    """Yield the tokens whose logits each neuron's value row raises most, highest first, and by how much.

    Args:
        host: the model.
        neurons: whose rows; in their order.
        k: how many tokens; all where the vocabulary has no more.

    Cost: one pass through the head a neuron.
    """
    at_once = max(1, LOGITS_AT_ONCE // host.d_vocab)
    with torch.no_grad():
        empty = at_least_float32(host.unembed(torch.zeros(1, host.d_model, device=host.device, dtype=host.dtype)))
    for layer, of_layer in neurons.by_layer().items():
        for indices in torch.tensor(of_layer, device=host.device).split(at_once):
            with torch.no_grad():
                raised = at_least_float32(host.unembed(host.W_out(layer)[indices])) - empty
            top = raised.topk(min(k, host.d_vocab))
            for index, tokens, logits in zip(indices.tolist(), top.indices.cpu(), top.values.cpu(), strict=True):
                yield Neuron(layer=layer, index=index), tokens, logits


def _make_readouts(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    n_facts = Counter(
        neuron
        for relation in study.relations()
        for neurons in study.neurons("found", relation).values()
        for neuron in neurons
    )
    columns: dict[str, list[Any]] = {name: [] for name in READOUTS_SCHEMA.names}
    shown: dict[int, str] = {}
    for neuron, tokens, logits in read_out(study.host, NeuronSet(n_facts)):
        shown |= {token: study.host.tokenizer.decode([token]) for token in tokens.tolist() if token not in shown}
        columns["layer"].append(neuron.layer)
        columns["index"].append(neuron.index)
        columns["tokens"].append([shown[token] for token in tokens.tolist()])
        columns["logits"].append(logits.tolist())
        columns["n_facts"].append(n_facts[neuron])
        tick(len(columns["layer"]), len(n_facts))
    write_records(path, columns, READOUTS_SCHEMA)


def _make_answers(study: Study, shard: Shard, path: Path, tick: Tick) -> None:
    sets = {kind: study.neurons(kind, shard.relation) for kind in KINDS}
    every = NeuronSet(neuron for of_fact in sets.values() for neurons in of_fact.values() for neuron in neurons)
    says: dict[Neuron, set[int]] = {}
    for neuron, tokens, _ in read_out(study.host, every):
        says[neuron] = set(tokens.tolist())
        tick(len(says), len(every))
    answers = _answer_tokens(study, shard.relation)
    rows = [
        (
            fact.relation,
            fact.key,
            kind,
            len(of_fact[fact]),
            sum(not says[one].isdisjoint(tokens) for one in of_fact[fact]),
        )
        for fact, tokens in answers.items()
        if sets["found"][fact]
        for kind, of_fact in sets.items()
    ]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(ANSWERS_SCHEMA.names)}
    write_records(path, columns, ANSWERS_SCHEMA)


def _answer_tokens(study: Study, relation: str) -> dict[Fact, set[int]]:
    """Return the tokens of each fact's answer, as its prompts ask for them: they differ with the words beside."""
    prompts = study.prompts(relation)
    answers: dict[Fact, set[int]] = {}
    owner = prompts.fact_index[prompts.prompt_index]
    for fact, token in zip(owner.tolist(), prompts.target_ids.tolist(), strict=True):
        answers.setdefault(prompts.facts[fact], set()).add(token)
    return answers


def _tables(study: Study) -> "dict[str, pd.DataFrame]":
    """Return the share of a fact's neurons that say its answer: means over facts, then relations."""
    records = study.all_records(ANSWER_READOUTS)
    if records.empty:
        return {}
    records["share"] = records["n_saying"] / records["n_neurons"]
    how: dict[str, Any] = {"n_resamples": study.settings.n_resamples, "seed": study.settings.seed}
    return {
        name: with_control(summed_up(records, ["neurons"], share_of("share"), by_relation=by_relation, **how))
        for name, by_relation in (("answer_readouts", False), ("answer_readouts_by_relation", True))
    }


def _passes(study: Study, relations: list[str], kinds: Sequence[str]) -> Passes:
    """Return a pass through the head for each different neuron of these relations' facts, and one for none."""
    if all(study.run.noted("neurons", Shard(relation)) for relation in relations):
        every = {
            neuron
            for relation in relations
            for kind in kinds
            for neurons in study.neurons(kind, relation).values()
            for neuron in neurons
        }
        return Passes(heads=1 + len(every))
    n_facts = sum(len(study.asked_facts(relation)) for relation in relations)
    return Passes(heads=1 + min(NEURONS * len(kinds) * n_facts, study.host.n_layers * study.host.d_mlp))


READOUTS = Stage(
    name="readouts",
    title="What neurons say in the vocabulary",
    make=_make_readouts,
    needs=(refining.STAGE,),
    shards=lambda study: [Shard(ALL)],
    passes=lambda study, shard: _passes(study, study.relations(), KINDS[:1]),
)
ANSWER_READOUTS = Stage(
    name="answer_readouts",
    title="Whether neurons say their fact's answer",
    make=_make_answers,
    tables=_tables,
    shown={"answer_readouts": Shown(f"Share of a fact's neurons that have its answer in the {TOP} tokens they say")},
    needs=(refining.STAGE,),
    passes=lambda study, shard: _passes(study, [shard.relation], KINDS),
)
