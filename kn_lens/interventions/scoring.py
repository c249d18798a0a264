"""Scores of the answers of prompts, with and without interventions, in passes of bounded memory.

``score_answers`` runs full passes and returns every score of the answers. ``score_answers_under`` returns the
log-probabilities and ranks of the answers under many interventions and shares one clean pass between them: where an
intervention changes the moved position (``prompts.post_pos``) only, its pass starts at the lowest layer that it
changes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.precision import at_least_float32
from kn_lens.attribution import check_numbers, chunk_by_rows, target_logits
from kn_lens.hosts import (
    Budget,
    CleanState,
    HookFn,
    Host,
    last_block_hooks,
    recomputes_last_token_only,
    run_clean,
)
from kn_lens.interventions.hooks import Intervention, Positionwise, Resumable
from kn_lens.prompts import PromptBatch

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class RankedAnswers:
    """How probable the answers of prompts are.

    Attributes:
        log_prob: log-probability of each prompt's answer in nats, summed over its tokens.
        rank: zero-based rank of each prompt's answer; of an answer of several tokens, the rank of the worst.
    """

    log_prob: np.ndarray
    rank: np.ndarray

    @property
    def prob(self) -> np.ndarray:
        """The probability of each prompt's answer."""
        return np.exp(self.log_prob)

    @property
    def n_right(self) -> int:
        """The number of prompts whose answer is the most probable one."""
        return int((self.rank == 0).sum())

    @classmethod
    def unknown(cls, n_prompts: int) -> "RankedAnswers":
        """Return answers that are still to be scored: a log-probability of NaN, and the rank -1."""
        return RankedAnswers(log_prob=np.full(n_prompts, np.nan), rank=np.full(n_prompts, -1))

    def put(self, prompts: Int[Tensor, " some"], scores: "_Scores") -> None:
        """Write the scores of some prompts."""
        index = prompts.cpu().numpy()
        self.log_prob[index] = scores.log_prob.cpu().numpy()
        self.rank[index] = scores.rank.cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class AnswerScores(RankedAnswers):
    """The scores of the answers of a batch.

    Attributes:
        log_prob: log-probability of each prompt's answer in nats, summed over its tokens.
        rank: zero-based rank of each prompt's answer; of an answer of several tokens, the rank of the worst.
        top: the most probable token in each row of each prompt.
    """

    top: list[list[int]]

    def select(self, chosen: Int[np.ndarray, " chosen"]) -> "AnswerScores":
        """Return the scores of some prompts."""
        top = [self.top[prompt] for prompt in chosen.tolist()]
        return AnswerScores(log_prob=self.log_prob[chosen], rank=self.rank[chosen], top=top)

    def split(self, sizes: Sequence[int]) -> "list[AnswerScores]":
        """Return the scores of consecutive groups of prompts."""
        ends = np.cumsum(sizes)
        return [self.select(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]

    def top_text(self, tokenizer: Any) -> list[str]:
        """Return the top tokens of each prompt as text, or as token ids where there is no tokenizer."""
        texts = []
        for ids in self.top:
            if tokenizer is None:
                texts.append(" ".join(map(str, ids)))
            else:
                texts.append(tokenizer.decode(ids).strip())
        return texts


def is_known(n_right: Any, n_prompts: Any) -> Any:
    """Return whether a model knows a fact: the answer is the most probable one in at least half of the prompts.

    Args:
        n_right: number of prompts with the right answer on top (rank 0), or a column of them.
        n_prompts: number of prompts of the fact, or a column of them.

    Returns:
        A truth value, or a column of them.

    >>> is_known(5, 10), is_known(4, 9)
    (True, False)
    """
    return 2 * n_right >= n_prompts


class Ticks:
    """Count the rows that were run and report them to a progress function."""

    def __init__(self, progress: Progress | bool | None, total: int) -> None:
        self.progress = progress if callable(progress) else None
        self.total = total
        self.done = 0

    def __call__(self, rows: int) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.done, self.total)


