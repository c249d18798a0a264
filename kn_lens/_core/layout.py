"""How the neurons of a model are numbered within their layers: the *rows* of ``W_out``.

In a layer with one MLP a neuron's row is its index. In a layer with experts the rows are those of the shared expert,
then those of expert 0, of expert 1, and so on:

    shared expert, index i      row  i
    expert e, index i           row  d_shared + e * d_expert + i

The rows of a layer are in the order of the keys of its neurons. Layers of one model may have different numbers of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kn_lens._core.notation import SHARED, NeuronKey, neuron_name


@dataclass(frozen=True, kw_only=True)
class LayerLayout:
    """The rows of one layer.

    Attributes:
        n_rows: number of neurons, of all experts together.
        n_experts: number of routed experts; 0 in a layer with one MLP.
        d_expert: neurons of each routed expert.
    """

    n_rows: int
    n_experts: int = 0
    d_expert: int = 0

    @property
    def d_shared(self) -> int:
        """Neurons of the shared expert."""
        return self.n_rows - self.n_experts * self.d_expert

    def row(self, expert: int | None, index: int) -> int | None:
        """Return the row of a neuron; None where the layer has no such neuron."""
        if expert is None:
            return index if not self.n_experts and 0 <= index < self.n_rows else None
        if expert == SHARED:
            return index if self.n_experts and 0 <= index < self.d_shared else None
        if not (0 <= expert < self.n_experts and 0 <= index < self.d_expert):
            return None
        return self.d_shared + expert * self.d_expert + index

    def rows_of_expert(self, expert: int | None) -> range:
        """Return the rows of an expert; of a layer with one MLP all of them."""
        if expert is None:
            return range(self.n_rows)
        if expert == SHARED:
            return range(self.d_shared)
        first = self.d_shared + expert * self.d_expert
        return range(first, first + self.d_expert)

    def expert_and_index(self, row: int) -> tuple[int, ...]:
        """Return what follows the layer in the key of the neuron of a row."""
        if not self.n_experts:
            return (row,)
        if row < self.d_shared:
            return SHARED, row
        return divmod(row - self.d_shared, self.d_expert)

    def __str__(self) -> str:
        if not self.n_experts:
            return f"indices 0 to {self.n_rows - 1}"
        text = f"experts 0 to {self.n_experts - 1} (L0E0N0) of indices 0 to {self.d_expert - 1}"
        if self.d_shared:
            text += f", and the shared expert (L0SN0) of indices 0 to {self.d_shared - 1}"
        return text


@dataclass(frozen=True)
class NeuronLayout:
    """The rows of all layers.

    Attributes:
        layers: the layers; empty where every layer has one MLP of the same width, so that rows are indices.

    >>> layout = NeuronLayout((LayerLayout(n_rows=8), LayerLayout(n_rows=14, n_experts=3, d_expert=4)))
    >>> layout.row((1, 2, 3)), layout.key(1, 13), layout.name(1, 0), layout.name(0, 7)
    (13, (1, 2, 3), 'L1SN0', 'L0N7')
    """

    layers: tuple[LayerLayout, ...] = ()

    @property
    def has_experts(self) -> bool:
        """Whether any layer has experts."""
        return any(layer.n_experts for layer in self.layers)

    def row(self, key: NeuronKey) -> int | None:
        """Return the row of a neuron, given by its key; None where its layer has no such neuron."""
        layer, *expert, index = key
        if not self.layers:
            return None if expert else index
        if not 0 <= layer < len(self.layers):
            return None
        return self.layers[layer].row(expert[0] if expert else None, index)

    def key(self, layer: int, row: int) -> NeuronKey:
        """Return the key of the neuron of a row."""
        if not self.layers:
            return layer, row
        return layer, *self.layers[layer].expert_and_index(row)

    def name(self, layer: int, row: int) -> str:
        """Return the name of the neuron of a row."""
        return neuron_name(*self.key(layer, row))

    def columns(self, layers: Sequence[int], rows: Sequence[int]) -> dict[str, list[Any]]:
        """Return the columns of a table that say what neurons are, by their layers and rows.

        Returns:
            ``neuron``, the name; ``layer``; ``expert``, a number or ``shared``, None in a layer with one MLP, where the
            model has experts; ``index``.

        >>> ONE_MLP_A_LAYER.columns([2], [7])
        {'neuron': ['L2N7'], 'layer': [2], 'index': [7]}
        """
        keys = [self.key(layer, row) for layer, row in zip(layers, rows, strict=True)]
        columns: dict[str, list[Any]] = {
            "neuron": [neuron_name(*key) for key in keys],
            "layer": [key[0] for key in keys],
        }
        if self.has_experts:
            columns["expert"] = [_expert_in_table(key) for key in keys]
        columns["index"] = [key[-1] for key in keys]
        return columns


def _expert_in_table(key: NeuronKey) -> int | str | None:
    if len(key) == 2:
        return None
    return "shared" if key[1] == SHARED else key[1]


ONE_MLP_A_LAYER = NeuronLayout()
"""The layout of models without experts: a neuron's row is its index."""
