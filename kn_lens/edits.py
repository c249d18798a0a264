"""Knowledge surgery: making the edits that update a fact or erase a relation (Dai et al. 2022, section 5).

With e(.) the input word embedding of an answer, for each neuron (l, i) of a fact <h, r, t> to become <h, r, t'>:

    change_i = - lambda_1 * (|W_i| / |e(t)|) * e(t)  +  lambda_2 * (|W_i| / |e(t')|) * e(t')          scaling="norm"
    change_i = - lambda_1 * e(t)  +  lambda_2 * e(t')                                                scaling="plain"
    W_out[l][i] += s_i * change_i

A neuron adds its activation times its row to the residual stream. So ``s_i`` is the activation's sign: -1 where its
mean over the fact's prompts is negative, else 1. Without it (``signed=False``) a neuron that fires below zero speaks
*against* the new answer. The released code (``preset="official"``) scales by norms, the paper (``preset="paper"``)
writes the plain form, both with lambdas (1, 8) and without signs, which is the same where no activation is negative.
Behind a ReLU none is, behind a GELU many are a little, and in gated MLPs about half. The default lambdas are weaker:
``edit_forms.CHOSEN_LAMBDAS``.

A relation is erased by setting
the rows of its most frequent neurons to zero, or to the embedding of the unknown token. Where embeddings are narrower
than the rows (ELECTRA, OPT-350m), e(.) goes through the checkpoint's own projection. Where the block normalises what
``W_out`` writes (Gemma 2 and 3, OLMo 2), a multiple of an embedding is added before that norm and does not reach the
residual stream as one: the formulas are computed as they stand, and mean less.

Making an edit only reads the model. Each function returns a ``WeightEdit``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from kn_lens._budget import Budget
from kn_lens._exclusive import exclusive
from kn_lens._original import token_embeddings
from kn_lens._reading import Reading, Ticks, read
from kn_lens._recording import Recording
from kn_lens._request import Preset, check_share
from kn_lens._rows import Checkpoint, Rows, check_not_empty, check_raw
from kn_lens.edit_forms import Scaling, checked_form
from kn_lens.engine import check_numbers
from kn_lens.errors import ArgumentError, EditError, NoPromptError, did_you_mean
from kn_lens.exporting import export
from kn_lens.facts import Fact
from kn_lens.hosts import Host, host_of
from kn_lens.neuron_sets import NeuronSet
from kn_lens.outputs import at_least_float32
from kn_lens.overlap import relation_neurons
from kn_lens.prompts import PromptBatch, make_prompts
from kn_lens.weight_edits import WeightEdit

__all__ = ["Checkpoint", "WeightEdit", "erase_neurons", "erase_relation", "export", "update_fact"]

TOP = 20
"""The paper erases a relation's 20 most frequent neurons."""


@exclusive
def update_fact(
    model: Any,
    fact: Fact,
    new_object: str,
    neurons: NeuronSet,
    *,
    lambdas: tuple[float, float] | None = None,
    preset: Preset | None = None,
    scaling: Scaling = "norm",
    signed: bool = True,
    neurons_by_fact: Mapping[Fact, NeuronSet] | None = None,
    max_share: float = 0.1,
    tokenizer: Any = None,
    allow_unknown: bool = False,
) -> WeightEdit:
    """Return the edit that makes a fact's neurons speak for another answer.

    The embedding of an answer is the mean over its tokens, written as in most of the fact's prompts (with the leading
    space that GPT-2 has there, say); for one token, as in the paper, it is that token's.

    Args:
        model: the TransformerLens model; it is only read.
        fact: the fact, with its templates.
        new_object: what its object is to become.
        neurons: the fact's knowledge neurons; for the control, random ones.
        lambdas: how much of the old answer's embedding is taken away, and of the new one's added; None: those of the
            preset, or (1, 2). How much a model bears differs: ``choose_lambdas`` measures it.
        preset: ``"paper"`` (plain, without signs) or ``"official"`` (norm, without signs), instead of ``scaling`` and
            ``signed``; both with lambdas (1, 8) unless others are given.
        scaling: ``"norm"``: embeddings are brought to the length of the row, so that lambdas count row lengths;
            ``"plain"``: they are taken as they are.
        signed: turn the change of a row round where the mean activation of its neuron at the read position, over the
            fact's prompts, is negative; one of exactly zero counts as positive. What the change writes then points
            towards the new answer for every neuron.
        neurons_by_fact: the neurons of the relation's facts. Those in more than ``max_share`` of them, and in at least
            two, belong to the relation and are left alone.
        max_share: 0.1 in the paper.
        tokenizer: instead of the model's own.
        allow_unknown: make the edit also where the model does not know the fact: where its most probable answer is not
            the object in at least half of the fact's prompts.

    Returns:
        The edit; its ``why`` says how many rows had a negative activation (``n_negative``). Cost: one forward pass for
        each row of the fact's prompts, which tells both what the model knows and the signs; none with ``allow_unknown``
        and ``signed=False``.

    Raises:
        EditError: the new object equals the old or is out of the vocabulary, the set is empty or nothing but neurons of
            the relation, the model does not know the fact, the rows would not be finite, or TransformerLens has
            processed the weights.
        ArgumentError: neurons that the model does not have, lambdas, a preset, scaling or share that make no sense.
        PromptError: the fact cannot be asked at all.
        UnsupportedModelError: the model gives no number for the fact.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> fact = kn.FactSet.world("held_out").find("Ireland", relation="P36")
        >>> edit = kn.update_fact(model, fact, "Tokyo", kn.NeuronSet([(2, 7), (3, 5)]))
        >>> edit.neurons, edit.why[0]["new_object"], edit.why[0]["n_negative"]
        (NeuronSet([(2, 7), (3, 5)]), 'Tokyo', 1)
    """
    update = Update.of(
        model, fact, new_object, neurons, lambdas=lambdas, preset=preset, scaling=scaling, signed=signed,
        neurons_by_fact=neurons_by_fact, max_share=max_share, tokenizer=tokenizer,
    )  # fmt: skip
    if allow_unknown and not update.signed:
        return update.unsigned
    host = update.host
    (edit,), reading = made([update], Budget.of(host, None), Ticks(None, 0))
    n_right = int((reading.rank == 0).sum())
    if not allow_unknown and 2 * n_right < len(update.prompts):
        raise EditError(
            f"{host.name} does not know {fact.key}: it answers {fact.object!r} to {n_right} of {len(update.prompts)} "
            "prompts; expected at least half. Pass allow_unknown=True to edit it all the same."
        )
    return edit