def score_answers(
    host: Host,
    prompts: PromptBatch,
    interventions: Iterable[Intervention],
    budget: Budget,
    tick: Ticks,
) -> AnswerScores:
    """Score the answer of every prompt under some interventions. Cost: one forward pass per row."""
    interventions = list(interventions)
    only_read_pos = all(isinstance(intervention, Positionwise) for intervention in interventions)
    ranked = RankedAnswers.unknown(len(prompts))
    top: list[list[int]] = [[] for _ in range(len(prompts))]

    def run(
        chosen: Int[Tensor, " chunk"],
    ) -> tuple[PromptBatch, _Scores, Tensor]:
        chunk = prompts.select(chosen)
        hooks: list[tuple[str, HookFn]] = []
        for intervention in interventions:
            hooks += intervention.select(prompts, chosen).hooks(host.model, chunk)
        n_pos = int(chunk.length.max())
        if only_read_pos or not hooks:
            hooks = [*last_block_hooks(host, chunk.read_pos, n_pos), *hooks]
        with torch.no_grad():
            tokens = chunk.tokens[:, :n_pos]
            attention_mask = chunk.attention_mask[:, :n_pos]
            logits = host.logits_at_read_pos(tokens, attention_mask, chunk.read_pos, hooks, chunk.encoder_input)
        return chunk, _scores(logits, chunk), logits.argmax(-1)

    chunks = budget.map_chunks(
        prompts.rows_per_prompt,
        prompts.n_positions,
        budget.rows_per_pass,
        run,
        text_length=prompts.text_length,
    )
    for chosen, result in chunks:
        chunk, scores, row_top = result
        ranked.put(chosen, scores)
        prompt_ids = chosen.tolist()
        for prompt, token in zip(chunk.prompt_index.tolist(), row_top.tolist(), strict=True):
            top[prompt_ids[prompt]].append(token)
        tick(chunk.n_rows)
    return AnswerScores(log_prob=ranked.log_prob, rank=ranked.rank, top=top)


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """An intervention on some prompts of a batch. One chosen prompt is an *item* of the change.

    Attributes:
        chosen: the index of each item's prompt in the batch; an index may repeat.
        prompts: ``batch.select(chosen)``.
        intervention: the intervention on ``prompts``.
        lowest: the lowest layer that the intervention changes for each item, ``n_layers`` where it changes nothing;
            None where passes must start at the embedding.
    """

    chosen: Int[Tensor, " item"]
    prompts: PromptBatch
    intervention: Intervention
    lowest: Int[Tensor, " item"] | None

    @classmethod
    def of(
        cls,
        host: Host,
        chosen: Int[Tensor, " item"],
        prompts: PromptBatch,
        intervention: Intervention,
    ) -> "Change":
        """Return the change of ``prompts``, which is ``batch.select(chosen)`` and may be shared between changes."""
        lowest = None
        if isinstance(intervention, Resumable):
            lowest = intervention.lowest_layers(host, prompts)
        return cls(chosen=chosen, prompts=prompts, intervention=intervention, lowest=lowest)


