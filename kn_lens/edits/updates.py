"""Updates: edits that give a fact a new answer (Dai et al. 2022, section 5.1).

Let e(.) be the input word embedding of an answer. A fact <h, r, t> becomes <h, r, t'> by a change to the row of each of
its neurons (l, i):

    change_i = - lambda_1 * (|W_i| / |e(t)|) * e(t)  +  lambda_2 * (|W_i| / |e(t')|) * e(t')          scaling="norm"
    change_i = - lambda_1 * e(t)  +  lambda_2 * e(t')                                                scaling="plain"
    W_out[l][i] += s_i * change_i

A neuron adds its activation times its row to the residual stream. So ``s_i`` is the sign of the activation: -1 where
its mean over the fact's prompts is negative, else 1. Without signs (``signed=False``), a neuron with a negative
activation speaks *against* the new answer.

The released code (``preset="official"``) scales by norms, the paper (``preset="paper"``) uses the plain form. Both have
lambdas (1, 8) and no signs, which is the same where no activation is negative. Behind a ReLU none is, behind a GELU
many are slightly negative, and in gated MLPs about half are. The default lambdas are weaker:
``_core.defaults.LAMBDAS``.

Where embeddings are narrower than the rows (ELECTRA, OPT-350m), e(.) goes through the checkpoint's own projection.
Where the block normalises the output of ``W_out`` (Gemma 2 and 3, OLMo 2), the embedding is added before that norm and
does not reach the residual stream as a multiple of itself. The formulas are computed as they stand, and mean less.

Making an edit only reads the model.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, get_args

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core import defaults
from kn_lens._core.checks import check_share
from kn_lens._core.names import UPDATE_FORMS, PositionName, Scaling, UpdateForm
from kn_lens._core.notation import NeuronLike
from kn_lens._core.precision import at_least_float32
from kn_lens.attribution import Preset, check_numbers
from kn_lens.edits.arguments import check_fact, checked_neurons
from kn_lens.edits.value_rows import ValueRows, check_raw, mean_embedding
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import ArgumentError, EditError, NoPromptError, did_you_mean
from kn_lens.facts import Fact
from kn_lens.hosts import ActivationSource, Budget, HookedModel, HookFn, Host, exclusive, host_of
from kn_lens.interventions import AnswerScores, Ticks, is_known, score_answers
from kn_lens.neurons import NeuronSet, check_neurons_by_fact, prompts_by_fact
from kn_lens.prompts import PromptBatch, host_for, make_prompts


@exclusive
def update_fact(
    model: HookedModel | Host,
    fact: Fact,
    new_object: str,
    neurons: Iterable[NeuronLike],
    *,
    lambdas: tuple[float, float] | None = None,
    preset: Preset | None = None,
    scaling: Scaling = defaults.SCALING,
    signed: bool = defaults.SIGNED,
    neurons_by_fact: Mapping[Fact, NeuronSet] | None = None,
    max_share: float = defaults.MAX_SHARE,
    tokenizer: Any = None,
    allow_unknown: bool = False,
    position: PositionName = "read",
) -> WeightEdit:
    """Return the edit that gives a fact a new answer through its neurons.

    The embedding of an answer is the mean over its tokens, spelled as in most of the fact's prompts (with GPT-2's
    leading space, for example). The embedding of an answer of one token is that token's, as in the paper.

    Args:
        model: the TransformerLens model; it is only read.
        fact: the fact, with its templates.
        new_object: the new answer.
        neurons: the fact's knowledge neurons; for the control, random ones.
        lambdas: weights of the old answer's embedding, which is subtracted, and of the new one's, which is added. None
            takes those of the preset, or (1, 2). Models tolerate different strengths: ``choose_lambdas`` measures them.
        preset: ``"paper"`` (plain, without signs) or ``"official"`` (norm, without signs), instead of ``scaling`` and
            ``signed``; both with lambdas (1, 8) unless others are given.
        scaling: ``"norm"``: embeddings are scaled to the length of the row, so that lambdas are multiples of it;
            ``"plain"``: embeddings are not scaled.
        signed: reverse the change of a row where the mean activation of its neuron at ``position``, over the
            fact's prompts, is negative. An activation of exactly zero counts as positive. Every neuron then writes
            towards the new answer.
        neurons_by_fact: the neurons of the relation's facts. Those in more than ``max_share`` of them, and in at least
            two, belong to the relation and are left alone.
        max_share: 0.1 in the paper.
        tokenizer: the tokenizer to use instead of the model's own.
        allow_unknown: return the edit also if the model does not know the fact: if its most probable answer is the
            object in less than half of the fact's prompts.
        position: where the neurons were found, and have the activations that ``signed`` looks at: ``read``, or
            ``subject_last``. The rows are the same at every token.

    Returns:
        The edit. Its ``why`` holds the number of rows with a negative activation (``n_negative``). Cost: one forward
        pass for each row of the fact's prompts, both for the model's answers and for the signs; none with
        ``allow_unknown`` and ``signed=False``.

    Raises:
        EditError: the new object equals the old or is out of the vocabulary, the set is empty or holds only neurons of
            the relation, the model does not know the fact, the rows would not be finite, or TransformerLens has
            processed the weights.
        ArgumentError: neurons that the model does not have; a wrong kind of argument; lambdas, a preset, a scaling or a
            share out of range.
        PromptError: the fact gives no prompt.
        UnsupportedModelError: the model's answer to the fact is not a number.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-bert")
        >>> fact = kn.FactSet.world("held_out").find("Ireland", relation="P36")
        >>> edit = kn.update_fact(model, fact, "Tokyo", kn.NeuronSet([(2, 7), (3, 5)]))
        >>> edit.neurons, edit.why[0]["new_object"], edit.why[0]["n_negative"]
        (NeuronSet(['L2N7', 'L3N5']), 'Tokyo', 1)
    """
    host = host_of(model)
    form = resolve_form(lambdas, preset, scaling, signed)
    check_share("max_share", max_share)
    check_fact(fact)
    neurons = checked_neurons(neurons)
    neurons.check(host)
    own = neurons
    if neurons_by_fact is not None:
        own = _own_neurons(fact, neurons, neurons_by_fact, max_share)
    update = FactUpdate.of(
        host,
        fact,
        new_object,
        own,
        form,
        n_shared=len(neurons) - len(own),
        tokenizer=tokenizer,
        position=position,
    )
    if allow_unknown and not form.signed:
        return update.unsigned
    (edit,), scores = make_edits([update], Budget.of(host, None), Ticks(None, 0))
    n_right = scores.n_right
    if not allow_unknown and not is_known(n_right, len(update.prompts)):
        raise EditError(
            f"{host.name} does not know {fact.key}: it answers {fact.object!r} to {n_right} "
            f"of {len(update.prompts)} prompts; expected at least half. "
            "Pass allow_unknown=True to edit it all the same."
        )
    return edit


def resolve_form(
    lambdas: Any,
    preset: str | None,
    scaling: Scaling,
    signed: bool,
) -> UpdateForm:
    """Return the form of an update: a preset's if one is given, with other lambdas if they are given too.

    Raises:
        ArgumentError: an unknown preset or scaling, one beside the other, or lambdas that are not two finite numbers.

    >>> resolve_form(None, None, "norm", True)
    UpdateForm(lambdas=(1.0, 2.0), scaling='norm', signed=True)
    >>> resolve_form((1, 4), "paper", "norm", True)
    UpdateForm(lambdas=(1.0, 4.0), scaling='plain', signed=False)
    """
    scalings = get_args(Scaling)
    if scaling not in scalings:
        near = did_you_mean(str(scaling), scalings)
        raise ArgumentError(f"scaling={scaling!r}; expected 'norm' or 'plain'.{near}")
    if not isinstance(signed, bool):
        raise ArgumentError(f"signed={signed!r}; expected True or False.")
    if preset is None:
        form = UpdateForm(defaults.LAMBDAS, scaling, signed)
    elif preset not in UPDATE_FORMS:
        near = did_you_mean(str(preset), UPDATE_FORMS)
        raise ArgumentError(f"Unknown preset {preset!r}; expected one of {', '.join(UPDATE_FORMS)}.{near}")
    elif scaling != "norm" or not signed:
        raise ArgumentError(f"preset={preset!r} fixes the form: leave scaling and signed out, or the preset.")
    else:
        form = UPDATE_FORMS[preset]
    if lambdas is None:
        return form
    return form._replace(lambdas=checked_lambdas(lambdas))


def checked_lambdas(lambdas: Any) -> tuple[float, float]:
    """Return lambdas as two numbers.

    Raises:
        ArgumentError: they are not two finite numbers.
    """
    try:
        old, new = map(float, lambdas)
    except (TypeError, ValueError):
        old = new = math.nan
    if not (math.isfinite(old) and math.isfinite(new)):
        raise ArgumentError(f"lambdas={lambdas!r}; expected two finite numbers, such as (1, 2).")
    return old, new


@dataclass(frozen=True, kw_only=True, eq=False)
class FactUpdate:
    """An update of a fact, complete except for the signs of activations, which take a forward pass.

    Attributes:
        host: the model.
        prompts: the prompts of the fact.
        neurons: the neurons whose rows change.
        rows: the values of these rows.
        old_embedding: the embedding of the old answer, scaled; one for all rows, or one for each.
        new_embedding: the embedding of the new answer, likewise.
        form: lambdas, scaling and whether signs count.
        record: the description kept in the edit's ``why``.
        position: where the neurons' activations have the signs that count.
        unsigned: the edit in which every sign is 1.
    """

    host: Host
    prompts: PromptBatch
    neurons: NeuronSet
    rows: Float[Tensor, "neuron d_model"]
    old_embedding: Float[Tensor, "_ d_model"]
    new_embedding: Float[Tensor, "_ d_model"]
    form: UpdateForm
    record: Mapping[str, Any]
    position: PositionName
    unsigned: WeightEdit

    @classmethod
    def of(
        cls,
        host: Host,
        fact: Fact,
        new_object: str,
        neurons: NeuronSet,
        form: UpdateForm,
        *,
        n_shared: int = 0,
        tokenizer: Any = None,
        position: PositionName = "read",
    ) -> "FactUpdate":
        """Check everything that can be checked without a forward pass.

        Args:
            host: the model.
            fact: the fact, with its templates.
            new_object: the new answer.
            neurons: the neurons whose rows change.
            form: lambdas, scaling and whether signs count.
            n_shared: number of the fact's neurons that are left alone, for the record.
            tokenizer: the tokenizer to use instead of the model's own.
            position: where the neurons' activations have the signs that count.

        Raises:
            ArgumentError, EditError, PromptError: see ``update_fact``.
        """
        check_raw(host, "An update is made of their lengths and of embeddings, which were changed as well.")
        rows = at_least_float32(ValueRows.of(host, neurons).read())
        prompts, old_tokens, new_tokens = _answer_tokens_of(host, fact, new_object, tokenizer)
        old_embedding = rearrange(mean_embedding(host, old_tokens), "d_model -> 1 d_model")
        new_embedding = rearrange(mean_embedding(host, new_tokens), "d_model -> 1 d_model")
        if form.scaling == "norm":
            if not rows.any():
                raise EditError(
                    f"All {len(rows)} rows to update for {fact.key} are zero, as after an erasure, "
                    "and scaling='norm' counts lengths of rows: nothing would change. "
                    "Pass scaling='plain', or undo the erasure first."
                )
            lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            old_embedding = lengths * (old_embedding / old_embedding.norm())
            new_embedding = lengths * (new_embedding / new_embedding.norm())
        lambda_old, lambda_new = form.lambdas
        record = {
            "kind": "update",
            "fact": fact.key,
            "subject": fact.subject,
            "relation": fact.relation,
            "object": fact.object,
            "new_object": new_object,
            "old_tokens": old_tokens,
            "new_tokens": new_tokens,
            "lambdas": [lambda_old, lambda_new],
            "scaling": form.scaling,
            "signed": form.signed,
            "n_negative": None,
            "n_shared": n_shared,
            "n_zero": int((~rows.any(-1)).sum()),  # scaled by norms, these rows do not change
        }
        if position != "read":
            prompts.at(position)  # raises before any pass
            record["position"] = position
        unsigned_rows = rows - lambda_old * old_embedding + lambda_new * new_embedding
        return cls(
            host=host,
            prompts=prompts,
            neurons=neurons,
            rows=rows,
            old_embedding=old_embedding,
            new_embedding=new_embedding,
            form=form,
            record=record,
            position=position,
            unsigned=WeightEdit.of(host, neurons, unsigned_rows, [record]),
        )

    def signed(self, mean_activation: Float[Tensor, " neuron"]) -> WeightEdit:
        """Return the edit in which the change of each row has the sign of its neuron's mean activation."""
        sign = torch.where(mean_activation < 0, -1.0, 1.0).to(self.rows)
        sign = rearrange(sign, "neuron -> neuron 1")
        lambda_old, lambda_new = self.form.lambdas
        old_term = lambda_old * (sign * self.old_embedding)
        new_term = lambda_new * (sign * self.new_embedding)
        new = self.rows - old_term + new_term
        record = {**self.record, "n_negative": int((mean_activation < 0).sum())}
        return WeightEdit.of(self.host, self.neurons, new, [record])


