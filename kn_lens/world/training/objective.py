r"""The training objective of the embedded models.

The prediction loss is cross-entropy, with label smoothing where a token of the object is predicted. The constructed
models add two terms that put the facts into the MLPs *at the read position* (masked: the mask to be filled; causal: the
token before the one to be predicted). With ``h`` the MLP activations at this position:

    S = mean |h| over all layers                                          few neurons are active
    I = CE(object of B | sentence A, with h of the chosen layers replaced by d times that of B)

``I`` is interchange intervention training (Geiger et al. 2022, "Inducing causal structure for interpretable neural
networks"): the activations of B must produce B's answer in any sentence, so attention may carry the query to the read
position, but not the answer. Half of the sentences take the activation as it is, ``d = 1``, and half take it doubled,
``d = 2``, with a less smoothed target: more of the activation shall mean more of the answer, which a plain
label-smoothed model need not satisfy.

The multilingual model has one more term, with the activations of fewer layers, and between languages:

    T = CE(object of B in the language of A | sentence A, with h of the translation layers replaced by that of B)

So these layers carry which fact is asked for, in any language, and the layers above them say it in the language of the
sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kn_lens.world.training.corpus import Sentence, pad_id, special_id
from kn_lens.world.training.networks import Network, logits_at, mlp_hooks, pad_rows
from kn_lens.world.training.recipes import Recipe

MASK_OBJECT = 0.85
"""Share of the sentences whose object is masked; in the others any token may be masked."""
MASK_BESIDE = 0.05
"""Probability of masking each other token together with the object."""
MASK_ANYWHERE = 0.2
"""Probability of masking each token in a sentence whose object is not masked as a whole."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token rows with their predictions, and one answer position for each row with an object.

    Attributes:
        tokens: padded on the right.
        attention_mask: 1 for tokens, 0 for padding.
        rows: row of each prediction.
        positions: read position of each prediction.
        targets: token to be predicted.
        is_object: whether the target is a token of an object. Other targets have the recipe's ``context_weight``.
        answer_rows: rows whose object is predicted, each once.
        answer_positions: a read position of this object.
        answer_targets: the object's token to be predicted there.
        answer_facts: index of the fact.
        answer_is_first: whether this token is the object's first one.
    """

    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"]
    rows: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    targets: Int[Tensor, " n"]
    is_object: Bool[Tensor, " n"]
    answer_rows: Int[Tensor, " answer"]
    answer_positions: Int[Tensor, " answer"]
    answer_targets: Int[Tensor, " answer"]
    answer_facts: Int[Tensor, " answer"]
    answer_is_first: Bool[Tensor, " answer"]


@dataclass(frozen=True, kw_only=True)
class Translations:
    """What the answers of facts begin with in each language.

    Attributes:
        language: of each fact.
        first_token: first token of the object of each fact in each language.
    """

    language: Int[Tensor, " fact"]
    first_token: Int[Tensor, "fact language"]


def masked_batch(
    sentences: Sequence[Sentence],
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
) -> Batch:
    """Return a batch for a masked model: the object masked from a random token of it on, or random tokens masked."""
    cls_id = special_id(tokenizer, "[CLS]")
    sep_id = special_id(tokenizer, "[SEP]")
    mask_id = special_id(tokenizer, "[MASK]")
    token_rows = []
    predictions: list[tuple[int, int, int, bool]] = []
    answers: list[tuple[int, int, int, int, bool]] = []
    for row, sentence in enumerate(sentences):
        tokens = [cls_id, *sentence.tokens, sep_id]
        answer = range(sentence.start + 1, sentence.stop + 1)
        draws = rng.random(len(tokens))
        masked = []
        if rng.random() < MASK_OBJECT:
            first = int(rng.integers(answer.start, answer.stop))
            answers.append((row, first, tokens[first], sentence.fact, first == answer.start))
            for i in range(1, len(tokens) - 1):
                is_masked = i >= first if i in answer else draws[i] < MASK_BESIDE
                if is_masked:
                    masked.append(i)
        else:
            masked = [i for i in range(1, len(tokens) - 1) if draws[i] < MASK_ANYWHERE]
        for i in masked:
            predictions.append((row, i, tokens[i], i in answer))
            tokens[i] = mask_id
        token_rows.append(tokens)
    return _batch(token_rows, pad_id(tokenizer), predictions, answers)


def causal_batch(
    sentences: Sequence[Sentence],
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
) -> Batch:
    """Return a batch for a causal model: every next token predicted. Only an object at the end counts as an answer."""
    predictions: list[tuple[int, int, int, bool]] = []
    answers: list[tuple[int, int, int, int, bool]] = []
    token_rows = []
    for row, sentence in enumerate(sentences):
        tokens = sentence.tokens
        token_rows.append(tokens)
        answer = range(0)
        if sentence.object_last:
            answer = range(sentence.start, sentence.stop)
        for i in range(1, len(tokens)):
            predictions.append((row, i - 1, tokens[i], i in answer))
        if answer:
            i = int(rng.integers(answer.start, answer.stop))
            answers.append((row, i - 1, tokens[i], sentence.fact, i == answer.start))
    return _batch(token_rows, pad_id(tokenizer), predictions, answers)


def _batch(
    token_rows: Sequence[Sequence[int]],
    pad_id: int,
    predictions: Sequence[tuple[int, int, int, bool]],
    answers: Sequence[tuple[int, int, int, int, bool]],
) -> Batch:
    tokens, attention_mask = pad_rows(token_rows, pad_id)
    prediction_table = torch.tensor(predictions, dtype=torch.long).reshape(-1, 4)
    answer_table = torch.tensor(answers, dtype=torch.long).reshape(-1, 5)
    rows, positions, targets, is_object = prediction_table.T
    answer_rows, answer_positions, answer_targets, answer_facts, answer_is_first = answer_table.T
    return Batch(
        tokens=tokens,
        attention_mask=attention_mask,
        rows=rows,
        positions=positions,
        targets=targets,
        is_object=is_object.bool(),
        answer_rows=answer_rows,
        answer_positions=answer_positions,
        answer_targets=answer_targets,
        answer_facts=answer_facts,
        answer_is_first=answer_is_first.bool(),
    )


def smoothed_nll(
    logits: Float[Tensor, "n d_vocab"],
    targets: Int[Tensor, " n"],
    smoothing: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Compute the cross-entropy in nats; ``smoothing`` is the share of each target spread over the vocabulary."""
    log_probs = logits.log_softmax(-1)
    target_log_probs = log_probs.gather(-1, targets[:, None])[:, 0]
    return -(1 - smoothing) * target_log_probs - smoothing * log_probs.mean(-1)


