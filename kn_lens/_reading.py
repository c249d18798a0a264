"""Reading every prompt's answer off a model, with or without interventions, in bounded passes.

``read`` runs whole passes and tells all that there is to tell. ``read_changes`` tells what the answers' probabilities
become under many interventions, from one clean pass: where an intervention changes the read position alone, a pass
starts at the lowest layer that it changes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._budget import Budget
from kn_lens.engine import check_numbers, cuts
from kn_lens.hosts import HookFn, Host
from kn_lens.interventions import Intervention, Resumable
from kn_lens.outputs import at_least_float32, target_log_probs, target_logits
from kn_lens.prompts import PromptBatch
from kn_lens.resume import CleanState, last_token_moves, narrowed, run_clean

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
        if not hooks:
            hooks = narrowed(host, part.read_pos, n_pos)
        with torch.no_grad():
            logits = host.whole_logits(part.tokens[:, :n_pos], part.attention_mask[:, :n_pos], part.read_pos, hooks)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """An intervention on some prompts of a batch.

    Attributes:
        chosen: numbers of prompts, repeats allowed.
        prompts: ``batch.select(chosen)``.
        intervention: on ``prompts``.
        lowest: the lowest layer changed under each of them, where passes can start from it; else None.
    """

    chosen: Int[Tensor, " item"]
    prompts: PromptBatch
    intervention: Intervention
    lowest: Int[Tensor, " item"] | None

    @classmethod
    def of(cls, host: Host, chosen: Int[Tensor, " item"], prompts: PromptBatch, intervention: Intervention) -> "Change":
        """Make it, of ``batch.select(chosen)``, which changes can share."""
        can_resume = isinstance(intervention, Resumable)
        lowest = intervention.lowest_layers(host, prompts) if can_resume else None
        return cls(chosen=chosen, prompts=prompts, intervention=intervention, lowest=lowest)


def read_changes(
    host: Host, prompts: PromptBatch, changes: Sequence[Change], memory: float | None, tick: Ticks
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the answers' log-probabilities without and with each change.

    Args:
        host: what runs.
        prompts: a batch.
        changes: of its prompts; at least one.
        memory: bytes that passes may take; see ``attribute``.
        tick: told the rows: those of all changes, and of all prompts that any of them is of.

    Returns:
        Those of ``prompts``, NaN where there is no change; and for each change those of its ``chosen``. Cost: a pass
        for each row of these prompts, and for each row of each change one from its lowest layer up.

    Raises:
        UnsupportedModelError: an answer of the unaltered model is NaN.
    """
    whole = Budget.of(host, memory)
    after = [
        np.full(len(change.chosen), np.nan)
        if change.lowest is not None
        else read(host, change.prompts, [change.intervention], whole, tick).log_prob
        for change in changes
    ]
    resumable = [(number, change) for number, change in enumerate(changes) if change.lowest is not None]
    numbers = torch.cat([change.chosen for change in changes]).unique()
    asked = prompts.select(numbers)
    budget = replace(whole, moving_last=last_token_moves(host, asked.attention_mask, asked.read_pos))

    def run(some: Int[Tensor, " some"]) -> tuple[PromptBatch, Tensor, list[tuple[int, Tensor, Tensor]]]:
        stretch = _Stretch.of(host, prompts, numbers[some], [change for _, change in resumable])
        at_once = budget.rows_per_pass(int(stretch.prompts.length.max()))
        after = stretch.after([change for _, change in resumable], at_once) if resumable else []
        found = [(number, *one) for (number, _), one in zip(resumable, after, strict=True)]
        return stretch.prompts, stretch.before, found

    before = np.full(len(prompts), np.nan)
    for some, result in budget.work_through(asked.rows_per_prompt, asked.length, budget.rows_per_stretch, run):
        part, values, found = result
        before[numbers[some].cpu().numpy()] = values.cpu().numpy()
        tick(part.n_rows)
        for number, items, values in found:
            after[number][items.cpu().numpy()] = values.cpu().numpy()
            tick(int(changes[number].prompts.rows_per_prompt[items].sum()))
    return before, after


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stretch:
    """Prompts whose clean state is held together.

    Attributes:
        host: what runs.
        prompts: the prompts.
        place: for each prompt of the whole batch, where it stands here; -1 elsewhere.
        state: the clean pass.
        before: the answers' log-probabilities in it.
    """

    host: Host
    prompts: PromptBatch
    place: Int[Tensor, " batch"]
    state: CleanState
    before: Float[Tensor, " some"]

    @classmethod
    def of(cls, host: Host, batch: PromptBatch, numbers: Int[Tensor, " some"], changes: Sequence[Change]) -> "_Stretch":
        """Run these prompts of a batch, and keep what the changes start from."""
        prompts = batch.select(numbers)
        place = numbers.new_full((len(batch),), -1)
        place[numbers] = torch.arange(len(numbers), device=numbers.device)
        lowest = [change.lowest[place[change.chosen] >= 0] for change in changes if change.lowest is not None]
        layers = [layer for layer in range(host.n_layers) if any(bool((one == layer).any()) for one in lowest)]
        state = run_clean(host, prompts.tokens, prompts.attention_mask, prompts.read_pos, layers)
        before = _log_prob(state.logits, prompts)
        check_numbers(host, prompts, before)
        return cls(host=host, prompts=prompts, place=place, state=state, before=before)

    def after(self, changes: Sequence[Change], at_once: int) -> list[tuple[Int[Tensor, " _"], Float[Tensor, " _"]]]:
        """Return for each change which of its items are about these prompts, and their log-probabilities with it.

        Changes share passes: those of one change from one layer on are too few to fill them.
        """
        items = [self._items(change) for change in changes]
        values = [self.before[self.place[change.chosen[mine]]] for change, mine in zip(changes, items, strict=True)]
        owner = torch.cat([torch.full_like(mine, number) for number, mine in enumerate(items)])
        spot = torch.cat([torch.arange(len(mine), device=owner.device) for mine in items])
        rows = torch.cat([one.prompts.rows_per_prompt[mine] for one, mine in zip(changes, items, strict=True)])
        lowest = torch.cat([_lowest(change)[mine] for change, mine in zip(changes, items, strict=True)])
        for layer in lowest.unique().tolist():
            if layer == self.host.n_layers:  # nothing changes
                continue
            here = (lowest == layer).nonzero().squeeze(1)
            for some in cuts(rows[here], at_once):
                chosen = here[some]
                shared = {number: spot[chosen[owner[chosen] == number]] for number in owner[chosen].unique().tolist()}
                together = [(changes[number], items[number][spots]) for number, spots in shared.items()]
                for (number, spots), found in zip(shared.items(), self._changed(layer, together), strict=True):
                    values[number][spots] = found
        return list(zip(items, values, strict=True))

    def _items(self, change: Change) -> Int[Tensor, " item"]:
        """Return the numbers of the items of a change that are about these prompts, from long to short as they are."""
        place = self.place[change.chosen]
        items = (place >= 0).nonzero().squeeze(1)
        return items[place[items].argsort()]

    def _changed(self, layer: int, together: Sequence[tuple[Change, Int[Tensor, " _"]]]) -> list[Float[Tensor, " _"]]:
        """Return the log-probabilities of some items of changes, all from one pass that starts at a layer."""
        rows, asked, n_rows = [], [], 0
        hooks: dict[str, list[tuple[slice, HookFn]]] = {}
        for change, items in together:
            prompts = change.prompts.select(items)
            rows.append(self.prompts.rows_and_owners(self.place[change.chosen[items]])[0])
            mine = slice(n_rows, n_rows + prompts.n_rows)
            for name, hook_fn in change.intervention.select(change.prompts, items).hooks(
                self.host, _read_alone(prompts)
            ):
                hooks.setdefault(name, []).append((mine, hook_fn))
            asked.append((mine, prompts))
            n_rows = mine.stop
        with torch.no_grad():
            logits = self.state.logits_with_hooks(
                layer, torch.cat(rows), [(name, _side_by_side(of_name)) for name, of_name in hooks.items()]
            )
            return [_log_prob(logits[mine], prompts) for mine, prompts in asked]