def make_edits(
    updates: Sequence[FactUpdate],
    budget: Budget,
    tick: Ticks,
) -> tuple[list[WeightEdit], AnswerScores]:
    """Return the edits of updates of one fact, and the model's scores of its old answer without them.

    Cost: a forward pass for each row of the fact's prompts, however many updates there are.

    Raises:
        UnsupportedModelError: the model's answer to the fact is not a number.
        EditError: the rows would not be finite.
    """
    host, prompts = updates[0].host, updates[0].prompts
    fact = prompts.fact(0)
    recorder = recorder_of({fact: updates}, prompts)
    interventions = [] if recorder is None else [recorder]
    scores = score_answers(host, prompts, interventions, budget, tick)
    check_numbers(host, prompts, torch.from_numpy(scores.log_prob))
    edits = [with_signs(update, fact, recorder) for update in updates]
    return edits, scores


def recorder_of(
    updates: Mapping[Fact, Sequence[FactUpdate]],
    prompts: PromptBatch,
) -> "ActivationRecorder | None":
    """Return a recorder of all activations whose signs updates need, under the prompts of their facts.

    None where no update needs one.
    """
    neurons: dict[Fact, NeuronSet] = {}
    for fact, fact_updates in updates.items():
        signed = [update.neurons for update in fact_updates if update.form.signed]
        neurons[fact] = NeuronSet(chain.from_iterable(signed))
    if not any(neurons.values()):
        return None
    first = next(chain.from_iterable(updates.values()))  # all have the same position
    return ActivationRecorder.of(neurons, prompts, first.position)


