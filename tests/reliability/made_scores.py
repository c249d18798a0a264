"""A small file of scores with its prompts."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import kn_lens as kn
from tests.tiny import tiny_model

N_PROMPTS = 4


@cache
def score_prompts() -> kn.PromptBatch:
    tokens = torch.arange(5, 5 + 6 * N_PROMPTS).reshape(N_PROMPTS, 6)
    return kn.PromptBatch.from_tokens(tokens, read_pos=torch.full((N_PROMPTS,), 2), target_ids=tokens[:, 0])


@cache
def score_file(keep: float | None = 0.5) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "scores.parquet")
        kn.attribute_to_file(tiny_model(), path, score_prompts(), method="activation", keep=keep)
        return path.read_bytes()


@cache
def written_scores(keep: float | None = 0.5) -> torch.Tensor:
    return kn.attribute(tiny_model(), score_prompts(), method="activation", keep=keep).scores.to_dense()