def score_answers_under(
    host: Host,
    prompts: PromptBatch,
    changes: Sequence[Change],
    memory: float | None,
    tick: Ticks,
) -> tuple[RankedAnswers, list[RankedAnswers]]:
    """Return the log-probabilities and ranks of the answers without and with each change.

    Args:
        host: the model.
        prompts: a batch.
        changes: changes of its prompts; at least one.
        memory: bytes that passes may take; see ``attribute``.
        tick: called with the number of rows that were run: the rows of every change, and once the rows of the prompts
            that at least one change covers.

    Returns:
        The clean scores of each prompt of the batch, NaN and -1 where no change covers it; and for each change the
        scores of each of its items. Cost: one clean pass for each row of the covered prompts; and one pass
        for each row of each change, from its lowest layer up.

    Raises:
        UnsupportedModelError: an answer of the unaltered model is NaN.

    Example:
        >>> import kn_lens as kn
        >>> host = kn.host_of(kn.load_model("world-bert"))
        >>> prompts = kn.make_prompts(host, kn.FactSet.world().find("Ireland", relation="P36"))
        >>> chosen = torch.tensor([2, 0, 1, 0])
        >>> part = prompts.select(chosen)
        >>> changes = []
        >>> for neurons in ([(2, 5), (3, 17)], [(1, 5)], []):
        ...     changes.append(Change.of(host, chosen, part, kn.Suppress(kn.NeuronSet(neurons))))
        >>> before, after = score_answers_under(host, prompts, changes, None, Ticks(None, 0))
        >>> bool((after[2].log_prob == before.log_prob[chosen]).all())
        True
        >>> full = score_answers(host, part, [changes[0].intervention], Budget.of(host, None), Ticks(None, 0))
        >>> bool(np.allclose(after[0].log_prob, full.log_prob, atol=1e-5))
        True
    """
    whole = Budget.of(host, memory)
    after: list[RankedAnswers] = []
    resumable: list[tuple[int, Change]] = []
    for number, change in enumerate(changes):
        if change.lowest is None:
            after.append(score_answers(host, change.prompts, [change.intervention], whole, tick))
        else:
            after.append(RankedAnswers.unknown(len(change.chosen)))
            resumable.append((number, change))
    covered = torch.cat([change.chosen for change in changes]).unique()
    covered_prompts = prompts.select(covered)
    last_token_only = recomputes_last_token_only(
        host,
        covered_prompts.attention_mask,
        covered_prompts.read_pos,
        covered_prompts.post_pos,
    )
    budget = replace(whole, last_token_only=last_token_only)

    def run(
        index: Int[Tensor, " chunk"],
    ) -> tuple[PromptBatch, _Scores, list[tuple[Tensor, _Scores]]]:
        chunk_changes = [change for _, change in resumable]
        chunk = _Chunk.of(host, prompts, covered[index], chunk_changes)
        changed: list[tuple[Tensor, _Scores]] = []
        if chunk_changes:
            longest = int(chunk.prompts.n_positions.max())
            rows_per_pass = budget.rows_per_pass(longest)
            cost = PassCost.of(host, 1 if last_token_only else longest)
            changed = chunk.after(chunk_changes, rows_per_pass, cost)
        return chunk.prompts, chunk.before, changed

    before = RankedAnswers.unknown(len(prompts))
    chunks = budget.map_chunks(
        covered_prompts.rows_per_prompt,
        covered_prompts.n_positions,
        budget.rows_per_chunk,
        run,
        text_length=covered_prompts.text_length,
    )
    for index, result in chunks:
        chunk_prompts, clean, changed = result
        before.put(covered[index], clean)
        tick(chunk_prompts.n_rows)
        for (number, change), (items, scores) in zip(resumable, changed, strict=True):
            after[number].put(items, scores)
            tick(int(change.prompts.rows_per_prompt[items].sum()))
    return before, after