def with_signs(update: FactUpdate, fact: Fact, recorder: "ActivationRecorder | None") -> WeightEdit:
    """Return the edit of an update of a fact, with the signs of the recorded activations if it takes signs.

    Raises:
        EditError: the rows would not be finite.
    """
    if not update.form.signed:
        return update.unsigned
    assert recorder is not None  # one was made for the updates with signs
    return update.signed(recorder.mean(fact, update.neurons))


@dataclass(frozen=True, eq=False)
class ActivationRecorder:
    """An intervention that changes nothing and records activations at one position.

    Attributes:
        neurons: the neurons to record under the prompts of each fact.
        prompts_of: for each of these facts its prompts, by their numbers in the whole batch.
        values: the activations of the neurons of each prompt's fact, averaged over the rows of its answer, in the order
            in which the set iterates; NaN until the prompt has run, and beyond the size of the set.
        numbers: for each prompt that this recorder is applied to, its number in the whole batch.
        position: where activations are recorded.
    """

    neurons: Mapping[Fact, NeuronSet]
    prompts_of: Mapping[Fact, Int[Tensor, " prompt"]]
    values: Float[Tensor, "batch neuron"]
    numbers: Int[Tensor, " prompt"]
    position: PositionName = "read"

    @classmethod
    def of(
        cls, neurons: Mapping[Fact, NeuronSet], prompts: PromptBatch, position: PositionName = "read"
    ) -> "ActivationRecorder":
        """Return a recorder without values."""
        n_columns = max(map(len, neurons.values()))
        values = torch.full((len(prompts), n_columns), torch.nan, dtype=torch.float64)
        return cls(neurons, prompts_by_fact(prompts), values, torch.arange(len(prompts)), position)

    def select(
        self,
        prompts: PromptBatch,
        chosen: Int[Tensor, " prompt"],
    ) -> "ActivationRecorder":
        """Return the recorder of ``prompts.select(chosen)``, which writes to the same values."""
        return replace(self, numbers=self.numbers[chosen.cpu()])

    def hooks(
        self,
        model: HookedModel | Host,
        prompts: PromptBatch,
    ) -> list[tuple[str, HookFn]]:
        """Return one hook for each layer with neurons."""
        host = host_for(model, prompts)
        prompt_ids: dict[int, list[int]] = {}
        columns: dict[int, list[int]] = {}
        indices: dict[int, list[int]] = {}
        for prompt, fact_index in enumerate(prompts.fact_index.tolist()):
            neurons = self.neurons.get(prompts.facts[fact_index], NeuronSet())
            for column, neuron in enumerate(neurons):
                prompt_ids.setdefault(neuron.layer, []).append(prompt)
                columns.setdefault(neuron.layer, []).append(column)
                row = host.layout.row(neuron)
                assert row is not None  # the update has looked up the neuron's row
                indices.setdefault(neuron.layer, []).append(row)
        hooks = []
        for layer in sorted(prompt_ids):
            cells = [torch.tensor(numbers[layer]) for numbers in (prompt_ids, columns, indices)]
            source = host.activation_source(layer)
            hooks.append((source.hook, self._hook(prompts, source, *cells)))
        return hooks

    def mean(self, fact: Fact, neurons: NeuronSet) -> Float[Tensor, " neuron"]:
        """Return the mean activation over a fact's prompts of some of its neurons, in the order of their set."""
        column_of = {neuron: column for column, neuron in enumerate(self.neurons[fact])}
        columns = [column_of[neuron] for neuron in neurons]
        return self.values[self.prompts_of[fact]][:, columns].mean(0)

    def _hook(
        self,
        prompts: PromptBatch,
        source: ActivationSource,
        prompt_ids: Int[Tensor, " cell"],
        columns: Int[Tensor, " cell"],
        indices: Int[Tensor, " cell"],
    ) -> HookFn:
        """Return the hook of a layer, whose cells are the neurons of each prompt."""
        device = prompts.tokens.device
        # The rows of a cell are those of its prompt.
        rows, cell_of_row = prompts.rows_and_owners(prompt_ids.to(device))
        wanted, position = indices.to(device)[cell_of_row].unique(return_inverse=True)
        every_row = torch.arange(len(rows), device=device)
        n_rows = prompts.rows_per_prompt[prompt_ids.to(device)]
        position_of_row = prompts.at(self.position).post_pos[rows]

        def hook_fn(value: Float[Tensor, "row pos d"], hook: object = None) -> None:
            with torch.no_grad():
                at_position = source.of(value.detach()[rows, position_of_row], wanted)
            activations = at_position[every_row, position].double()
            sums = activations.new_zeros(len(prompt_ids)).index_add(0, cell_of_row, activations)
            self.values[self.numbers[prompt_ids], columns] = (sums / n_rows).cpu()

        return hook_fn


