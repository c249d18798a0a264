"""The notation of a neuron, in arguments, messages, tables and figures.

    L9N1234     layer 9, index 1234, in a layer with one MLP
    L9E5N338    layer 9, expert 5, index 338, in a layer with experts
    L9SN338     layer 9, index 338 of the shared expert, which every token runs

The *key* of a neuron is what the names stand for: ``(layer, index)`` where the layer has one MLP, and
``(layer, expert, index)`` where it has experts. The shared expert has the number `SHARED`, so that keys sort.
"""

import re

NeuronKey = tuple[int, ...]
"""Layer and index, or layer, expert and index."""

NeuronLike = str | NeuronKey
"""What is accepted as a neuron: its name, or its key; a ``Neuron`` is such a key."""

SHARED = -1
"""The number of the shared expert in keys."""

_NAME = re.compile(r"L(\d+)(E\d+|S)?N(\d+)", re.ASCII)


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
