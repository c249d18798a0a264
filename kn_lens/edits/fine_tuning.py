"""FT: constrained fine-tuning of the ``W_out`` of one layer, the baseline FT-L of Meng et al. (2022).

    minimise   mean over prompts of -log P(new answer) / tokens       over W_out of one layer
    within     |W_out' - W_out| <= epsilon in every entry

by Adam, clamped to the bound after each step, until the loss is below 0.01 or for ``n_steps``. One step sees the
prompts of all facts. The answer is teacher-forced: each of its tokens is read after those before it. (The published
code asks for all of them after the prompt; for an answer of one token that is the same.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.checks import check_kind
from kn_lens._core.precision import at_least_float32
from kn_lens._core.progress import draws_progress
from kn_lens.attribution import target_log_probs
from kn_lens.edits.editors import described, editable_host, layer_edit
from kn_lens.edits.targets import Rewrites, check_count, check_positive
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import EditError
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, HookFn, Host, exclusive
from kn_lens.interventions import Progress, Ticks
from kn_lens.prompts import PromptBatch

ENOUGH = 0.01
"""The loss at which training ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FT:
    """The editor FT-L: Adam on the ``W_out`` of one layer, within a bound on each entry.

    The settings are those published for GPT-2 XL; for GPT-J the bound is 5e-5, for GPT-2 medium 2e-3.

    Attributes:
        layer: the layer; published: 0, the default.
        epsilon: the largest change of an entry.
        n_steps: the largest number of steps of Adam.
        learning_rate: of Adam.
        name: the name in tables.

    Raises:
        ArgumentError: another kind of argument, or a number out of range.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> fact = kn.FactSet.world("held_out").find("Ireland", relation="P36")
        >>> edit = kn.FT(n_steps=2).edit(model, {fact: "Rome"})
        >>> edit
        WeightEdit('FT-L: P36/Ireland/Dublin -> Rome' (512 rows), of world-gpt2, ...)
        >>> bool((edit.new - edit.old).abs().max() < 5.1e-4)
        True
    """

    layer: int = 0
    epsilon: float = 5e-4
    n_steps: int = 25
    learning_rate: float = 5e-4
    name: str = "FT-L"

    def __post_init__(self) -> None:
        check_kind(self.name, str, "a text", "name")
        check_positive("epsilon", self.epsilon)
        check_positive("learning_rate", self.learning_rate)
        check_count("n_steps", self.n_steps)

    @exclusive
    @draws_progress("Editing by fine-tuning", "steps")
    def edit(
        self,
        model: HookedModel | Host,
        updates: Mapping[Fact, str],
        *,
        tokenizer: Any = None,
        memory_budget: float | None = None,
        progress: Progress | bool | None = None,
    ) -> WeightEdit:
        """Return one edit that gives facts new answers; see ``Editor``. The model is left as it was.

        The change is trained beside the weights, in float32 at least: they are not written.

        Cost: up to ``n_steps`` forward and backward passes of all prompts.

        Raises:
            EditError: a new answer equals the old or is out of the vocabulary; the rows cannot be edited; or the loss
                is not a number.
            UnsupportedModelError: a model that is not causal, or a layer with experts.
            PromptError: a fact gives no prompt.
            ArgumentError: no updates, another kind of argument, or a template that does not name its subject.
        """
        host, (layer,) = editable_host(model, updates, self.name, [self.layer], None)
        rewrites = Rewrites.of(host, updates, (), tokenizer=tokenizer, memory_budget=memory_budget)
        tick = Ticks(progress, self.n_steps)
        dtype = torch.promote_types(host.dtype, torch.float32)
        change = torch.zeros(host.d_mlp, host.d_model, dtype=dtype, device=host.device)
        adam = torch.optim.Adam([change], lr=self.learning_rate)
        loss, n_steps = 0.0, 0
        for step in range(self.n_steps):
            loss, change.grad = _loss(rewrites, layer, change)
            if not loss < float("inf"):
                raise EditError(
                    f"The loss of {self.name} in {host.name} is {loss} after {step} steps; expected a number. "
                    "A smaller learning_rate, or a model loaded with a wider dtype, keeps it one."
                )
            if loss < ENOUGH:
                break
            adam.step()
            change.clamp_(-self.epsilon, self.epsilon)
            n_steps = step + 1
            tick(1)
        tick(self.n_steps - n_steps)
        why = {
            "kind": "ft",
            "editor": self.name,
            "updates": described(updates),
            "layers": [layer],
            "epsilon": self.epsilon,
            "n_steps": self.n_steps,
            "learning_rate": self.learning_rate,
            "loss": [loss],
        }
        return layer_edit(host, layer, change, [why])


def _loss(
    rewrites: Rewrites, layer: int, change: Float[Tensor, "d_mlp d_model"]
) -> tuple[float, Float[Tensor, "d_mlp d_model"]]:
    """Return the mean over prompts of the mean negative log-probability of the answer's tokens, and its gradient."""
    host, prompts, budget = rewrites.host, rewrites.prompts, rewrites.budget
    weights = 1 / (len(prompts) * prompts.rows_per_prompt[prompts.prompt_index].to(change))

    def run(chosen: Int[Tensor, " chunk"]) -> tuple[float, Tensor]:
        chunk = prompts.select(chosen)
        moved = change.clone().requires_grad_()
        with torch.enable_grad():
            logits = at_least_float32(_logits(host, chunk, layer, moved))
            loss = -(target_log_probs(logits, chunk.target_ids) * weights[prompts.rows_of(chosen)]).sum()
        (gradient,) = torch.autograd.grad(loss, [moved])
        return float(loss.detach()), gradient

    total, gradients = 0.0, torch.zeros_like(change)
    chunks = budget.map_chunks(prompts.rows_per_prompt, prompts.length, budget.rows_per_pass, run)
    for _, (loss, gradient) in chunks:
        total += loss
        gradients += gradient
    return total, gradients


def _logits(
    host: Host, prompts: PromptBatch, layer: int, change: Float[Tensor, "d_mlp d_model"]
) -> Float[Tensor, "row d_vocab"]:
    """Return the logits at the read position with a matrix added to ``W_out`` of a layer."""
    read, add = _change_hooks(change)
    n_pos = int(prompts.length.max())
    return host.logits_at_read_pos(
        prompts.tokens[:, :n_pos],
        prompts.attention_mask[:, :n_pos],
        prompts.read_pos,
        [(host.hook_post(layer), read), (host.hook_mlp_out(layer), add)],
    )


def _change_hooks(change: Float[Tensor, "d_mlp d_model"]) -> tuple[HookFn, HookFn]:
    """Return the hooks that add a matrix to ``W_out``; gradients flow back into it."""
    keys: list[Tensor] = []  # from the first hook to the second, within one pass

    def read(post: Float[Tensor, "row pos d_mlp"], hook: object = None) -> None:
        keys[:] = [at_least_float32(post)]

    def add(mlp_out: Float[Tensor, "row pos d_model"], hook: object = None) -> Float[Tensor, "row pos d_model"]:
        return (mlp_out + keys.pop() @ change).to(mlp_out.dtype)

    return read, add
