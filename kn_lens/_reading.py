"""Reading every prompt's answer off a model, with or without interventions, in bounded passes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._budget import Budget
from kn_lens.hosts import Host
from kn_lens.interventions import Intervention
from kn_lens.outputs import at_least_float32, target_logits
from kn_lens.prompts import PromptBatch

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the model answers: per prompt the answer's log-probability and worst rank, and the top token of each row."""

    log_prob: np.ndarray
    rank: np.ndarray
    top: list[list[int]]

    @property
    def prob(self) -> np.ndarray:
        """The answer's probability."""
        return np.exp(self.log_prob)

    def top_text(self, tokenizer: Any) -> list[str]:
        """Return the top tokens of each prompt as text; as ids without a tokenizer."""
        if tokenizer is None:
            return [" ".join(map(str, ids)) for ids in self.top]
        return [tokenizer.decode(ids).strip() for ids in self.top]


class Ticks:
    """Counts rows for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, rows: int) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.done, self.total)


def read(
    host: Host, prompts: PromptBatch, interventions: Iterable[Intervention], budget: Budget, tick: Ticks
) -> Reading:
    """Run every prompt once."""
    log_prob = np.zeros(len(prompts))
    rank = np.zeros(len(prompts), dtype=np.int64)
    top: list[list[int]] = [[] for _ in range(len(prompts))]

    def run(chosen: Int[Tensor, " some"]) -> tuple[PromptBatch, Tensor, Tensor, Tensor]:
        part = prompts.select(chosen)
        hooks = list(chain.from_iterable(one.select(prompts, chosen).hooks(host.model, part) for one in interventions))
        n_pos = int(part.length.max())
        with torch.no_grad():
            logits = host.logits(part.tokens[:, :n_pos], part.attention_mask[:, :n_pos], part.read_pos, hooks)
        return part, *_of_target(at_least_float32(logits), part.target_ids), logits.argmax(-1)

    for chosen, result in budget.work_through(prompts.rows_per_prompt, prompts.length, budget.rows_per_pass, run):
        part, row_log_prob, row_rank, row_top = result
        there = chosen.cpu().numpy()
        owner = part.prompt_index
        zeros = row_log_prob.new_zeros(len(part))
        log_prob[there] = zeros.index_add(0, owner, row_log_prob).cpu().numpy()
        rank[there] = row_rank.new_zeros(len(part)).scatter_reduce(0, owner, row_rank, "amax").cpu().numpy()
        for prompt, token in zip(owner.tolist(), row_top.tolist(), strict=True):
            top[there[prompt]].append(token)
        tick(part.n_rows)
    return Reading(log_prob=log_prob, rank=rank, top=top)


def _of_target(
    logits: Float[Tensor, "row d_vocab"], target_ids: Int[Tensor, " row"]
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """Return the log-probability of each target, and how many tokens are more probable."""
    target = target_logits(logits, target_ids)
    return (target - logits.logsumexp(-1)).double(), (logits > target[:, None]).sum(-1)
