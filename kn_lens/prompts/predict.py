"""Predictions: the most probable tokens of a model for each prompt."""

from typing import TYPE_CHECKING, Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.precision import at_least_float32
from kn_lens.errors import ArgumentError
from kn_lens.hosts import Budget, HookedModel, Host, check_tokenizer, exclusive
from kn_lens.prompts.batch import PromptBatch, check_prompts, host_for

if TYPE_CHECKING:
    import pandas as pd


@exclusive
def predict(
    model: HookedModel | Host,
    prompts: PromptBatch,
    k: int = 5,
    *,
    tokenizer: Any = None,
    memory_budget: float | None = None,
) -> "pd.DataFrame":
    """Return the ``k`` most probable tokens for each prompt.

    Answers of several tokens have a ranking for each token, given the true tokens before it.

    Args:
        model: a TransformerLens model.
        prompts: the prompts.
        k: number of tokens to list.
        tokenizer: shows tokens as text, instead of the model's own; without either they are shown as ids.
        memory_budget: bytes that passes may take; see ``attribute``.

    Returns:
        A table with the columns ``prompt`` (number), ``text``, ``answer_token`` (number within the answer), ``rank``
        (zero-based), ``token`` (as text, with its leading space where the tokenizer keeps it), ``token_id`` and
        ``probability``. Cost: one forward pass per row.

    Raises:
        ArgumentError: ``k`` or the memory budget is out of range, or the prompts are for another model.
        PromptError: a prompt is longer than the context.
    """
    import pandas as pd

    check_prompts(prompts)
    host = host_for(model, prompts)
    check_tokenizer(tokenizer)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= host.d_vocab:
        raise ArgumentError(f"k is {k!r}; expected a whole number from 1 to {host.d_vocab}.")
    budget = Budget.of(host, memory_budget)
    prompts.check_for(host)
    lengths = prompts.attention_mask.sum(-1)
    encoder = prompts.encoder_input
    text_length = None if encoder is None else encoder.attention_mask.sum(-1)
    n_positions = lengths if text_length is None else lengths + text_length

    def most_probable(
        rows: Int[Tensor, " chunk"],
    ) -> tuple[Float[Tensor, "chunk k"], Int[Tensor, "chunk k"]]:
        n_pos = int(lengths[rows].max())
        tokens = prompts.tokens[rows, :n_pos]
        attention_mask = prompts.attention_mask[rows, :n_pos]
        with torch.no_grad():
            logits = host.logits_at_read_pos(
                tokens,
                attention_mask,
                prompts.read_pos[rows],
                encoder=None if encoder is None else encoder.select(rows).cropped(),
            )
        # Half precision would round probabilities to three digits.
        top = at_least_float32(logits).softmax(-1).topk(k)
        return top.values.double().cpu(), top.indices.cpu()

    probabilities = torch.empty(prompts.n_rows, k, dtype=torch.float64)
    ids = torch.empty(prompts.n_rows, k, dtype=torch.int64)
    chunks = budget.map_chunks(
        torch.ones_like(lengths),
        n_positions,
        budget.rows_per_pass,
        most_probable,
        text_length=text_length,
    )
    for rows, (values, indices) in chunks:
        probabilities[rows.cpu()] = values
        ids[rows.cpu()] = indices

    if tokenizer is None:
        tokenizer = host.tokenizer
    text_of_token = {}
    for token in ids.unique().tolist():
        text_of_token[token] = str(token) if tokenizer is None else tokenizer.decode([token])

    prompt = prompts.prompt_index.cpu()
    first_row = torch.searchsorted(prompt, prompt)  # of each row's prompt
    answer_token = torch.arange(len(prompt)) - first_row
    prompt_numbers = repeat(prompt, "row -> (row k)", k=k).numpy()
    token_ids = ids.flatten().tolist()
    return pd.DataFrame(
        {
            "prompt": prompt_numbers,
            "text": [prompts.text[number] for number in prompt_numbers],
            "answer_token": repeat(answer_token, "row -> (row k)", k=k).numpy(),
            "rank": repeat(torch.arange(k), "k -> (row k)", row=len(prompt)).numpy(),
            "token": [text_of_token[token] for token in token_ids],
            "token_id": token_ids,
            "probability": probabilities.flatten().numpy(),
        }
    )
