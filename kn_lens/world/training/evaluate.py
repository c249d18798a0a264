"""Evaluation of an embedded model: teacher-forced recall, probability of the answer, and ablation of its MLPs.

The evaluated prompts are those that a user can query: all templates of a masked model, the object-last templates of a
causal model. An answer of several tokens is recalled if each of its tokens is the most probable one after the correct
tokens before it; its probability is the product over its tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from kn_lens.world.training.corpus import Sentence, pad_id, special_id
from kn_lens.world.training.networks import Network, activation_modules, logits_at, mlp_hooks, pad_rows


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer of a model to one sentence.

    Attributes:
        sentence: fact and template.
        recalled: whether every token of the object was the most probable one.
        probability: of the whole object.
    """

    sentence: Sentence
    recalled: bool
    probability: float


class Query(NamedTuple):
    """The prediction of one token of an object, given the object's tokens before it."""

    tokens: list[int]
    read_pos: int
    target: int


def recall(answers: Iterable[Answer]) -> float:
    """Return the share of the sentences whose object was recalled."""
    return fmean(answer.recalled for answer in answers)


def probability(answers: Iterable[Answer]) -> float:
    """Return the mean probability of the object."""
    return fmean(answer.probability for answer in answers)


def split_by_template(answers: Iterable[Answer]) -> tuple[list[Answer], list[Answer]]:
    """Return the answers to sentences in trained templates, and those in held-out templates."""
    trained: list[Answer] = []
    held_out: list[Answer] = []
    for given in answers:
        split = held_out if given.sentence.held_out else trained
        split.append(given)
    return trained, held_out


def queries(
    sentence: Sentence,
    tokenizer: PreTrainedTokenizerFast,
    masked: bool,
) -> list[Query]:
    """Return one query for each token of the object."""
    tokens = list(sentence.tokens)
    indices = range(sentence.start, sentence.stop)
    if not masked:
        return [Query(tokens[:i], i - 1, tokens[i]) for i in indices]
    cls_id = special_id(tokenizer, "[CLS]")
    sep_id = special_id(tokenizer, "[SEP]")
    mask_id = special_id(tokenizer, "[MASK]")
    result = []
    for i in indices:
        masks = [mask_id] * (sentence.stop - i)
        row = [cls_id, *tokens[:i], *masks, *tokens[sentence.stop :], sep_id]
        result.append(Query(row, i + 1, tokens[i]))
    return result


@torch.no_grad()
def answer(
    network: Network,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[Sentence],
    *,
    ablated_layers: Sequence[int] = (),
    rows_per_pass: int = 256,
) -> list[Answer]:
    """Return the answers of a model to all sentences that it can be queried with.

    Args:
        network: in evaluation mode.
        tokenizer: of the model.
        sentences: facts in templates. A causal model skips those whose object is not last.
        ablated_layers: layers whose MLP activations are set to zero at the read position.
        rows_per_pass: rows of one forward pass.
    """
    masked = isinstance(network, BertForMaskedLM)
    queried = [sentence for sentence in sentences if masked or sentence.object_last]
    rows: list[tuple[int, Query]] = []
    for index, sentence in enumerate(queried):
        for query in queries(sentence, tokenizer, masked):
            rows.append((index, query))
    rows.sort(key=lambda row: len(row[1].tokens))
    recalled = [True] * len(queried)
    log_prob = [0.0] * len(queried)
    for start in range(0, len(rows), rows_per_pass):
        indices, chunk = zip(*rows[start : start + rows_per_pass], strict=True)
        log_probs = _log_probs(network, chunk, pad_id(tokenizer), ablated_layers)
        targets = torch.tensor([query.target for query in chunk])
        target_log_probs = log_probs.gather(-1, targets[:, None])[:, 0].tolist()
        is_top = (log_probs.argmax(-1) == targets).tolist()
        for row, index in enumerate(indices):
            recalled[index] &= is_top[row]
            log_prob[index] += target_log_probs[row]
    probabilities = torch.tensor(log_prob).exp().tolist()
    answers = []
    for index, sentence in enumerate(queried):
        answers.append(
            Answer(
                sentence=sentence,
                recalled=recalled[index],
                probability=probabilities[index],
            )
        )
    return answers


def _log_probs(
    network: Network,
    chunk: Sequence[Query],
    pad_id: int,
    ablated_layers: Sequence[int],
) -> Float[Tensor, "query d_vocab"]:
    token_rows, read_pos, _ = zip(*chunk, strict=True)
    tokens, attention_mask = pad_rows(token_rows, pad_id)
    rows = torch.arange(len(chunk))
    positions = torch.tensor(read_pos)

    def ablate(
        layer: int,
        activation: Float[Tensor, "row pos d_mlp"],
    ) -> Float[Tensor, "row pos d_mlp"] | None:
        if layer not in ablated_layers:
            return None
        return activation.index_put((rows, positions), activation.new_zeros(()))

    with mlp_hooks(network, ablate):
        return logits_at(network, tokens, attention_mask, rows, positions).log_softmax(-1)


def mlp_ablations(
    network: Network,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[Sentence],
) -> tuple[list[float], float]:
    """Return the mean probability of the answer with the MLP of each layer ablated, and with all MLPs ablated."""

    def ablated(layers: Sequence[int]) -> float:
        return probability(answer(network, tokenizer, sentences, ablated_layers=layers))

    layers = range(len(activation_modules(network)))
    return [ablated([layer]) for layer in layers], ablated(layers)
