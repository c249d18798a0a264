"""AlphaEdit: the change of MEMIT, made in directions alone that texts hardly use (Fang et al. 2025).

Let P project activations onto the null space of the second moments C: the eigenvectors with eigenvalues below a
threshold. With K and R as for MEMIT, and the keys of facts that were edited before as the rows of K0,

    change = (P (K0^T K0 + K^T K) P + ridge * I)^-1 P K^T R / (layers left)

A text whose activations lie outside of the null space sees no change at all, whatever the targets are. So there is no
weight to choose between facts and texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kn_lens._core.progress import draws_progress
from kn_lens.edits.arguments import check_new_objects
from kn_lens.edits.editors import algebra_device, described, editable_host, memit_layers
from kn_lens.edits.memit import spread_edit
from kn_lens.edits.targets import Rewrites, TargetEditor, check_positive
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import EditError
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, exclusive
from kn_lens.interventions import Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class AlphaEdit(TargetEditor):
    """The editor of Fang et al. (2025): a range of layers, all facts together, in the null space of texts.

    The layers are those of `editors`, and the other settings those published for Llama 3 and GPT-J.

    Attributes:
        moments: second moments of the layers, of the unedited model.
        layers: the layers; None takes those of `editors`. For models with a norm after ``W_out`` it is one, as for
            ``MEMIT``.
        threshold: the largest eigenvalue of the null space; published: 0.02, the default. It is an absolute number, and
            0.02 holds about eight in ten directions of the activations of small models.
        ridge: on the squares of the change; published: 1 for Llama 3 (and in the formula), 10 for GPT-2 XL and GPT-J.
            It is in the unit of the squared length of a key, and a key much shorter than it is hardly edited.
        edited: facts that were edited before, with their answers, whose keys are to be spared. Their keys are those in
            the model as it is now.
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
        >>> fact = kn.FactSet.world("held_out").find("Ireland", "P36")
        >>> moments = kn.second_moments(model, ["Dublin is the capital of Ireland.", "Tea is from China."], layers=[0])
        >>> editor = kn.AlphaEdit(moments=moments, layers=[0], n_steps=2)
        >>> editor.edit(model, {fact: "Rome"})
        WeightEdit('AlphaEdit: P36/Ireland/Dublin -> Rome' (512 rows), of world-gpt2, ...)
    """

    layers: Sequence[int] | None = None
    threshold: float = 0.02
    ridge: float = 1.0
    edited: Mapping[Fact, str] = field(default_factory=dict)
    clamp: float = 0.75
    name: str = "AlphaEdit"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("threshold", self.threshold)
        check_positive("ridge", self.ridge)
        check_new_objects(self.edited)

    @exclusive
    @draws_progress("Editing by AlphaEdit", "steps")
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

        Cost: as ``MEMIT.edit``, a pass of the prompts of facts edited before, and the eigenvectors of the moments,
        which are kept with them: a second for 1,536 neurons, minutes for 14,336.

        Raises:
            EditError: no direction is below the threshold; and as ``ROME.edit``.
            UnsupportedModelError, PromptError, ArgumentError: as ``MEMIT.edit``.
        """
        host, layers = editable_host(model, updates, self.name, self.layers, memit_layers)
        self.moments.check_for(host, layers)
        device = algebra_device(host)
        earlier: dict[str, Tensor] = {}
        if self.edited:
            before = Rewrites.of(
                host, self.edited, self.prefixes, tokenizer=tokenizer, memory_budget=memory_budget, changes=False
            )
            earlier = before.means([host.hook_post(layer) for layer in layers])
        bases: dict[int, Tensor] = {}
        for layer in layers:
            bases[layer] = self.moments.null_space(layer, self.threshold, device)
            if not bases[layer].shape[1]:
                raise EditError(
                    f"No direction of layer {layer} has a second moment below threshold={self.threshold}; expected "
                    f"some. The mean of all is {float(self.moments.by_layer[layer].diagonal().mean()):.3g}: pass a "
                    "larger threshold."
                )

        def change(layer: int, keys: Tensor, missing: Tensor) -> Tensor:
            basis = bases[layer].to(device)
            own = keys.to(device) @ basis  # coordinates in the null space, P = basis basis^T
            known = own
            if earlier:
                known = torch.cat([earlier[host.hook_post(layer)].to(device) @ basis, own])
            # (A^T A + ridge I)^-1 = (I - A^T (ridge I + A A^T)^-1 A) / ridge: as large as there are facts.
            small = self.ridge * torch.eye(len(known), dtype=known.dtype, device=device) + known @ known.T
            inner = own.T - known.T @ torch.linalg.solve(small, known @ own.T)
            return basis @ (inner / self.ridge) @ missing.to(device)

        record = {
            "kind": "alphaedit",
            "threshold": self.threshold,
            "null_directions": [basis.shape[1] for basis in bases.values()],
            "ridge": self.ridge,
            "edited": described(self.edited),
        }
        return spread_edit(
            self,
            host,
            layers,
            updates,
            change,
            record,
            tokenizer=tokenizer,
            memory_budget=memory_budget,
            progress=progress,
        )