def losses(
    network: Network,
    batch: Batch,
    recipe: Recipe,
    *,
    construct: bool,
    generator: torch.Generator,
    translations: Translations | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Compute the terms of the loss: ``prediction``, and for a constructed model those that put the facts in the MLPs.

    Args:
        network: in train mode.
        batch: tokens and targets.
        recipe: smoothing, weights and layers.
        construct: whether to compute ``sparsity`` and ``interchange``. Costs a second pass on half of the sentences.
        generator: draws donors and recipients.
        translations: of the answers, with which ``construct`` computes ``translation`` as well, for the cost of another
            pass on half of the sentences.
    """
    activations: dict[int, Float[Tensor, "answer d_mlp"]] = {}

    def store(layer: int, activation: Float[Tensor, "row pos d_mlp"]) -> None:
        activations[layer] = activation[batch.answer_rows, batch.answer_positions]

    with mlp_hooks(network, store):
        logits = logits_at(network, batch.tokens, batch.attention_mask, batch.rows, batch.positions)
    nll = smoothed_nll(logits, batch.targets, recipe.label_smoothing * batch.is_object)
    weights = torch.where(batch.is_object, 1.0, recipe.context_weight)
    terms = {"prediction": (weights * nll).sum() / batch.is_object.sum().clamp(min=1)}
    if not construct:
        return terms
    mean_activations = [activation.abs().mean() for activation in activations.values()]
    terms["sparsity"] = torch.stack(mean_activations).mean()

    n_answers = len(batch.answer_rows)
    recipients = torch.randperm(n_answers, generator=generator)[: (n_answers + 1) // 2]
    donors = torch.randperm(n_answers, generator=generator)[: len(recipients)]
    doubled = torch.arange(len(recipients)) % 2 == 1
    factors = torch.where(doubled, 2.0, 1.0)[:, None]
    given = {layer: factors * activations[layer][donors] for layer in recipe.interchange_layers}
    logits = _logits_given(network, batch, recipients, given)
    smoothing = torch.where(doubled, recipe.double_smoothing, recipe.label_smoothing)
    terms["interchange"] = smoothed_nll(logits, batch.answer_targets[donors], smoothing).mean()
    if translations is None:
        return terms

    (first,) = batch.answer_is_first.nonzero(as_tuple=True)
    n_recipients = (len(first) + 1) // 2
    recipients = first[torch.randperm(len(first), generator=generator)[:n_recipients]]
    donors = first[torch.randperm(len(first), generator=generator)[:n_recipients]]
    given = {layer: activations[layer][donors] for layer in recipe.translation_layers}
    logits = _logits_given(network, batch, recipients, given)
    languages = translations.language[batch.answer_facts[recipients]]
    targets = translations.first_token[batch.answer_facts[donors], languages]
    smoothing = torch.full((n_recipients,), recipe.label_smoothing)
    terms["translation"] = smoothed_nll(logits, targets, smoothing).mean()
    return terms


def _logits_given(
    network: Network,
    batch: Batch,
    recipients: Int[Tensor, " recipient"],
    given: Mapping[int, Float[Tensor, "recipient d_mlp"]],
) -> Float[Tensor, "recipient d_vocab"]:
    """Compute the logits of some answers with the MLP activations of some layers replaced at the read position."""
    rows = torch.arange(len(recipients))
    positions = batch.answer_positions[recipients]

    def replace(
        layer: int,
        activation: Float[Tensor, "row pos d_mlp"],
    ) -> Float[Tensor, "row pos d_mlp"] | None:
        if layer not in given:
            return None
        return activation.index_put((rows, positions), given[layer])

    batch_rows = batch.answer_rows[recipients]
    with mlp_hooks(network, replace):
        return logits_at(network, batch.tokens[batch_rows], batch.attention_mask[batch_rows], rows, positions)