@dataclass(frozen=True, kw_only=True, eq=False)
class Update:
    """An update that can be made, but for the signs of activations, which a forward pass tells.

    Attributes:
        host: the model.
        prompts: those of the fact.
        neurons: whose rows it changes.
        rows: their rows.
        embeddings: of the old and of the new answer, as they are taken away and added.
        lambdas: how much of them.
        signed: whether signs count.
        step: what the edit says of itself.
        unsigned: the edit for positive activations alone.
    """

    host: Host
    prompts: PromptBatch
    neurons: NeuronSet
    rows: Float[Tensor, "neuron d_model"]
    embeddings: tuple[Float[Tensor, "_ d_model"], Float[Tensor, "_ d_model"]]
    lambdas: tuple[float, float]
    signed: bool
    step: Mapping[str, Any]
    unsigned: WeightEdit

    @classmethod
    def of(
        cls,
        model: Any,
        fact: Fact,
        new_object: str,
        neurons: NeuronSet,
        *,
        lambdas: tuple[float, float] | None,
        preset: Preset | None,
        scaling: Scaling,
        signed: bool,
        neurons_by_fact: Mapping[Fact, NeuronSet] | None = None,
        max_share: float = 0.1,
        tokenizer: Any = None,
    ) -> "Update":
        """Check all that can be checked without running the model; see ``update_fact`` for arguments and errors."""
        host = host_of(model)
        (lambda_old, lambda_new), scaling, signed = checked_form(lambdas, preset, scaling, signed)
        check_share("max_share", max_share)
        check_raw(host, "An update is made of their lengths and of embeddings, which were changed as well.")
        check_not_empty(neurons)
        neurons.check(host)
        own = neurons if neurons_by_fact is None else _without_shared(neurons, fact, neurons_by_fact, max_share)
        target = replace(fact, object=new_object)
        if target.object == fact.object:
            raise EditError(f"The new object of {fact.key} is the old one, {new_object!r}; expected another.")
        prompts = make_prompts(model, fact, tokenizer=tokenizer, unknown_answers="leave_out")
        try:
            targets = make_prompts(model, target, tokenizer=tokenizer, unknown_answers="leave_out")
        except NoPromptError as error:
            near = did_you_mean(new_object, _words(host.tokenizer if tokenizer is None else tokenizer))
            raise EditError(
                f"The new object {new_object!r} cannot be an answer of {host.name}.{near} ({error})"
            ) from error
        old_tokens, new_tokens = _answer_tokens(prompts), _answer_tokens(targets)
        if old_tokens == new_tokens:
            raise EditError(
                f"The new object {new_object!r} of {fact.key} has the tokens of the old one, {list(old_tokens)}; "
                "expected another answer."
            )

        rows = at_least_float32(Rows.of(host, own).read())
        if scaling == "norm" and not rows.any():
            raise EditError(
                f"All {len(rows)} rows to update for {fact.key} are zero, as after an erasure, and scaling='norm' "
                "counts lengths of rows: nothing would change. Pass scaling='plain', or undo the erasure first."
            )
        old_e, new_e = (
            rearrange(_mean_embedding(host, tokens), "d_model -> 1 d_model") for tokens in (old_tokens, new_tokens)
        )
        if scaling == "norm":
            length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            old_e, new_e = (length * (e / e.norm()) for e in (old_e, new_e))
        step = {
            "kind": "update",
            "fact": fact.key,
            "subject": fact.subject,
            "relation": fact.relation,
            "object": fact.object,
            "new_object": new_object,
            "old_tokens": old_tokens,
            "new_tokens": new_tokens,
            "lambdas": [lambda_old, lambda_new],
            "scaling": scaling,
            "signed": signed,
            "n_negative": None,
            "n_shared": len(neurons) - len(own),
            "n_zero": int((~rows.any(-1)).sum()),  # by norm they stay as they are
        }
        return cls(
            host=host,
            prompts=prompts,
            neurons=own,
            rows=rows,
            embeddings=(old_e, new_e),
            lambdas=(lambda_old, lambda_new),
            signed=signed,
            step=step,
            unsigned=WeightEdit.of(host, own, rows - lambda_old * old_e + lambda_new * new_e, [step]),
        )

    def turned(self, mean_activation: Float[Tensor, " neuron"]) -> WeightEdit:
        """Return the edit with the change of each row that fires below zero turned round."""
        sign = torch.where(mean_activation < 0, -1.0, 1.0).to(self.rows)[:, None]
        (old_e, new_e), (lambda_old, lambda_new) = self.embeddings, self.lambdas
        new = self.rows - lambda_old * (sign * old_e) + lambda_new * (sign * new_e)
        step = {**self.step, "n_negative": int((mean_activation < 0).sum())}
        return WeightEdit.of(self.host, self.neurons, new, [step])


