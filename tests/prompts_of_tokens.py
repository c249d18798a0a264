"""Prompts of given tokens, read at their last one."""

import torch
from torch import Tensor

from kn_lens.prompts import PromptBatch


def batch_of(tokens: Tensor, contrast_ids: Tensor | None = None) -> PromptBatch:
    """Return prompts of tokens without padding, with the answers 20, 21, ..."""
    n_rows, n_pos = tokens.shape
    return PromptBatch.from_tokens(
        tokens,
        read_pos=torch.full((n_rows,), n_pos - 1),
        target_ids=20 + torch.arange(n_rows),
        contrast_ids=contrast_ids,
    )
