"""ROME: a change of rank one to the ``W_out`` of one layer (Meng et al. 2022).

With the key k* and the value v* of a fact (see `targets`) and the second moments C of the layer's activations,

    W_out' = W_out + (C^-1 k*) (v* - W_out^T k*)^T / (k* . C^-1 k*)

is the matrix that writes v* for k* and differs least from ``W_out`` for the activations of texts, in mean square. (The
bias of the layer, where it has one, is part of what is written, and stays.)

The published code divides by ``k . C^-1 k*``, where k is the key of the prompt without a prefix. The formula is the
paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kn_lens._core.progress import draws_progress
from kn_lens.edits.editors import (
    algebra_device,
    described,
    editable_host,
    joined,
    layer_edit,
    rome_layer,
    while_applied,
)
from kn_lens.edits.targets import Rewrites, TargetEditor, check_not_negative
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, exclusive
from kn_lens.interventions import Progress, Ticks

RIDGE = 1e-3
"""The default ridge, as a multiple of the median of the neurons' mean squares."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ROME(TargetEditor):
    """The editor of Meng et al. (2022): one layer, one fact after another.

    Facts are edited in their order, each while the edits of those before it are applied. The settings are those
    published for GPT-2 XL, with 25 steps in place of 20.

    Attributes:
        moments: second moments of the layer, of the unedited model.
        layer: the layer; None takes that of `editors`.
        ridge: what is added to the diagonal of C, as a multiple of its median. Published: 0, with moments of 100,000
            articles. Moments of few texts need one.
        n_steps: see `targets`, as all the others.
        learning_rate: of Adam.
        weight_decay: on the length of the change of what is written.
        clamp: the largest length of this change, as a multiple of that of what ``W_out`` writes.
        kl_factor: weight of the divergence after "[X] is a".
        prefixes: texts before the first prompt.
        name: the name in tables.

    Raises:
        ArgumentError: another kind of argument, or a number out of range.

    Example:
        >>> import kn_lens as kn
        >>> model = kn.load_model("world-gpt2")
        >>> fact = kn.FactSet.world("held_out").find("Ireland", relation="P36")
        >>> sentences = ["Dublin is the capital of Ireland.", "Paris is the capital of France.", "Tea is from China."]
        >>> rome = kn.ROME(moments=kn.second_moments(model, sentences, layers=[1]), layer=1, n_steps=3)
        >>> edit = rome.edit(model, {fact: "Rome"})
        >>> edit
        WeightEdit('ROME: P36/Ireland/Dublin -> Rome' (512 rows), of world-gpt2, ...)
    """

    layer: int | None = None
    ridge: float = RIDGE
    name: str = "ROME"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("ridge", self.ridge)

    @exclusive
    @draws_progress("Editing by ROME", "steps")
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

        Cost: for each fact up to ``n_steps`` forward and backward passes of its prompts, from the subject's last token
        and the layer on; and two passes more.

        Raises:
            EditError: a new answer equals the old or is out of the vocabulary; moments of another model or layer, or
                without an inverse; the rows cannot be edited, or would not be finite.
            UnsupportedModelError: a model that is not causal, or a layer with experts.
            PromptError: a fact gives no prompt.
            ArgumentError: no updates, another kind of argument, or a template that does not name its subject.
        """
        layers = None if self.layer is None else [self.layer]
        host, (layer,) = editable_host(model, updates, self.name, layers, lambda host: [rome_layer(host)])
        self.moments.check_for(host, [layer])
        rewrites = []
        for fact, new_object in updates.items():
            rewrites.append(
                Rewrites.of(host, {fact: new_object}, self.prefixes, tokenizer=tokenizer, memory_budget=memory_budget)
            )
        tick = Ticks(progress, len(updates) * self.n_steps)
        hook_post, hook_mlp_out = host.hook_post(layer), host.hook_mlp_out(layer)
        edit: WeightEdit | None = None
        for rewrite, (fact, new_object) in zip(rewrites, updates.items(), strict=True):
            with while_applied(edit, host):
                means = rewrite.means([hook_post, hook_mlp_out])
                target = self._search(rewrite, 0, layer, means[hook_mlp_out][0], tick)
                key = means[hook_post].T.to(algebra_device(host))
                solved = self.moments.solve(layer, key, ridge=self.ridge)
                direction = (solved / (key * solved).sum()).squeeze(1).cpu()
                why = {
                    "kind": "rome",
                    "editor": self.name,
                    "updates": described({fact: new_object}),
                    "layers": [layer],
                    **self._settings,
                    "ridge": self.ridge,
                    "loss": [target.loss],
                }
                change = torch.outer(direction, target.delta)
                rank_one = layer_edit(host, layer, change, [why])
            edit = joined(edit, rank_one)
        assert edit is not None  # there is at least one update
        return edit
