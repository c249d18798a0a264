"""Fluency: how varied the text is that a model writes about a subject, as the entropy of its n-grams.

    fluency = H_2 / 3 + 2 H_3 / 3        H_n = - sum over n-grams g of share(g) log2 share(g), in bits

An edit that makes a model repeat itself lowers it (Meng et al. 2022, "generation entropy"). Their text is sampled from
the five most probable tokens and split into words. Here the model writes greedily, so that the number is the same every
time, and n-grams are of its tokens. Greedy text repeats itself more, also without an edit: compare with the number
before.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.edits.editors import check_causal
from kn_lens.errors import ArgumentError, EditError, PromptError
from kn_lens.facts import Fact
from kn_lens.hosts import Budget, Host

WEIGHTS: Mapping[int, float] = {2: 1 / 3, 3: 2 / 3}
"""The weight of the entropy of each n."""


def n_gram_entropy(tokens: Sequence[int]) -> float:
    """Return the weighted mean of the entropies of the n-grams of a text, in bits.

    Args:
        tokens: at least three.

    >>> n_gram_entropy([7] * 10)
    0.0
    >>> round(n_gram_entropy(range(10)), 3)  # 9 and 8 different n-grams
    3.057
    """
    total = 0.0
    for n, weight in WEIGHTS.items():
        counts = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
        n_grams = counts.total()
        total -= weight * sum(count / n_grams * math.log2(count / n_grams) for count in counts.values())
    return total + 0.0  # not -0.0


def generation_prompts(host: Host, facts: Sequence[Fact], n_generated: int, tokenizer: Any) -> dict[Fact, list[int]]:
    """Return the tokens of each fact's subject, after which a model is to write.

    Args:
        host: the model.
        facts: the facts.
        n_generated: the number of tokens that it is to write.
        tokenizer: the tokenizer to use instead of the model's own.

    Raises:
        ArgumentError: too few tokens for a 3-gram, or more than the model reads.
        UnsupportedModelError: a model that is not causal.
        EditError: a model without a tokenizer.
        PromptError: a fact without a subject.
    """
    check_causal(host, "Fluency")
    if isinstance(n_generated, bool) or not isinstance(n_generated, int) or n_generated < max(WEIGHTS):
        raise ArgumentError(f"n_generated={n_generated!r}; expected 0, or a number from {max(WEIGHTS)}.")
    tokenizer = host.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None:
        raise EditError(f"{host.name} has no tokenizer to read subjects with; pass tokenizer=.")
    ids: dict[Fact, list[int]] = {}
    for fact in facts:
        if not fact.subject:
            raise PromptError(f"{fact.key} has no subject after which {host.name} could write; expected one.")
        ids[fact] = list(tokenizer(fact.subject)["input_ids"])
        longest = len(ids[fact]) + n_generated
        if host.n_ctx is not None and longest > host.n_ctx:
            raise ArgumentError(
                f"n_generated={n_generated} after {fact.subject!r} makes {longest} tokens; {host.name} reads at most "
                f"{host.n_ctx}."
            )
    return ids


def fluency(host: Host, ids: Sequence[Sequence[int]], n_generated: int, budget: Budget) -> list[float]:
    """Return the fluency of what a model writes greedily after each prompt, an end-of-text token included.

    Cost: a forward pass of all prompts for each token.

    Args:
        host: the model, as it is now.
        ids: the tokens of each prompt.
        n_generated: the number of tokens written.
        budget: the memory for passes.
    """
    lengths = torch.tensor([len(prompt) for prompt in ids])

    def run(chosen: Int[Tensor, " chunk"]) -> Int[Tensor, "chunk token"]:
        prompts = [ids[number] for number in chosen.tolist()]
        tokens = torch.zeros(len(prompts), int(lengths[chosen].max()) + n_generated, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        tokens = tokens.to(host.device)
        rows = torch.arange(len(prompts), device=host.device)
        first = lengths[chosen].to(host.device)
        positions = torch.arange(tokens.shape[1], device=host.device)
        written = []
        with torch.no_grad():
            for step in range(n_generated):
                read_pos = first + step - 1
                n_tokens = int(read_pos.max()) + 1
                mask = (positions[:n_tokens] <= read_pos[:, None]).long()
                logits = host.logits_at_read_pos(tokens[:, :n_tokens], mask, read_pos)
                following = logits.argmax(-1)
                tokens[rows, read_pos + 1] = following
                written.append(following)
        return torch.stack(written, dim=-1).cpu()

    values = [0.0] * len(ids)
    pieces = budget.map_chunks(torch.ones_like(lengths), lengths + n_generated, budget.rows_per_pass, run)
    for chosen, texts in pieces:
        for number, text in zip(chosen.tolist(), texts.tolist(), strict=True):
            values[number] = n_gram_entropy(text)
    return values