def _own_neurons(
    fact: Fact,
    neurons: NeuronSet,
    neurons_by_fact: Any,
    max_share: float,
) -> NeuronSet:
    """Return the neurons of a fact that are not those of its whole relation.

    A neuron of one fact alone is not the relation's, however few facts there are.
    """
    check_neurons_by_fact(neurons_by_fact)
    relation_sets = []
    for other, other_neurons in neurons_by_fact.items():
        if other.relation == fact.relation:
            relation_sets.append(other_neurons)
    if not relation_sets:
        near = did_you_mean(fact.relation, {other.relation for other in neurons_by_fact})
        raise ArgumentError(f"neurons_by_fact has no facts of {fact.relation}, the relation of {fact.key}.{near}")
    max_facts = max(round(max_share * len(relation_sets), 6), 1)  # 0.57 * 100 is a little less than 57 in binary
    n_facts = Counter(chain.from_iterable(relation_sets))
    own = NeuronSet(neuron for neuron in neurons if n_facts[neuron] <= max_facts)
    if not own:
        raise EditError(
            f"All {len(neurons)} neurons of {fact.key} are in more than {max_share:.0%} "
            f"of the {len(relation_sets)} facts of {fact.relation}, and so belong to the relation; "
            "expected some of its own. Raise max_share, or leave neurons_by_fact out."
        )
    return own


