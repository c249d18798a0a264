"""Editors: methods that change facts of a model, as values under one protocol.

``editor.edit(model, {fact: new answer, ...})`` returns a ``WeightEdit`` and leaves the model as it was. ``ROME``,
``MEMIT``, ``AlphaEdit``, ``FT`` and ``KN`` are editors. So different methods are applied, undone, stacked, saved,
exported and measured in one way. All but KN change every row of ``W_out`` of the layers that they edit.

Which layers. Where a model has published settings, these are the default:

    GPT-2 XL       ROME 17      MEMIT, AlphaEdit 13 to 17, of 48 layers       (Meng et al. 2022, 2023)
    GPT-J          ROME 5       3 to 8, of 28                                 (Meng et al. 2022, 2023)
    Llama 2, 3     ROME 5       4 to 8, of 32                                 (EasyEdit; Fang et al. 2025)

Elsewhere the same relative depths, rounded down: those of GPT-2 XL for GPT-2 models (so 8 and 12 for its medium and
large sizes, as published), and those of Llama for all others. These are layers that worked in those models, no
property of a new one: a table of effects over layers is the way to choose.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens._core.checks import check_kind
from kn_lens._core.wording import with_article
from kn_lens.edits.arguments import check_new_objects
from kn_lens.edits.value_rows import check_raw
from kn_lens.edits.weight_edit import WeightEdit
from kn_lens.errors import ArgumentError, UnsupportedModelError
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, checked_host
from kn_lens.interventions import Progress
from kn_lens.neurons import NeuronSet

_PUBLISHED: Mapping[tuple[str, int], tuple[int, range]] = {
    ("GPT2LMHeadModel", 48): (17, range(13, 18)),
    ("GPTJForCausalLM", 28): (5, range(3, 9)),
    ("LlamaForCausalLM", 32): (5, range(4, 9)),
}
"""By class and number of layers: the layer of ROME, and those of MEMIT and AlphaEdit."""


_WEIGHTS: Mapping[tuple[str, int], float] = {
    ("GPT2LMHeadModel", 48): 20000.0,
    ("GPTJForCausalLM", 28): 15000.0,
    ("LlamaForCausalLM", 32): 15000.0,
}
"""The published weights of second moments in MEMIT; these models have 6,400, 16,384, and 11,008 or 14,336 neurons."""


@runtime_checkable
class Editor(Protocol):
    """A method that changes facts: a frozen value that holds its settings."""

    @property
    def name(self) -> str:
        """The name in tables. Editors of one table have different names."""
        ...

    def edit(
        self,
        model: HookedModel | Host,
        updates: Mapping[Fact, str],
        *,
        tokenizer: Any = None,
        memory_budget: float | None = None,
        progress: Progress | bool | None = None,
    ) -> WeightEdit:
        """Return one edit that gives facts new answers. The model is left as it was, also after an exception.

        Args:
            model: the TransformerLens model.
            updates: the facts, with their templates, and the new answer of each.
            tokenizer: the tokenizer to use instead of the model's own.
            memory_budget: bytes of memory for passes; see ``attribute``.
            progress: True draws a bar; or a function, called with (done, total).
        """
        ...


def rome_layer(host: Host) -> int:
    """Return the layer that ROME edits unless told: published, or at the relative depth of one that is."""
    return _reference(host)[0]


def memit_layers(host: Host) -> tuple[int, ...]:
    """Return the layers that MEMIT and AlphaEdit edit unless told.

    Where the block normalises what ``W_out`` writes, it is the last of them: see ``MEMIT``.
    """
    layers = tuple(_reference(host)[1])
    return layers[-1:] if host.norm_after_mlp else layers


def memit_weight(host: Host) -> float:
    """Return the weight of second moments that MEMIT takes unless told: published, or the number of neurons of a layer.

    For keys like those of texts, ``k C^-1 k`` is about that number, so that about half of what is missing is written.
    """
    return _WEIGHTS.get((host.architecture, host.n_layers), float(host.d_mlp))


def default_layers(host: Host) -> list[int]:
    """Return the layers that some editor edits unless told: those whose second moments are wanted."""
    return sorted({rome_layer(host), *memit_layers(host)})


def _reference(host: Host) -> tuple[int, range]:
    published = _PUBLISHED.get((host.architecture, host.n_layers))
    if published is not None:
        return published
    is_gpt2 = host.architecture == "GPT2LMHeadModel"
    n_reference = 48 if is_gpt2 else 32
    layer, layers = _PUBLISHED["GPT2LMHeadModel" if is_gpt2 else "LlamaForCausalLM", n_reference]
    first, last = (number * host.n_layers // n_reference for number in (layers[0], layers[-1]))
    return layer * host.n_layers // n_reference, range(first, last + 1)


# --- checks before any forward pass ---------------------------------------------------------------------------


def check_causal(host: Host, name: str) -> None:
    """Raise unless a model is causal: the keys and values of these methods are at the subject's last token.

    Raises:
        UnsupportedModelError: a masked model or an encoder-decoder.
    """
    if host.kind != "causal":
        raise UnsupportedModelError(
            f"{name}: {host.name} is {with_article(host.kind)} model; expected a causal one, for which this method is "
            "defined. kn_lens.KN edits models of every kind."
        )


def checked_layers(host: Host, layers: Any) -> list[int]:
    """Return layers as a list in ascending order.

    Raises:
        ArgumentError: no layers, one twice, or one that the model does not have.
        UnsupportedModelError: a layer with experts.
    """
    check_kind(layers, Sequence, "several layers: [4, 5, 6]", "layers")
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < host.n_layers:
            raise ArgumentError(f"{host.name} has no layer {layer!r}; expected 0 to {host.n_layers - 1}.")
    if not layers or len(set(layers)) != len(layers):
        raise ArgumentError(f"layers={list(layers)}; expected at least one layer, each once.")
    for layer in layers:
        if layer in host.expert_layers:
            raise UnsupportedModelError(
                f"Layer {layer} of {host.name} has experts, which have a W_out each; expected layers with one MLP."
            )
    return sorted(layers)


def editable_host(
    model: HookedModel | Host,
    updates: Any,
    name: str,
    layers: Iterable[int] | None,
    default: Any,
) -> tuple[Host, list[int]]:
    """Return the host of a model that an editor of whole layers can edit, and the layers.

    Args:
        model: the model.
        updates: the updates, to be checked.
        name: the editor's.
        layers: those that its user chose.
        default: a function of the host that returns the default.

    Raises:
        ArgumentError: no updates, another kind of argument, or no such layer.
        UnsupportedModelError: a model of another kind, or layers with experts.
        EditError: rows of ``W_out`` that cannot be edited; see ``WeightEdit.of``.
    """
    host = checked_host(model)
    check_new_objects(updates)
    if not updates:
        raise ArgumentError("There are no facts to edit; expected at least one: {fact: 'Tokyo'}.")
    check_causal(host, name)
    check_raw(host, "New rows are computed from those.")
    chosen = checked_layers(host, default(host) if layers is None else layers)
    host.check_rows_editable(chosen)
    return host, chosen


# --- edits of whole layers -----------------------------------------------------------------------------------


def layer_edit(
    host: Host,
    layer: int,
    change: Float[Tensor, "d_mlp d_model"],
    why: Sequence[Mapping[str, Any]] = (),
) -> WeightEdit:
    """Return the edit that adds a matrix to ``W_out`` of a layer; the sum is taken in float64 and rounded once."""
    neurons = NeuronSet((layer, index) for index in range(host.d_mlp))
    old = host.W_out(layer).detach().cpu()
    new = (old.double() + change.double().cpu()).to(old.dtype)
    return WeightEdit.of(host, neurons, new, why)


def joined(first: WeightEdit | None, second: WeightEdit) -> WeightEdit:
    """Return one edit with the effect of two, the second made while the first was applied."""
    return second if first is None else first + second


def while_applied(edit: WeightEdit | None, host: Host) -> AbstractContextManager[Any]:
    """Apply an edit, if there is one, for the time of a ``with`` block."""
    return nullcontext() if edit is None else edit.applied(host)


def algebra_device(host: Host) -> torch.device:
    """Return where matrices of float64 are multiplied: the model's device if it is an NVIDIA GPU, else the CPU."""
    return host.device if host.device.type == "cuda" else torch.device("cpu")


def described(updates: Mapping[Fact, str]) -> list[dict[str, str]]:
    """Return updates as they stand in the ``why`` of an edit."""
    descriptions = []
    for fact, new_object in updates.items():
        descriptions.append(
            {
                "fact": fact.key,
                "subject": fact.subject,
                "relation": fact.relation,
                "object": fact.object,
                "new_object": new_object,
            }
        )
    return descriptions
