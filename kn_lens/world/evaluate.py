"""What a finished embedded model knows: recall and the answer's probability, teacher-forced, and where it comes from.

Everything is measured on the prompts that a user can ask: all templates of a masked model, the object-last ones of a
causal model. An answer of several tokens counts as recalled when every one of its tokens is the most probable one
after the true tokens before it; its probability is the product.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from kn_lens.world.corpus import Sentence, padding, special
from kn_lens.world.networks import Network, mlp_activations, pad, read, watched


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a model answered one sentence.

    Attributes:
        sentence: fact and template.
        recalled: whether every token of the object was the most probable one.
        probability: of the whole object.
    """

    sentence: Sentence
    recalled: bool
    probability: float


def recall(answers: Iterable[Answer]) -> float:
    """Share of the sentences whose object was recalled."""
    return fmean(answer.recalled for answer in answers)


def probability(answers: Iterable[Answer]) -> float:
    """Mean probability of the object."""
    return fmean(answer.probability for answer in answers)


def questions(sentence: Sentence, tokenizer: PreTrainedTokenizerFast, masked: bool) -> list[tuple[list[int], int, int]]:
    """One row per token of the object: (tokens, read position, target), the object's tokens before it given."""
    tokens, start, stop = list(sentence.tokens), sentence.start, sentence.stop
    if not masked:
        return [(tokens[:i], i - 1, tokens[i]) for i in range(start, stop)]
    cls, sep, mask = (special(tokenizer, token) for token in ("[CLS]", "[SEP]", "[MASK]"))
    row = [cls, *tokens, sep]
    return [
        (row[: i + 1] + [mask] * (stop - i) + row[stop + 1 :], i + 1, tokens[i])  #
        for i in range(start, stop)
    ]


@torch.no_grad()
def ask(
    network: Network,
    tokenizer: PreTrainedTokenizerFast,
    sentences: Sequence[Sentence],
    *,
    silent_layers: Sequence[int] = (),
    rows_per_pass: int = 256,
) -> list[Answer]:
    """Ask a model for every sentence that it can be asked for.

    Args:
        network: in evaluation mode.
        tokenizer: its own.
        sentences: those that a causal model cannot be asked for (object not last) are left out.
        silent_layers: layers whose MLP activations are zero at the read position.
        rows_per_pass: rows of one forward pass.
    """
    masked = isinstance(network, BertForMaskedLM)
    asked = [sentence for sentence in sentences if masked or sentence.object_last]
    rows = [(s, *question) for s, sentence in enumerate(asked) for question in questions(sentence, tokenizer, masked)]
    rows.sort(key=lambda row: len(row[1]))
    recalled, log_prob = [True] * len(asked), [0.0] * len(asked)
    for at in range(0, len(rows), rows_per_pass):
        indices, token_rows, positions, targets = zip(*rows[at : at + rows_per_pass], strict=True)
        tokens, attention_mask = pad(token_rows, padding(tokenizer))
        place = torch.arange(len(tokens)), torch.tensor(positions)

        def silence(
            layer: int, post: Float[Tensor, "row pos d_mlp"], place: tuple[Tensor, Tensor] = place
        ) -> Float[Tensor, "row pos d_mlp"] | None:
            return post.index_put(place, post.new_zeros(())) if layer in silent_layers else None

        with watched(network, silence):
            logp = read(network, tokens, attention_mask, *place).log_softmax(-1)
        gold = logp[place[0], torch.tensor(targets)].tolist()
        for s, target, top, value in zip(indices, targets, logp.argmax(-1).tolist(), gold, strict=True):
            recalled[s] &= top == target
            log_prob[s] += value
    probabilities = torch.tensor(log_prob).exp().tolist()
    return [
        Answer(sentence=sentence, recalled=right, probability=prob)
        for sentence, right, prob in zip(asked, recalled, probabilities, strict=True)
    ]


def without_mlps(
    network: Network, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[Sentence]
) -> tuple[list[float], float]:
    """Mean probability of the answer with one layer's MLP silent at the read position, for each layer; and with all."""
    layers = range(len(mlp_activations(network)))
    silent = chain(([layer] for layer in layers), [list(layers)])
    *each, every = (probability(ask(network, tokenizer, sentences, silent_layers=which)) for which in silent)
    return each, every