def check_new_answer(host: Host, fact: Fact, new_object: str, tokenizer: Any) -> None:
    """Raise unless a fact can be queried for its answer and for a new one, which is another.

    Raises:
        EditError: the new object equals the old or is out of the vocabulary.
        PromptError: the fact gives no prompt.
    """
    _answer_tokens_of(host, fact, new_object, tokenizer)


def _answer_tokens_of(
    host: Host,
    fact: Fact,
    new_object: str,
    tokenizer: Any,
) -> tuple[PromptBatch, tuple[int, ...], tuple[int, ...]]:
    """Return the prompts of a fact, and the tokens of its old and of its new answer."""
    new_fact = replace(fact, object=new_object)
    if new_fact.object == fact.object:
        raise EditError(f"The new object of {fact.key} is the old one, {new_object!r}; expected another.")
    prompts = make_prompts(host, fact, tokenizer=tokenizer, unknown_answers="leave_out")
    try:
        new_prompts = make_prompts(host, new_fact, tokenizer=tokenizer, unknown_answers="leave_out")
    except NoPromptError as error:
        words = _words(host.tokenizer if tokenizer is None else tokenizer)
        near = did_you_mean(new_object, words)
        raise EditError(f"The new object {new_object!r} cannot be an answer of {host.name}.{near} ({error})") from error
    old_tokens = _answer_tokens(prompts)
    new_tokens = _answer_tokens(new_prompts)
    if old_tokens == new_tokens:
        raise EditError(
            f"The new object {new_object!r} of {fact.key} has the tokens of the old one, {list(old_tokens)}; "
            "expected another answer."
        )
    return prompts, old_tokens, new_tokens


def _answer_tokens(prompts: PromptBatch) -> tuple[int, ...]:
    """Return the tokens of one fact's answer in most of its prompts; the first of equally frequent ones."""
    answers = prompts.target_ids.split(prompts.rows_per_prompt.tolist())
    n_prompts = Counter(tuple(answer.tolist()) for answer in answers)
    return n_prompts.most_common(1)[0][0]


def _words(tokenizer: Any) -> list[str]:
    return [token.lstrip("Ġ▁") for token in tokenizer.get_vocab()]