SECONDS_PER_BLOCK = 1e-3
"""What a block costs at least, however few rows it runs on: the calls of some sixty operations."""
PRODUCTS_PER_SECOND = {"cpu": 5e10}
"""Operations a second of matrix products, by type of device; of one thread on a CPU. Only magnitudes count."""
PRODUCTS_PER_SECOND_ELSEWHERE = 5e13


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """What passes cost, so that rows which start at different layers can share those that few rows would leave empty.

    Attributes:
        n_layers: number of blocks.
        seconds_per_row: what a row adds to the time of a block.
    """

    n_layers: int
    seconds_per_row: float

    @classmethod
    def of(cls, host: Host, tokens_per_row: int) -> "PassCost":
        """Return the cost of passes of a model over rows of so many tokens."""
        device = host.device.type
        rate = PRODUCTS_PER_SECOND.get(device, PRODUCTS_PER_SECOND_ELSEWHERE)
        if device == "cpu":
            rate *= torch.get_num_threads()
        # Four maps of the attention, and up to three of the MLP.
        n_weights = 4 * host.d_model**2 + 3 * host.d_model * host.d_mlp
        return cls(n_layers=host.n_layers, seconds_per_row=2 * n_weights * tokens_per_row / rate)

    def joined_starts(self, rows_by_start: Mapping[int, int], rows_per_pass: int) -> list[list[int]]:
        """Return groups of start layers, ascending, whose rows go together: a pass starts at the lowest of its rows.

        Rows join those that start below if running the blocks between costs less than blocks of their own. Rows that
        fill a pass have one of their own.

        >>> cost = PassCost(n_layers=12, seconds_per_row=1e-4)
        >>> cost.joined_starts({3: 50, 4: 50, 11: 50}, rows_per_pass=170)
        [[3, 4], [11]]
        >>> cost.joined_starts({3: 50, 4: 200, 5: 2}, rows_per_pass=170)
        [[3], [4, 5]]
        """
        groups: list[list[int]] = []
        for start, n_rows in sorted(rows_by_start.items()):
            if groups and n_rows < rows_per_pass:
                between = (start - groups[-1][0]) * n_rows * self.seconds_per_row
                own = (self.n_layers - start) * SECONDS_PER_BLOCK
                if between < own:
                    groups[-1].append(start)
                    continue
            groups.append([start])
        return groups


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chunk:
    """Prompts of a batch whose clean state is in memory together.

    Attributes:
        host: the model.
        prompts: the prompts.
        position: the index in ``prompts`` of each prompt of the whole batch; -1 for prompts outside the chunk.
        state: the clean pass over ``prompts``.
        before: the clean scores of each answer.
    """

    host: Host
    prompts: PromptBatch
    position: Int[Tensor, " batch"]
    state: CleanState
    before: "_Scores"

    @classmethod
    def of(
        cls,
        host: Host,
        batch: PromptBatch,
        chosen: Int[Tensor, " chunk"],
        changes: Sequence[Change],
    ) -> "_Chunk":
        """Run the chosen prompts of a batch and keep the state at the layers where the changes start."""
        prompts = batch.select(chosen)
        position = chosen.new_full((len(batch),), -1)
        position[chosen] = torch.arange(len(chosen), device=chosen.device)
        starts: set[int] = set()
        for change in changes:
            in_chunk = position[change.chosen] >= 0
            starts.update(_lowest(change)[in_chunk].unique().tolist())
        layers = sorted(starts - {host.n_layers})  # n_layers: nothing changes
        state = run_clean(
            host,
            prompts.tokens,
            prompts.attention_mask,
            prompts.read_pos,
            layers,
            encoder=prompts.encoder_input,
            post_pos=prompts.post_pos,
        )
        before = _scores(state.logits, prompts)
        check_numbers(host, prompts, before.log_prob)
        return cls(host=host, prompts=prompts, position=position, state=state, before=before)

    def after(
        self,
        changes: Sequence[Change],
        rows_per_pass: int,
        cost: PassCost,
    ) -> "list[tuple[Int[Tensor, ' _'], _Scores]]":
        """Return for each change its items in this chunk and their scores under the change.

        Changes share passes: the items of one change that start at the same layer are too few to fill a pass. Items
        that start at a higher layer join a pass that starts below where they would cost more in a pass of their own.
        """
        results: list[tuple[Tensor, _Scores]] = []
        # One entry for each item of each change: the number of its change, its index in that change's result, its
        # number of rows, and the layer where its pass starts.
        owners: list[Tensor] = []
        indices: list[Tensor] = []
        rows: list[Tensor] = []
        lowest: list[Tensor] = []
        for number, change in enumerate(changes):
            items = self._items(change)
            results.append((items, self.before.select(self.position[change.chosen[items]])))
            owners.append(torch.full_like(items, number))
            indices.append(torch.arange(len(items), device=items.device))
            rows.append(change.prompts.rows_per_prompt[items])
            lowest.append(_lowest(change)[items])
        owner = torch.cat(owners)
        index = torch.cat(indices)
        n_rows = torch.cat(rows)
        start = torch.cat(lowest)
        rows_by_start: dict[int, int] = {}
        for layer in start.unique().tolist():
            if layer < self.host.n_layers:  # else nothing changes
                rows_by_start[layer] = int(n_rows[start == layer].sum())
        for layers in cost.joined_starts(rows_by_start, rows_per_pass):
            entries = torch.cat([(start == layer).nonzero().squeeze(1) for layer in layers])
            for selected in chunk_by_rows(n_rows[entries], rows_per_pass):
                chosen = entries[selected]
                layer = int(start[chosen].min())
                parts: list[tuple[Change, Tensor]] = []
                targets: list[tuple[_Scores, Tensor]] = []
                for number in owner[chosen].unique().tolist():
                    items, scores = results[number]
                    part = index[chosen[owner[chosen] == number]]
                    parts.append((changes[number], items[part]))
                    targets.append((scores, part))
                changed = self._changed(layer, parts)
                for (scores, part), of_part in zip(targets, changed, strict=True):
                    scores.log_prob[part] = of_part.log_prob
                    scores.rank[part] = of_part.rank
        return results

    def _items(self, change: Change) -> Int[Tensor, " item"]:
        """Return the items of a change in this chunk, in the chunk's order of prompts: from long to short."""
        position = self.position[change.chosen]
        items = (position >= 0).nonzero().squeeze(1)
        return items[position[items].argsort()]

    def _changed(
        self,
        layer: int,
        parts: Sequence[tuple[Change, Int[Tensor, " _"]]],
    ) -> "list[_Scores]":
        """Return the scores of some items of several changes, from one pass that starts at ``layer``."""
        clean_rows: list[Tensor] = []
        slices: list[tuple[slice, PromptBatch]] = []
        hooks_by_name: dict[str, list[tuple[slice, HookFn]]] = {}
        n_rows = 0
        for change, items in parts:
            prompts = change.prompts.select(items)
            part_rows, _ = self.prompts.rows_and_owners(self.position[change.chosen[items]])
            clean_rows.append(part_rows)
            rows = slice(n_rows, n_rows + prompts.n_rows)
            intervention = change.intervention.select(change.prompts, items)
            for name, hook_fn in intervention.hooks(self.host, prompts.moved_tokens_only()):
                hooks_by_name.setdefault(name, []).append((rows, hook_fn))
            slices.append((rows, prompts))
            n_rows = rows.stop
        hooks: list[tuple[str, HookFn]] = []
        for name, row_hooks in hooks_by_name.items():
            hooks.append((name, _combined_hook(row_hooks)))
        scores = []
        with torch.no_grad():
            logits = self.state.logits_with_hooks(layer, torch.cat(clean_rows), hooks)
            for rows, prompts in slices:
                scores.append(_scores(logits[rows], prompts))
        return scores


