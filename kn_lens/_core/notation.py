"""The notation of a neuron, ``L9N1234`` for layer 9 and index 1234, in arguments, messages, tables and figures."""

import re

NeuronLike = str | tuple[int, int]
"""What is accepted as a neuron: its name, or its layer and index; a ``Neuron`` is such a pair."""

_NAME = re.compile(r"L(\d+)N(\d+)", re.ASCII)


def neuron_name(layer: int, index: int) -> str:
    """Return the name of a neuron.

    >>> neuron_name(9, 1234)
    'L9N1234'
    """
    return f"L{layer}N{index}"


def layer_and_index(name: str) -> tuple[int, int] | None:
    """Return the layer and the index of a named neuron; None for another text.

    >>> layer_and_index("L9N1234"), layer_and_index("Ireland")
    ((9, 1234), None)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return int(match[1]), int(match[2])
