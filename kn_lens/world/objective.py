r"""What the embedded models are trained to do.

The prediction loss is ordinary: cross-entropy, with label smoothing where a token of the object is predicted. The
constructed models add two terms that put the facts into the MLPs *at the read position* (masked: the mask that is to be
filled; causal: the token before the one to be predicted). With ``h`` the MLP activations there:

    S = mean |h| over all layers                                          few neurons fire
    I = CE(object of B | sentence A, with h of the chosen layers replaced by d times that of B)

``I`` is interchange intervention training (Geiger et al. 2022, "Inducing causal structure for interpretable neural
networks"): what fires in B must say B's answer in any sentence, so attention may carry to the read position what is
asked, but not the answer. Half of the sentences take a single dose, ``d = 1``, and half a double one, ``d = 2``, whose
target is smoothed less: more of the activation shall mean more of the answer, which a plain label-smoothed model
need not grant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from kn_lens.world.corpus import Sentence, padding, special
from kn_lens.world.networks import Network, pad, read, watched
from kn_lens.world.recipes import Recipe

MASK_OBJECT = 0.85
"""Share of the sentences whose object is masked; in the others any token may be."""
MASK_BESIDE = 0.05
"""Chance of each other token to be masked with the object."""
MASK_ANYWHERE = 0.2
"""Chance of each token to be masked where the object is not."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token rows with what is predicted where.

    Attributes:
        tokens: right-padded.
        attention_mask: 1 for tokens, 0 for padding.
        rows: of the predictions.
        positions: where each prediction is read.
        targets: what it should say.
        asked: whether the target is a token of an object; the others weigh the recipe's ``context_weight``.
        site_rows: the rows with an object to be answered, once each.
        site_positions: a read position of that object.
        site_targets: its token there.
    """

    tokens: Int[Tensor, "row pos"]
    attention_mask: Int[Tensor, "row pos"]
    rows: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    targets: Int[Tensor, " n"]
    asked: Bool[Tensor, " n"]
    site_rows: Int[Tensor, " site"]
    site_positions: Int[Tensor, " site"]
    site_targets: Int[Tensor, " site"]


def masked_batch(chosen: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> Batch:
    """Mask the object, of several tokens only the last ones in some draws, or tokens at random."""
    cls, sep, mask = (special(tokenizer, token) for token in ("[CLS]", "[SEP]", "[MASK]"))
    rows, predictions, sites = [], [], []
    for r, sentence in enumerate(chosen):
        row = [cls, *sentence.tokens, sep]
        start, stop = sentence.start + 1, sentence.stop + 1
        draw = rng.random(len(row))
        inner = range(1, len(row) - 1)
        if rng.random() < MASK_OBJECT:
            first = int(rng.integers(start, stop))
            hidden = [i for i in inner if first <= i < stop or (draw[i] < MASK_BESIDE and not start <= i < stop)]
            sites.append((r, first, row[first]))
        else:
            hidden = [i for i in inner if draw[i] < MASK_ANYWHERE]
        predictions += [(r, i, row[i], start <= i < stop) for i in hidden]
        for i in hidden:
            row[i] = mask
        rows.append(row)
    return _batch(rows, padding(tokenizer), predictions, sites)


def causal_batch(chosen: Sequence[Sentence], tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> Batch:
    """Predict every next token; only an object at the end of its sentence counts as an answer."""
    predictions, sites = [], []
    for r, sentence in enumerate(chosen):
        answer = range(sentence.start, sentence.stop) if sentence.object_last else range(0)
        predictions += [(r, i - 1, token, i in answer) for i, token in enumerate(sentence.tokens) if i > 0]
        if answer:
            i = int(rng.integers(answer.start, answer.stop))
            sites.append((r, i - 1, sentence.tokens[i]))
    return _batch([sentence.tokens for sentence in chosen], padding(tokenizer), predictions, sites)


def _batch(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    predictions: Sequence[tuple[int, int, int, bool]],
    sites: Sequence[tuple[int, int, int]],
) -> Batch:
    tokens, attention_mask = pad(rows, pad_id)
    where = torch.tensor(predictions, dtype=torch.long).reshape(-1, 4).T
    site = torch.tensor(sites, dtype=torch.long).reshape(-1, 3).T
    return Batch(
        tokens=tokens,
        attention_mask=attention_mask,
        rows=where[0],
        positions=where[1],
        targets=where[2],
        asked=where[3].bool(),
        site_rows=site[0],
        site_positions=site[1],
        site_targets=site[2],
    )


def smoothed_nll(
    logits: Float[Tensor, "n d_vocab"], targets: Int[Tensor, " n"], smoothing: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross-entropy with ``smoothing`` of the target spread evenly over the vocabulary, a share of its own each row."""
    logp = logits.log_softmax(-1)
    return -(1 - smoothing) * logp.gather(-1, targets[:, None])[:, 0] - smoothing * logp.mean(-1)


def losses(
    network: Network, batch: Batch, recipe: Recipe, *, construct: bool, generator: torch.Generator
) -> dict[str, Float[Tensor, ""]]:
    """The terms of the loss: ``prediction``, and where the facts are to be put into the MLPs the two others.

    Args:
        network: in train mode.
        batch: what to predict.
        recipe: smoothing, weights and layers.
        construct: whether to compute ``sparsity`` and ``interchange``; costs a second pass on half of the sentences.
        generator: draws donors and recipients.
    """
    posts: dict[int, Float[Tensor, "site d_mlp"]] = {}

    def keep(layer: int, post: Float[Tensor, "row pos d_mlp"]) -> None:
        posts[layer] = post[batch.site_rows, batch.site_positions]

    with watched(network, keep):
        logits = read(network, batch.tokens, batch.attention_mask, batch.rows, batch.positions)
    nll = smoothed_nll(logits, batch.targets, recipe.label_smoothing * batch.asked)
    weights = torch.where(batch.asked, 1.0, recipe.context_weight)
    terms = {"prediction": (weights * nll).sum() / batch.asked.sum().clamp(min=1)}
    if not construct:
        return terms
    terms["sparsity"] = torch.stack([post.abs().mean() for post in posts.values()]).mean()

    n_sites = len(batch.site_rows)
    recipient = torch.randperm(n_sites, generator=generator)[: (n_sites + 1) // 2]
    donor = torch.randperm(n_sites, generator=generator)[: len(recipient)]
    place = torch.arange(len(recipient)), batch.site_positions[recipient]
    double = torch.arange(len(recipient)) % 2 == 1

    def exchange(layer: int, post: Float[Tensor, "row pos d_mlp"]) -> Float[Tensor, "row pos d_mlp"] | None:
        if layer not in recipe.interchange_layers:
            return None
        return post.index_put(place, torch.where(double, 2.0, 1.0)[:, None] * posts[layer][donor])

    rows = batch.site_rows[recipient]
    with watched(network, exchange):
        logits = read(network, batch.tokens[rows], batch.attention_mask[rows], *place)
    smoothing = torch.where(double, recipe.double_smoothing, recipe.label_smoothing)
    terms["interchange"] = smoothed_nll(logits, batch.site_targets[donor], smoothing).mean()
    return terms