def made(updates: Sequence[Update], budget: Budget, tick: Ticks) -> tuple[list[WeightEdit], Reading]:
    """Make updates of one fact, on one or several sets of neurons, and say what the model answers without them.

    Cost: a forward pass for each row of the fact's prompts.

    Raises:
        UnsupportedModelError: the model gives no number for the fact.
        EditError: the rows would not be finite.
    """
    host, prompts = updates[0].host, updates[0].prompts
    recording = Recording.of(NeuronSet(neuron for update in updates for neuron in update.neurons), prompts)
    reading = read(host, prompts, [recording] if any(update.signed for update in updates) else [], budget, tick)
    check_numbers(host, prompts, torch.from_numpy(reading.log_prob))
    edits = [update.turned(recording.mean(update.neurons)) if update.signed else update.unsigned for update in updates]
    return edits, reading


@exclusive
def erase_relation(
    model: Any,
    neurons_by_fact: Mapping[Fact, NeuronSet],
    *,
    top: int | None = None,
    min_facts: int | None = None,
    value: str | int = "zero",
    tokenizer: Any = None,
) -> WeightEdit:
    """Return the edit that erases a relation: what the neurons of most of its facts write is set to nothing.

    Args:
        model: the TransformerLens model; it is only read.
        neurons_by_fact: the neurons of the relation's facts.
        top: erase so many of the most frequent ones, 20 unless ``min_facts`` is given, or all where there are fewer; of
            equally frequent ones the first by layer and index.
        min_facts: erase those in at least so many of the facts instead.
        value: see ``erase_neurons``.
        tokenizer: instead of the model's own.

    Raises:
        EditError: facts of several relations, or no neuron to erase; and as ``erase_neurons``.
        ArgumentError: both ``top`` and ``min_facts``, or one below 1; neurons that the model does not have.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> facts = kn.FactSet.world().of("P36")[:2]
        >>> found = {facts[0]: kn.NeuronSet([(2, 7), (2, 8)]), facts[1]: kn.NeuronSet([(2, 8)])}
        >>> kn.erase_relation(model, found, min_facts=2).neurons
        NeuronSet([(2, 8)])
    """
    if top is not None and min_facts is not None:
        raise ArgumentError(f"top={top}, min_facts={min_facts}; expected one of them.")
    relations = sorted({fact.relation for fact in neurons_by_fact})
    if len(relations) != 1:
        raise EditError(
            f"Got the neurons of facts of {len(relations)} relations ({', '.join(relations)}); expected one relation: "
            "{fact: found for fact, found in neurons_by_fact.items() if fact.relation == 'P36'}."
        )
    (relation,) = relations
    if min_facts is None:
        top = TOP if top is None else top
        chosen = relation_neurons(neurons_by_fact, top=top)[relation]
    else:
        if isinstance(min_facts, bool) or not isinstance(min_facts, int) or min_facts < 1:
            raise ArgumentError(f"min_facts={min_facts!r}; expected a whole number from 1.")
        chosen = NeuronSet(neuron for neuron, count in _counts(neurons_by_fact).items() if count >= min_facts)
    if not chosen:
        rule = "have any neuron" if min_facts is None else f"share a neuron {min_facts} times; lower min_facts"
        raise EditError(f"There is nothing to erase: the {len(neurons_by_fact)} facts of {relation} do not {rule}.")
    how = {"relation": relation, "n_facts": len(neurons_by_fact), "top": top, "min_facts": min_facts}
    return _erased(host_of(model), chosen, value, tokenizer, how)


