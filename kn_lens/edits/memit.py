"""MEMIT: changes to the ``W_out`` of several layers, for many facts at once (Meng et al. 2023).

The target of each fact (see `targets`) is one of the residual stream that leaves the last layer L of a range: its value
h there, and the delta that is added to the output of ``W_out`` of L. The layers of the range are changed from the
lowest on. With the keys of the facts in a layer as the rows of K, and what is still missing at L as the rows of R, both
under the changes of the layers below,

    change = (weight * C + K^T K)^-1 K^T R / (layers left)

is added to ``W_out``: the least squares solution for the facts and, ``weight`` times, for zero change on texts. The
layers that are left share what is missing.

Where the block changes what ``W_out`` writes before it reaches the residual stream, by a norm (Gemma 2 and 3, OLMo 2)
or a factor (Granite), what is missing at L is no sum of what the layers write. There the range is one layer, and the
target is one of what its ``W_out`` writes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens._core.progress import draws_progress
from kn_lens.edits.editors import (
    algebra_device,
    described,
    editable_host,
    joined,
    layer_edit,
    memit_layers,
    memit_weight,
    while_applied,
)
from kn_lens.edits.rome import RIDGE
from kn_lens.edits.targets import Rewrites, TargetEditor, check_not_negative, check_positive
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import UnsupportedModelError
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, exclusive
from kn_lens.interventions import Progress, Ticks

LayerChange = Callable[
    [int, Float[Tensor, "fact d_mlp"], Float[Tensor, "fact d_model"]],
    Float[Tensor, "d_mlp d_model"],
]
"""From a layer, the keys of facts and what they lack to what is added to ``W_out``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MEMIT(TargetEditor):
    """The editor of Meng et al. (2023): a range of layers, all facts together.

    The settings are those published for GPT-J, and the layers those of `editors`.

    Attributes:
        moments: second moments of the layers, of the unedited model.
        layers: the layers; None takes those of `editors`.
        weight: of the second moments beside the facts, in facts. Published: 20,000 for GPT-2 XL, 15,000 for GPT-J and
            Llama of 32 layers; None takes these, and for other models the number of neurons of a layer.
        ridge: as for ``ROME``.
        n_steps: see `targets`, as all the others.
        learning_rate: of Adam.
        weight_decay: on the length of the change of what is written.
        clamp: the largest length of this change, as a multiple of that of the residual stream.
        kl_factor: weight of the divergence after "[X] is a".
        prefixes: texts before the first prompt.
        name: the name in tables.

    Raises:
        ArgumentError: another kind of argument, or a number out of range.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> facts = kn.FactSet.world("held_out")
        >>> sentences = ["Dublin is the capital of Ireland.", "Paris is the capital of France.", "Tea is from China."]
        >>> memit = kn.MEMIT(moments=kn.second_moments(model, sentences, layers=[0, 1]), layers=[0, 1], n_steps=2)
        >>> memit.edit(model, {facts.find("Ireland", "P36"): "Rome", facts.find("Japan", "P36"): "Paris"})
        WeightEdit('MEMIT: P36/Ireland/Dublin -> Rome, P36/Japan/Tokyo -> Paris' (1,024 rows), of world-gpt2, ...)
    """

    layers: Sequence[int] | None = None
    weight: float | None = None
    ridge: float = RIDGE
    clamp: float = 0.75
    name: str = "MEMIT"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None:
            check_positive("weight", self.weight)
        check_not_negative("ridge", self.ridge)

    @exclusive
    @draws_progress("Editing by MEMIT", "steps")
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

        Between layers, the changes of those below are written to the model, and undone at the end.

        Cost: for each fact up to ``n_steps`` forward and backward passes of its prompts, from the subject's last token
        and the last layer on; and for each layer a pass of them up to the subject.

        Raises:
            UnsupportedModelError: a model that is not causal, layers with experts, or several layers where the block
                changes what ``W_out`` writes.
            EditError, PromptError, ArgumentError: as ``ROME.edit``.
        """
        host, layers = editable_host(model, updates, self.name, self.layers, memit_layers)
        self.moments.check_for(host, layers)
        device = algebra_device(host)
        weight = memit_weight(host) if self.weight is None else self.weight

        def change(layer: int, keys: Tensor, missing: Tensor) -> Tensor:
            keys = keys.to(device)
            solved = self.moments.solve(layer, keys.T, ridge=self.ridge)  # C^-1 K^T
            # (weight C + K^T K)^-1 K^T = C^-1 K^T (weight I + K C^-1 K^T)^-1: as large as there are facts.
            small = weight * torch.eye(len(keys), dtype=keys.dtype, device=device) + keys @ solved
            return solved @ torch.linalg.solve(small, missing.to(device))

        return spread_edit(
            self,
            host,
            layers,
            updates,
            change,
            {"kind": "memit", "weight": weight, "ridge": self.ridge},
            tokenizer=tokenizer,
            memory_budget=memory_budget,
            progress=progress,
        )


def spread_edit(
    editor: TargetEditor,
    host: Host,
    layers: Sequence[int],
    updates: Mapping[Fact, str],
    change: LayerChange,
    record: Mapping[str, Any],
    *,
    tokenizer: Any,
    memory_budget: float | None,
    progress: Progress | bool | None,
) -> WeightEdit:
    """Return the edit that spreads the targets of updates over layers, from the lowest on.

    Args:
        editor: whose search finds the targets.
        host: the model.
        layers: in ascending order.
        updates: the facts and their new answers.
        change: gives the change of one layer.
        record: what is particular to the editor, for the edit's ``why``.
        tokenizer: the tokenizer to use instead of the model's own.
        memory_budget: bytes of memory for passes.
        progress: called with the steps of searches that are done, and their number.
    """
    last = layers[-1]
    rewrites = Rewrites.of(host, updates, editor.prefixes, tokenizer=tokenizer, memory_budget=memory_budget)
    place = host.hook_mlp_out(last) if len(layers) == 1 else host.resid_post(last)
    values = rewrites.means([place])[place]
    if len(layers) > 1:
        _check_added_as_written(rewrites, last, values)
    tick = Ticks(progress, len(updates) * editor.n_steps)
    found = [editor._search(rewrites, number, last, value, tick) for number, value in enumerate(values)]
    targets = values + torch.stack([target.delta for target in found])
    edit: WeightEdit | None = None
    for number, layer in enumerate(layers):
        hook_post = host.hook_post(layer)
        with while_applied(edit, host):
            means = rewrites.means([hook_post, place])
            missing = (targets - means[place]) / (len(layers) - number)
            layer_change = layer_edit(host, layer, change(layer, means[hook_post], missing))
        edit = joined(edit, layer_change)
    assert edit is not None  # there is at least one layer
    why = {
        "editor": editor.name,
        "updates": described(updates),
        "layers": list(layers),
        **editor._settings,
        **record,
        "loss": [target.loss for target in found],
    }
    return replace(edit, why=(why,))


def _check_added_as_written(rewrites: Rewrites, layer: int, values: Float[Tensor, "fact d_model"]) -> None:
    """Raise unless the residual stream after a layer grows by what is added to the output of its ``W_out``.

    Raises:
        UnsupportedModelError: a norm or a factor comes between the two.
    """
    host = rewrites.host
    name = host.resid_post(layer)
    moved = rewrites.means([name], {host.hook_mlp_out(layer): values})[name] - values
    if (moved - values).norm() > 0.1 * values.norm():
        raise UnsupportedModelError(
            f"The blocks of {host.name} change what W_out writes, by a norm or a factor, before they add it to the "
            f"residual stream, so that layers cannot share a change of it; expected one layer: layers=[{layer}]."
        )