def _lowest(change: Change) -> Int[Tensor, " item"]:
    assert change.lowest is not None  # a chunk holds changes whose passes can start above the embedding
    return change.lowest


def _combined_hook(row_hooks: Sequence[tuple[slice, HookFn]]) -> HookFn:
    """Return one hook that applies each of several hooks to its own rows."""

    def hook_fn(
        value: Float[Tensor, "row 1 d_mlp"],
        hook: object,
    ) -> Float[Tensor, "row 1 d_mlp"]:
        value = value.clone()
        for rows, row_hook in row_hooks:
            changed = row_hook(value[rows], hook)
            if changed is not None:
                value[rows] = changed
        return value

    return hook_fn


class _Scores(NamedTuple):
    """Log-probability and rank of the answer of each prompt."""

    log_prob: Float[Tensor, " batch"]
    rank: Int[Tensor, " batch"]

    def select(self, prompts: Int[Tensor, " some"]) -> "_Scores":
        return _Scores(self.log_prob[prompts], self.rank[prompts])


def _scores(
    logits: Float[Tensor, "row d_vocab"],
    prompts: PromptBatch,
) -> _Scores:
    """Return the scores of each prompt's answer; the rank of an answer is that of its worst token."""
    row_log_prob, row_rank = _target_scores(at_least_float32(logits), prompts.target_ids)
    log_prob = row_log_prob.new_zeros(len(prompts)).index_add(0, prompts.prompt_index, row_log_prob)
    rank = row_rank.new_zeros(len(prompts)).scatter_reduce(0, prompts.prompt_index, row_rank, "amax")
    return _Scores(log_prob, rank)


def _target_scores(
    logits: Float[Tensor, "row d_vocab"],
    target_ids: Int[Tensor, " row"],
) -> tuple[Float[Tensor, " row"], Int[Tensor, " row"]]:
    """Return the log-probability of each target and the number of more probable tokens.

    NaN counts as more probable.
    """
    target = target_logits(logits, target_ids)
    log_prob = target - logits.logsumexp(-1)
    # Not ``logits > target``: where all logits are NaN, as after an overflow, the target would have rank 0.
    is_higher = ~(logits <= target[:, None])
    return log_prob.double(), is_higher.sum(-1)
