"""Erasures: edits that set the rows of neurons to zero or to another fixed value (Dai et al. 2022, section 5.2).

A relation is erased by its most frequent neurons:

    W_out[l][i] = 0                       value="zero" (released code)
    W_out[l][i] = e([UNK])                value="unk" (first version of the paper), or the embedding of another token

Making an edit only reads the model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch

from kn_lens._core import defaults
from kn_lens._core.notation import NeuronLike
from kn_lens._core.wording import counted
from kn_lens.edits.arguments import checked_neurons
from kn_lens.edits.value_rows import check_raw, mean_embedding
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import ArgumentError, EditError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, exclusive, host_of
from kn_lens.neurons import NeuronSet, check_neurons_by_fact, relation_neurons


@exclusive
def erase_relation(
    model: HookedModel | Host,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    *,
    top: int | None = None,
    min_facts: int | None = None,
    value: str | int = defaults.ERASED_VALUE,
    tokenizer: Any = None,
) -> WeightEdit:
    """Return the edit that erases a relation: the rows of the neurons that most of its facts share get a fixed value.

    Args:
        model: the TransformerLens model; it is only read.
        neurons_by_fact: the neurons of the relation's facts.
        top: number of the most frequent neurons to erase, or all if there are fewer; 20 unless ``min_facts`` is given.
            Of equally frequent neurons the first by layer and index.
        min_facts: erase the neurons of at least this number of facts instead.
        value: see ``erase_neurons``.
        tokenizer: the tokenizer to use instead of the model's own.

    Raises:
        EditError: facts of several relations, or no neuron to erase; and as ``erase_neurons``.
        ArgumentError: both ``top`` and ``min_facts``, or one below 1; neurons that the model does not have; another
            kind of argument than a mapping.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> facts = kn.FactSet.world().of("P36")[:2]
        >>> found = {facts[0]: kn.NeuronSet([(2, 7), (2, 8)]), facts[1]: kn.NeuronSet([(2, 8)])}
        >>> kn.erase_relation(model, found, min_facts=2).neurons
        NeuronSet(['L2N8'])
    """
    check_neurons_by_fact(neurons_by_fact)
    if top is not None and min_facts is not None:
        raise ArgumentError(f"top={top}, min_facts={min_facts}; expected one of them.")
    relations = sorted({fact.relation for fact in neurons_by_fact})
    if len(relations) != 1:
        raise EditError(
            f"Got the neurons of facts of {len(relations)} relations ({', '.join(relations)}); "
            "expected one relation: "
            "{fact: found for fact, found in neurons_by_fact.items() if fact.relation == 'P36'}."
        )
    (relation,) = relations
    if min_facts is None:
        top = defaults.ERASED_NEURONS if top is None else top
        neurons = relation_neurons(neurons_by_fact, top=top)[relation]
        lack = f"the sets of {relation} are empty"
    else:
        if isinstance(min_facts, bool) or not isinstance(min_facts, int) or min_facts < 1:
            raise ArgumentError(f"min_facts={min_facts!r}; expected a whole number from 1.")
        counts = Counter(chain.from_iterable(neurons_by_fact.values()))
        neurons = NeuronSet(neuron for neuron, count in counts.items() if count >= min_facts)
        n_sets = counted(len(neurons_by_fact), "set")
        lack = f"no neuron is in the sets of {counted(min_facts, 'fact')} of {relation} (got {n_sets}); lower min_facts"
    if not neurons:
        raise EditError(f"There is nothing to erase: {lack}.")
    rule = {
        "relation": relation,
        "n_facts": len(neurons_by_fact),
        "top": top,
        "min_facts": min_facts,
    }
    return _erase(host_of(model), neurons, value, tokenizer, rule)


@exclusive
def erase_neurons(
    model: HookedModel | Host,
    neurons: Iterable[NeuronLike],
    *,
    value: str | int = defaults.ERASED_VALUE,
    tokenizer: Any = None,
) -> WeightEdit:
    """Return the edit that sets the rows of neurons to one value; with zero it is their suppression at all positions.

    Zero means the same in weights that TransformerLens has processed: the probabilities are those of the raw model with
    the same neurons erased.

    Args:
        model: the TransformerLens model; it is only read.
        neurons: any set, or several neurons, such as ``["L2N7"]``. Random neurons and the most active ones are the
            controls of erasing a relation.
        value: ``"zero"`` (released code); ``"unk"``, the embedding of the tokenizer's unknown token (first version of
            the paper); or the embedding of another token, given as in the vocabulary or by its id.
        tokenizer: the tokenizer to use instead of the model's own.

    Raises:
        EditError: an empty set, a token that the vocabulary does not have, or a model without a tokenizer; a token if
            TransformerLens has processed the weights, in which only zero means the same.
        ArgumentError: neurons that the model does not have; another kind of argument than neurons.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> kn.erase_neurons(model, kn.NeuronSet([(2, 7)]), value="unk").why[0]["value"]
        '[UNK]'
    """
    return _erase(host_of(model), neurons, value, tokenizer, {"relation": None})


def _erase(
    host: Host,
    neurons: Iterable[NeuronLike],
    value: str | int,
    tokenizer: Any,
    rule: Mapping[str, Any],
) -> WeightEdit:
    neurons = checked_neurons(neurons)
    neurons.check(host)
    if tokenizer is None:
        tokenizer = host.tokenizer
    token_id = _token_id(host, value, tokenizer)
    if token_id is None:
        row = torch.zeros(host.d_model)
    else:
        check_raw(host, f"The embedding of {value!r} was changed as well; value='zero' means the same in both.")
        row = mean_embedding(host, (token_id,))
    token = tokenizer.unk_token if value == "unk" else value
    record = {"kind": "erase", **rule, "value": str(token), "token_id": token_id}
    return WeightEdit.of(host, neurons, row.expand(len(neurons), -1), [record])


def _token_id(host: Host, value: str | int, tokenizer: Any) -> int | None:
    """Return the token whose embedding the rows become; None for zero."""
    if value == "zero":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < host.d_vocab:
            raise EditError(f"value={value} is not a token of {host.name}; expected ids from 0 to {host.d_vocab - 1}.")
        return value
    if not isinstance(value, str):
        raise ArgumentError(f"value={value!r}; expected 'zero', 'unk', a token or its id.")
    if tokenizer is None:
        raise EditError(f"{host.name} has no tokenizer to look {value!r} up; pass tokenizer=, or the token's id.")
    if value == "unk":
        if tokenizer.unk_token_id is None:
            raise EditError(
                f"{type(tokenizer).__name__} has no unknown token; expected value='zero', or the token to take instead."
            )
        return tokenizer.unk_token_id
    vocabulary = tokenizer.get_vocab()
    if value not in vocabulary:
        near = did_you_mean(value, vocabulary)
        raise EditError(
            f"value={value!r} is no token of {host.name}; "
            f"expected 'zero', 'unk', or a token as its vocabulary has it.{near}"
        )
    return vocabulary[value]