def _lowest(change: Change) -> Int[Tensor, " item"]:
    assert change.lowest is not None  # passes can start from it
    return change.lowest


def _side_by_side(parts: Sequence[tuple[slice, HookFn]]) -> HookFn:
    """Return a hook that calls each of some hooks on rows of its own."""

    def hook_fn(value: Float[Tensor, "row 1 d_mlp"], hook: object) -> Float[Tensor, "row 1 d_mlp"]:
        value = value.clone()
        for rows, of_rows in parts:
            changed = of_rows(value[rows], hook)
            if changed is not None:
                value[rows] = changed
        return value

    return hook_fn


def _read_alone(prompts: PromptBatch) -> PromptBatch:
    """Return prompts of one token a row, the one at the read position."""
    tokens = prompts.tokens.gather(1, prompts.read_pos[:, None])
    read_pos = torch.zeros_like(prompts.read_pos)
    return replace(prompts, tokens=tokens, attention_mask=torch.ones_like(tokens), read_pos=read_pos)


def _log_prob(logits: Float[Tensor, "row d_vocab"], prompts: PromptBatch) -> Float[Tensor, " batch"]:
    """Return the log-probability of each prompt's answer."""
    of_row = target_log_probs(at_least_float32(logits), prompts.target_ids).double()
    return of_row.new_zeros(len(prompts)).index_add(0, prompts.prompt_index, of_row)


def _of_target(
    logits: Float[Tensor, "row d_vocab"], target_ids: Int[Tensor, " row"]
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """Return the log-probability of each target, and how many tokens are more probable, NaN counting as more."""
    target = target_logits(logits, target_ids)
    # Not ``logits > target``: where all are NaN, as after an overflow, the target would be the most probable token.
    return (target - logits.logsumexp(-1)).double(), (~(logits <= target[:, None])).sum(-1)