@exclusive
def erase_neurons(model: Any, neurons: NeuronSet, *, value: str | int = "zero", tokenizer: Any = None) -> WeightEdit:
    """Return the edit that sets the rows of neurons to one value; with zero it is their suppression at all positions.

    That holds for weights that TransformerLens has processed as well, and the probabilities are those of the raw model
    with the same neurons erased.

    Args:
        model: the TransformerLens model; it is only read.
        neurons: any set; random and most active ones are the controls of erasing a relation.
        value: ``"zero"`` (released code); ``"unk"``, the embedding of the tokenizer's unknown token (paper's first
            version); or the embedding of another token, given as it stands in the vocabulary, or by its id.
        tokenizer: instead of the model's own.

    Raises:
        EditError: an empty set, a token that the vocabulary does not have, or a model without tokenizer to look it up;
            a token where TransformerLens has processed the weights, in which zero alone means the same.
        ArgumentError: neurons that the model does not have.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> kn.erase_neurons(model, kn.NeuronSet([(2, 7)]), value="unk").why[0]["value"]
        '[UNK]'
    """
    return _erased(host_of(model), neurons, value, tokenizer, {"relation": None})


def _erased(host: Host, neurons: NeuronSet, value: str | int, tokenizer: Any, how: Mapping[str, Any]) -> WeightEdit:
    check_not_empty(neurons)
    neurons.check(host)
    token_id = _token_id(host, value, host.tokenizer if tokenizer is None else tokenizer)
    if token_id is not None:
        check_raw(host, f"The embedding of {value!r} was changed as well; value='zero' means the same in both.")
    row = torch.zeros(host.d_model) if token_id is None else _mean_embedding(host, (token_id,))
    shown = value
    if value == "unk":
        shown = (host.tokenizer if tokenizer is None else tokenizer).unk_token
    step = {"kind": "erase", **how, "value": str(shown), "token_id": token_id}
    return WeightEdit.of(host, neurons, row.expand(len(neurons), -1), [step])


def _token_id(host: Host, value: str | int, tokenizer: Any) -> int | None:
    """Return the token whose embedding a row is set to; None for zero."""
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
        raise EditError(
            f"value={value!r} is no token of {host.name}; expected 'zero', 'unk', or a token as its vocabulary has it."
            + did_you_mean(value, vocabulary)
        )
    return vocabulary[value]


def _counts(neurons_by_fact: Mapping[Fact, NeuronSet]) -> Counter[Any]:
    return Counter(neuron for found in neurons_by_fact.values() for neuron in found)


def _without_shared(
    neurons: NeuronSet, fact: Fact, neurons_by_fact: Mapping[Fact, NeuronSet], max_share: float
) -> NeuronSet:
    """Drop the neurons of the relation; of a few facts, one alone makes no relation."""
    relation = {other: found for other, found in neurons_by_fact.items() if other.relation == fact.relation}
    if not relation:
        known = {other.relation for other in neurons_by_fact}
        raise ArgumentError(
            f"neurons_by_fact has no facts of {fact.relation}, the relation of {fact.key}."
            + did_you_mean(fact.relation, known)
        )
    most = max(round(max_share * len(relation), 6), 1)  # 0.57 * 100 is a little less than 57 in binary
    counts = _counts(relation)
    own = NeuronSet(neuron for neuron in neurons if counts[neuron] <= most)
    if not own:
        raise EditError(
            f"All {len(neurons)} neurons of {fact.key} are in more than {max_share:.0%} of the {len(relation)} facts "
            f"of {fact.relation}, and so belong to the relation; expected some of its own. Raise max_share, or leave "
            "neurons_by_fact out."
        )
    return own


def _answer_tokens(prompts: PromptBatch) -> tuple[int, ...]:
    """Return the answer's tokens as most of the prompts of one fact write them; of equals the first."""
    answers = prompts.target_ids.split(prompts.rows_per_prompt.tolist())
    return Counter(tuple(answer.tolist()) for answer in answers).most_common(1)[0][0]


def _mean_embedding(host: Host, tokens: tuple[int, ...]) -> Float[Tensor, " d_model"]:
    return at_least_float32(token_embeddings(host, torch.tensor(tokens))).mean(0).cpu()


def _words(tokenizer: Any) -> list[str]:
    return [token.lstrip("Ġ▁") for token in tokenizer.get_vocab()]
