"""The notation of a neuron, in arguments, messages, tables and figures.

    L9N1234     layer 9, index 1234, in a layer with one MLP
    L9E5N338    layer 9, expert 5, index 338, in a layer with experts
    L9SN338     layer 9, index 338 of the shared expert, which every token runs

The *key* of a neuron is what the names stand for: ``(layer, index)`` where the layer has one MLP, and
``(layer, expert, index)`` where it has experts. The shared expert has the number `SHARED`, so that keys sort.
"""

import re
from collections.abc import Iterable, Sequence

NeuronKey = tuple[int, ...]
"""Layer and index, or layer, expert and index."""

NeuronLike = str | NeuronKey
"""What is accepted as a neuron: its name, or its key; a ``Neuron`` is such a key."""

SHARED = -1
"""The number of the shared expert in keys."""

_NAME = re.compile(r"L(\d+)(E\d+|S)?N(\d+)", re.ASCII)


def key_columns(keys: Iterable[NeuronKey]) -> dict[str, list[int | None]]:
    """Return the columns of records that say what neurons are: ``layer``, ``expert``, ``index``.

    >>> key_columns([(9, 1234), (9, SHARED, 338)])
    {'layer': [9, 9], 'expert': [None, -1], 'index': [1234, 338]}
    """
    columns: dict[str, list[int | None]] = {"layer": [], "expert": [], "index": []}
    for key in keys:
        columns["layer"].append(key[0])
        columns["expert"].append(None if len(key) == 2 else key[1])
        columns["index"].append(key[-1])
    return columns


def keys_in_columns(layers: Sequence[int], experts: Sequence[float | None], indices: Sequence[int]) -> list[NeuronKey]:
    """Return the keys of neurons from the columns of `key_columns`; NaN, as in tables, is no expert.

    >>> keys_in_columns([9, 9], [None, -1], [1234, 338])
    [(9, 1234), (9, -1, 338)]
    """
    keys: list[NeuronKey] = []
    for layer, expert, index in zip(layers, experts, indices, strict=True):
        if expert is None or expert != expert:
            keys.append((int(layer), int(index)))
        else:
            keys.append((int(layer), int(expert), int(index)))
    return keys


def neuron_name(*key: int) -> str:
    """Return the name of a neuron.

    >>> neuron_name(9, 1234), neuron_name(9, 5, 338), neuron_name(9, SHARED, 338)
    ('L9N1234', 'L9E5N338', 'L9SN338')
    """
    layer, *expert, index = key
    if not expert:
        return f"L{layer}N{index}"
    return f"L{layer}SN{index}" if expert == [SHARED] else f"L{layer}E{expert[0]}N{index}"


def neuron_key(name: str) -> NeuronKey | None:
    """Return the key of a named neuron; None for another text.

    >>> neuron_key("L9N1234"), neuron_key("L9E5N338"), neuron_key("Ireland")
    ((9, 1234), (9, 5, 338), None)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer, expert, index = match.groups()
    if expert is None:
        return int(layer), int(index)
    return int(layer), SHARED if expert == "S" else int(expert[1:]), int(index)
