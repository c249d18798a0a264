"""Pairs of random tokens for tiny models."""

import pytest
import torch

from kn_lens.circuits import PromptPairs
from kn_lens.prompts import PromptBatch


def made_pairs(n_pairs: int = 2, n_pos: int = 5, seed: int = 0, subject: slice = slice(1, 3)) -> PromptPairs:
    """Return pairs of random tokens that differ at the positions of a subject."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(5, 60, (n_pairs, n_pos), generator=generator)
    counterfactual = clean.clone()
    counterfactual[:, subject] = (clean[:, subject] + 7) % 60
    targets = torch.randint(5, 60, (2, n_pairs), generator=generator)
    read_pos = torch.full((n_pairs,), n_pos - 1)
    return PromptPairs(
        clean=PromptBatch.from_tokens(clean, read_pos=read_pos, target_ids=targets[0], contrast_ids=targets[1]),
        counterfactual=PromptBatch.from_tokens(counterfactual, read_pos=read_pos, target_ids=targets[1]),
        left_out={},
    )


@pytest.fixture
def pairs() -> PromptPairs:
    """Return two pairs of five tokens."""
    return made_pairs()
