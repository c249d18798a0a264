"""Targets: what a layer should write at the subject's last token, so that the model gives the new answer.

ROME, MEMIT and AlphaEdit look a fact up at the last token of its subject. For the prompts p of a fact,

    key      k* = mean over p of the activations there, the input of W_out
    value    v0 = mean over p of what stands there before the edit
    target   v* = v0 + delta

with the ``delta`` that minimises, when it is added to the output of ``W_out`` at that token of every prompt,

    mean over p of -log P(new answer | p) / tokens   +   kl_factor * KL(P || P0) after "[X] is a"
                                                     +   weight_decay * |delta| / |v0|^2

by Adam, and within ``|delta| <= clamp * |v0|`` (Meng et al. 2022, equation 4, with the terms of their code). P0 is the
unaltered model's distribution of the next token. The loss is minimised until it is below 0.05 or for ``n_steps``.

The prompts are all that the fact's templates give, and the first of them after each of ``prefixes``. Prefixes make the
key the subject's own rather than one of a place in the text. Meng et al. let the model write them, at random; here they
are fixed texts, the same for every model.

In a causal model no token before the subject's last one sees ``delta``. So each step runs, of every prompt, the tokens
from that one on, through the layers above: see ``hosts.partial_forward``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from kn_lens._core.checks import check_kind, check_number
from kn_lens._core.precision import at_least_float32
from kn_lens.attribution import target_log_probs
from kn_lens.edits.moments import SecondMoments
from kn_lens.edits.updates import check_new_answer
from kn_lens.errors import ArgumentError, EditError
from kn_lens.facts import Fact
from kn_lens.hosts import Budget, CleanState, HookFn, Host, run_clean
from kn_lens.interventions import Ticks
from kn_lens.prompts import PromptBatch, make_prompts

PREFIXES = (
    "The following is known.",
    "Therefore, as was said before:",
    "Because it was asked so often,",
    "I read this in a book.",
    "You may have heard it already:",
)
"""The default prefixes. They begin as the generated ones of Meng et al. (2023) do."""

ESSENCE = "[X] is a [Y]"
"""The prompt after which the distribution of the next token should stay as it is."""

ENOUGH = 0.05
"""The loss at which the search for a target ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetEditor:
    """What ROME, MEMIT and AlphaEdit share: second moments, and the search for a target.

    Attributes:
        moments: second moments of the layers that are edited, of the unedited model.
        n_steps: the largest number of steps of Adam.
        learning_rate: of Adam.
        weight_decay: see `targets`.
        clamp: the largest length of delta, as a multiple of that of what it is added to.
        kl_factor: see `targets`.
        prefixes: texts before the first prompt of a fact, each of which gives one more.
        name: the name in tables.

    Raises:
        ArgumentError: another kind of argument, or a number out of range.
    """

    moments: SecondMoments
    n_steps: int = 25
    learning_rate: float = 0.5
    weight_decay: float = 0.5
    clamp: float = 4.0
    kl_factor: float = 0.0625
    prefixes: Sequence[str] = PREFIXES
    name: str = "editor"

    def __post_init__(self) -> None:
        check_kind(self.moments, SecondMoments, "SecondMoments: kn_lens.second_moments(model, texts)", "moments")
        check_kind(self.name, str, "a text", "name")
        for setting in ("learning_rate", "clamp"):
            check_positive(setting, getattr(self, setting))
        for setting in ("weight_decay", "kl_factor"):
            check_not_negative(setting, getattr(self, setting))
        check_count("n_steps", self.n_steps)
        if isinstance(self.prefixes, str) or not all(isinstance(prefix, str) for prefix in self.prefixes):
            raise ArgumentError(f"prefixes={self.prefixes!r}; expected several texts, or () for none.")
        object.__setattr__(self, "prefixes", tuple(self.prefixes))

    @property
    def _settings(self) -> dict[str, Any]:
        """The settings as they stand in the ``why`` of an edit."""
        return {
            "moments": self.moments.digest,
            "moments_tokens": self.moments.n_tokens,
            "n_steps": self.n_steps,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "clamp": self.clamp,
            "kl_factor": self.kl_factor,
            "prefixes": list(self.prefixes),
        }

    def _search(
        self,
        rewrites: "Rewrites",
        number: int,
        layer: int,
        value: Float[Tensor, " d_model"],
        tick: Ticks,
    ) -> "Target":
        """Return the target of one of the facts, at a layer where it has the value v0."""
        search = _TargetSearch(rewrites=rewrites, number=number, layer=layer, editor=self)
        return search.run(float(value.norm()), tick)


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What the search for a target found.

    Attributes:
        delta: what is added to the output of ``W_out``; float64, on the CPU.
        loss: the last loss, before the last step.
        n_steps: the number of steps that were taken.
    """

    delta: Float[Tensor, " d_model"]
    loss: float
    n_steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Rewrites:
    """Facts with their new answers, as prompts that are put at the subject's last token.

    Attributes:
        host: the model.
        facts: each fact with its new answer.
        prompts: the prompts of each fact, and its first one after each prefix.
        essences: one prompt of each fact, "[X] is a".
        budget: the memory for passes.
    """

    host: Host
    facts: tuple[Fact, ...]
    prompts: PromptBatch
    essences: PromptBatch
    budget: Budget

    @classmethod
    def of(
        cls,
        host: Host,
        updates: Mapping[Fact, str],
        prefixes: Sequence[str],
        *,
        tokenizer: Any,
        memory_budget: float | None,
        changes: bool = True,
    ) -> "Rewrites":
        """Build the prompts of updates.

        Args:
            host: the model.
            updates: the facts and their new answers.
            prefixes: texts before the first prompt of each fact.
            tokenizer: the tokenizer to use instead of the model's own.
            memory_budget: bytes of memory for passes.
            changes: whether the new answers must differ from the facts' own.

        Raises:
            EditError: a new answer equals the old one or is out of the vocabulary, or two updates become one fact.
            PromptError: a fact gives no prompt.
            ArgumentError: a prompt does not name its subject.
        """
        facts: list[Fact] = []
        prefixed: list[Fact] = []
        essences: list[Fact] = []
        for fact, new_object in updates.items():
            if changes:
                check_new_answer(host, fact, new_object, tokenizer)
            new_fact = replace(fact, object=new_object)
            if new_fact in facts:
                raise EditError(f"Two updates become the fact {new_fact.key}; expected one of them.")
            usable = make_prompts(host, new_fact, tokenizer=tokenizer, unknown_answers="leave_out").template
            copies = [f"{prefix} {usable[0]}" for prefix in prefixes]
            facts.append(new_fact)
            prefixed.append(replace(new_fact, templates=(*usable, *copies)))
            essences.append(replace(new_fact, templates=(ESSENCE,)))
        # A prefix may make tokens of the answer others than the text before it allows.
        prompts = make_prompts(host, prefixed, tokenizer=tokenizer, unknown_answers="leave_out").at("subject_last")
        essence_prompts = make_prompts(host, essences, tokenizer=tokenizer).at("subject_last")
        prompts.check_for(host)
        essence_prompts.check_for(host)
        return cls(
            host=host,
            facts=tuple(facts),
            prompts=prompts,
            essences=essence_prompts,
            budget=Budget.of(host, memory_budget, gradient=True),
        )

    def of_fact(self, number: int) -> tuple[PromptBatch, PromptBatch]:
        """Return the prompts and the essence of one fact."""
        chosen = (self.prompts.fact_index == number).nonzero().squeeze(1)
        essence = (self.essences.fact_index == number).nonzero().squeeze(1)
        return self.prompts.select(chosen), self.essences.select(essence[:1])

    def means(
        self,
        names: Sequence[str],
        added: Mapping[str, Float[Tensor, "fact d_model"]] | None = None,
    ) -> dict[str, Float[Tensor, "fact _"]]:
        """Return the means of activations at the subject's last token over the prompts of each fact.

        Args:
            names: the hooks that are read.
            added: by hook, a vector of each fact that is added there before.

        Returns:
            The mean of each hook, in float64 on the CPU. Cost: a forward pass of each prompt up to its subject.
        """
        prompts = self.prompts
        first_rows = torch.searchsorted(prompts.prompt_index, torch.arange(len(prompts), device=prompts.tokens.device))
        positions = prompts.post_pos[first_rows]
        facts = prompts.fact_index
        sums: dict[str, Tensor] = {}

        def run(chosen: Int[Tensor, " chunk"]) -> dict[str, Tensor]:
            rows, position = first_rows[chosen], positions[chosen]
            n_pos = int(position.max()) + 1
            values: dict[str, Tensor] = {}
            hooks = []
            for name, vectors in (added or {}).items():
                hooks.append((name, _adding(vectors.to(self.host.device)[facts[chosen]], position)))
            for name in names:
                hooks.append((name, _reading(values, name, position)))
            tokens, mask = prompts.tokens[rows, :n_pos], prompts.attention_mask[rows, :n_pos]
            with torch.no_grad():
                self.host.logits_at_read_pos(tokens, mask, position, hooks)
            return values

        chunks = self.budget.map_chunks(torch.ones_like(positions), positions + 1, self.budget.rows_per_pass, run)
        for chosen, values in chunks:
            for name, value in values.items():
                value = value.double().cpu()
                total = sums.setdefault(name, value.new_zeros(len(self.facts), value.shape[-1]))
                total.index_add_(0, facts[chosen].cpu(), value)
        n_prompts = torch.bincount(facts, minlength=len(self.facts)).cpu()
        return {name: total / n_prompts[:, None] for name, total in sums.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _TargetSearch:
    """The minimisation of the loss of one fact; see the module.

    Clean states of its prompts are kept between steps where they fit a chunk, and computed again where they do not.
    The essence goes through the model with the first prompt.
    """

    rewrites: Rewrites
    number: int
    layer: int
    editor: TargetEditor
    states: dict[tuple[int, ...], tuple[PromptBatch, CleanState]] = field(default_factory=dict)

    def run(self, length: float, tick: Ticks) -> Target:
        """Return the target.

        Args:
            length: the length of v0.
            tick: called for each step.

        Raises:
            EditError: the loss is not a number, or v0 is zero.
        """
        host, editor = self.rewrites.host, self.editor
        fact = self.rewrites.facts[self.number]
        prompts, essence = self.rewrites.of_fact(self.number)
        if not length > 0:
            raise EditError(
                f"Layer {self.layer} of {host.name} writes nothing at the subject of {fact.key}; expected a layer "
                "whose W_out is not zero. Undo the erasure of it first, or edit another layer."
            )
        dtype = torch.promote_types(host.dtype, torch.float32)
        delta = torch.zeros(host.d_model, dtype=dtype, device=host.device)
        adam = torch.optim.Adam([delta], lr=editor.learning_rate)
        loss, n_steps = 0.0, 0
        for step in range(editor.n_steps):
            loss, gradient = self._loss(prompts, essence, delta)
            if editor.weight_decay and step:  # at zero its gradient is taken as zero
                loss += editor.weight_decay * float(delta.norm()) / length**2
                gradient = gradient + editor.weight_decay * delta / (delta.norm() * length**2)
            if not loss < float("inf"):
                raise EditError(
                    f"The loss of {fact.key} in {host.name} is {loss} after {step} steps; expected a number. "
                    "A smaller learning_rate, or a model loaded with a wider dtype, keeps it one."
                )
            if loss < ENOUGH:
                break
            if not gradient.any():
                raise EditError(
                    f"What layer {self.layer} of {host.name} writes at the subject of {fact.key} does not reach the "
                    f"answer: its gradient is zero. Expected a layer below the last one, {host.n_layers - 1}."
                )
            delta.grad = gradient
            adam.step()
            delta.mul_(min(1.0, editor.clamp * length / float(delta.norm())))
            n_steps = step + 1
            tick(1)
        tick(editor.n_steps - n_steps)
        return Target(delta=delta.double().cpu(), loss=loss, n_steps=n_steps)

    def _loss(
        self, prompts: PromptBatch, essence: PromptBatch, delta: Float[Tensor, " d_model"]
    ) -> tuple[float, Float[Tensor, " d_model"]]:
        """Return the loss without the decay of delta, and its gradient.

        The mean negative log-probability of the answer's tokens, and the divergence of the next token's distribution
        after "[X] is a".
        """
        budget, kl_factor = self.rewrites.budget, self.editor.kl_factor
        weights = 1 / (len(prompts) * prompts.rows_per_prompt[prompts.prompt_index].to(delta))
        n_rows = prompts.rows_per_prompt.clone()
        n_rows[0] += bool(kl_factor)
        keeps = int(n_rows.sum()) <= budget.rows_per_chunk(int(prompts.length.max()))
        loss, gradient = 0.0, torch.zeros_like(delta)

        def run(chosen: Int[Tensor, " chunk"]) -> tuple[float, Tensor]:
            has_essence = bool(kl_factor) and 0 in chosen
            chunk, state = self._state(prompts, chosen, essence if has_essence else None, keeps)
            moved = delta.clone().requires_grad_()
            with torch.enable_grad():
                logits = self._logits(state, moved)
                log_probs = target_log_probs(logits[: chunk.n_rows], chunk.target_ids)
                chunk_loss = -(log_probs * weights[prompts.rows_of(chosen)]).sum()
                if has_essence:
                    before = at_least_float32(state.logits[-1]).log_softmax(-1)
                    after = logits[-1].log_softmax(-1)
                    chunk_loss = chunk_loss + kl_factor * (after.exp() * (after - before)).sum()
            (chunk_gradient,) = torch.autograd.grad(chunk_loss, [moved])
            return float(chunk_loss.detach()), chunk_gradient

        for _, (chunk_loss, chunk_gradient) in budget.map_chunks(n_rows, prompts.length, budget.rows_per_pass, run):
            loss += chunk_loss
            gradient = gradient + chunk_gradient
        return loss, gradient

    def _logits(self, state: CleanState, delta: Float[Tensor, " d_model"]) -> Float[Tensor, "row d_vocab"]:
        rows = torch.arange(len(state.logits), device=delta.device)
        added = repeat(delta, "d_model -> row d_model", row=len(rows))
        return at_least_float32(state.logits_with_additions(rows, {self.layer: ("mlp_out", added)}))

    def _state(
        self, prompts: PromptBatch, chosen: Int[Tensor, " chunk"], essence: PromptBatch | None, keeps: bool
    ) -> tuple[PromptBatch, CleanState]:
        """Return some of the prompts, and the clean state of their rows and of the essence as the last one."""
        key = tuple(chosen.tolist())
        known = self.states.get(key)
        if known is not None:
            return known
        chunk = prompts.select(chosen)
        tokens, mask, read_pos, post_pos = chunk.tokens, chunk.attention_mask, chunk.read_pos, chunk.post_pos
        if essence is not None:  # its first row, where the answer would begin
            tokens, mask = _stacked(tokens, essence.tokens[:1]), _stacked(mask, essence.attention_mask[:1])
            read_pos = torch.cat([read_pos, essence.read_pos[:1]])
            post_pos = torch.cat([post_pos, essence.post_pos[:1]])
        state = run_clean(self.rewrites.host, tokens, mask, read_pos, [self.layer], post_pos=post_pos, together=True)
        if keeps:
            self.states[key] = chunk, state
        return chunk, state


def _stacked(above: Int[Tensor, "_ _"], below: Int[Tensor, "_ _"]) -> Int[Tensor, "_ _"]:
    """Stack two matrices, the narrower one filled with zeros on the right."""
    width = max(above.shape[1], below.shape[1])
    return torch.cat([pad(matrix, (0, width - matrix.shape[1])) for matrix in (above, below)])


def _reading(values: dict[str, Tensor], name: str, position: Int[Tensor, " row"]) -> HookFn:
    """Return the hook that keeps the values of each row at its position."""

    def hook_fn(value: Float[Tensor, "row pos d"], hook: object = None) -> None:
        values[name] = at_least_float32(value.detach()[torch.arange(len(value), device=value.device), position])

    return hook_fn


def _adding(vectors: Float[Tensor, "row d"], position: Int[Tensor, " row"]) -> HookFn:
    """Return the hook that adds a vector to each row at its position."""

    def hook_fn(value: Float[Tensor, "row pos d"], hook: object = None) -> Float[Tensor, "row pos d"]:
        changed = value.clone()
        changed[torch.arange(len(value), device=value.device), position] += vectors.to(value.dtype)
        return changed

    return hook_fn


def check_positive(name: str, value: Any) -> None:
    """Raise unless a setting is a positive number.

    Raises:
        ArgumentError: it is not.
    """
    check_number(name, value)
    if not 0 < value < float("inf"):
        raise ArgumentError(f"{name}={value!r}; expected a positive number.")


def check_not_negative(name: str, value: Any) -> None:
    """Raise unless a setting is zero or a positive number.

    Raises:
        ArgumentError: it is not.
    """
    check_number(name, value)
    if not 0 <= value < float("inf"):
        raise ArgumentError(f"{name}={value!r}; expected zero or a positive number.")


def check_count(name: str, value: Any) -> None:
    """Raise unless a setting is a whole number from 1.

    Raises:
        ArgumentError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}={value!r}; expected a whole number from 1.")
