"""Many edits in one pass: each prompt runs under an edit of its own.

An edit changes rows of ``W_out``, so that its layers write

    mlp_out + post[neurons] @ (new - old)

A write to the weights would change this for all rows of a pass. Here each row of a pass has an edit, the weights stay
as they are, and ``post[neurons]`` is read for the neurons of all edits and set to zero in the rows of other edits. So
the prompts of many facts, each under the update of its own fact, fill a pass that those of one fact would leave empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens._core.precision import at_least_float32
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import HookError
from kn_lens.hosts import ActivationSource, Budget, HookedModel, HookFn, Host
from kn_lens.interventions import AnswerScores, Ticks, score_answers
from kn_lens.prompts import PromptBatch, host_for


class LayerChanges(NamedTuple):
    """What all edits change in one layer.

    Attributes:
        owner: the number of the edit of each changed row, on the CPU.
        indices: the neuron of each changed row.
        change: what the edit adds to the row.
    """

    owner: Int[Tensor, " neuron"]
    indices: Int[Tensor, " neuron"]
    change: Float[Tensor, "neuron d_model"]

    def of_edits(self, numbers: Int[Tensor, " edit"]) -> "LayerChanges":
        """Return the rows of some edits."""
        chosen = torch.isin(self.owner, numbers).nonzero().squeeze(1)
        on_device = chosen.to(self.indices.device)
        return LayerChanges(self.owner[chosen], self.indices[on_device], self.change[on_device])


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptEdits:
    """An intervention that runs each prompt under an edit of its own; equal to the written edit, to rounding.

    Attributes:
        layers: what the edits change in each layer.
        edit_of_prompt: the number of the edit of each prompt, on the CPU.
    """

    layers: Mapping[int, LayerChanges]
    edit_of_prompt: Int[Tensor, " batch"]
    treats_positions_alike: ClassVar[bool] = True

    @classmethod
    def of(
        cls,
        host: Host,
        edits: Sequence[WeightEdit],
        edit_of_prompt: Int[Tensor, " batch"],
    ) -> "PromptEdits":
        """Return the intervention of some edits on a model.

        Raises:
            EditError: an edit that cannot be applied to the model; see ``WeightEdit.apply_``.
        """
        parts: dict[int, list[LayerChanges]] = {}
        for number, edit in enumerate(edits):
            for layer, (indices, change) in edit.changes(host).items():
                owner = torch.full((len(indices),), number)
                parts.setdefault(layer, []).append(LayerChanges(owner, indices, change))
        layers: dict[int, LayerChanges] = {}
        for layer, layer_parts in sorted(parts.items()):
            layers[layer] = LayerChanges(*map(torch.cat, zip(*layer_parts, strict=True)))
        return cls(layers=layers, edit_of_prompt=edit_of_prompt)

    def select(
        self,
        prompts: PromptBatch,
        chosen: Int[Tensor, " prompt"],
    ) -> "PromptEdits":
        """Return the intervention on ``prompts.select(chosen)``."""
        return replace(self, edit_of_prompt=self.edit_of_prompt[chosen.cpu()])

    def hooks(
        self,
        model: HookedModel | Host,
        prompts: PromptBatch,
    ) -> list[tuple[str, HookFn]]:
        """Return two hooks for each layer that an edit of these prompts changes, as ``WeightEdit.hooks`` does."""
        host = host_for(model, prompts)
        numbers = self.edit_of_prompt.unique()
        edit_of_row = self.edit_of_prompt.to(prompts.prompt_index.device)[prompts.prompt_index]
        hooks: list[tuple[str, HookFn]] = []
        for layer, layer_changes in self.layers.items():
            changes = layer_changes.of_edits(numbers)
            if not len(changes.owner):
                continue
            source = host.activation_source(layer)
            read, add = _layer_hooks(source, changes, edit_of_row)
            hooks.append((source.hook, read))
            hooks.append((host.hook_mlp_out(layer), add))
        return hooks


def score_under_edits(
    host: Host,
    prompts: PromptBatch,
    trials: Sequence[tuple[WeightEdit, Int[Tensor, " chosen"]]],
    budget: Budget,
    tick: Ticks,
) -> list[AnswerScores]:
    """Score answers under each of some edits.

    Args:
        host: the model.
        prompts: a batch.
        trials: each edit, and the prompts of the batch that are scored under it; at least one.
        budget: the memory for passes.
        tick: called with the number of rows that were run.

    Returns:
        The scores of the chosen prompts for each edit. Cost: a forward pass for each row of each edit, in passes that
        the edits share. Hooks of the user's may read what the rows lead to: with them, edits are written to the
        weights, one at a time, and undone.

    Raises:
        EditError: an edit that cannot be applied to the model.
    """
    if host.has_user_hooks:
        scores = []
        for edit, chosen in trials:
            with edit.applied(host):
                scores.append(score_answers(host, prompts.select(chosen), [], budget, tick))
        return scores
    edits = [edit for edit, _ in trials]
    sizes = [len(chosen) for _, chosen in trials]
    edit_of_prompt = torch.arange(len(trials)).repeat_interleave(torch.tensor(sizes))
    intervention = PromptEdits.of(host, edits, edit_of_prompt)
    batch = prompts.select(torch.cat([chosen for _, chosen in trials]))
    return score_answers(host, batch, [intervention], budget, tick).split(sizes)


def _layer_hooks(
    source: ActivationSource,
    changes: LayerChanges,
    edit_of_row: Int[Tensor, " row"],
) -> tuple[HookFn, HookFn]:
    """Return the hooks on the activations and on ``mlp_out`` of a layer."""
    owner = changes.owner.to(edit_of_row.device)
    is_own = rearrange(edit_of_row, "row -> row 1 1") == owner
    activations: list[Tensor] = []  # from the first hook to the second, within one pass

    def read(value: Float[Tensor, "row pos d"], hook: object = None) -> None:
        activations[:] = [torch.where(is_own, source.of(value, changes.indices), 0)]

    def add(
        mlp_out: Float[Tensor, "row pos d_model"],
        hook: object = None,
    ) -> Float[Tensor, "row pos d_model"]:
        if not activations:
            raise HookError(f"The hooks of edits come in pairs; that on {source.hook} did not run.")
        added = at_least_float32(activations.pop()) @ changes.change
        return (mlp_out + added).to(mlp_out.dtype)

    return read, add
