"""The nodes of TransformerLens' own circuits (``transformer_lens.tools.analysis``)."""

from typing import Any

from kn_lens.errors import UnsupportedModelError


def analysis_node(kind: str, layer: int, position: int, head: int | None = None) -> Any:
    """Return a node of TransformerLens' attribution patching.

    Args:
        kind: its family in TransformerLens, such as ``attn_head_out``, ``q_input`` or ``logits``.
        layer: zero-based block.
        position: zero-based token position.
        head: zero-based head, for the kinds that have one.

    Raises:
        UnsupportedModelError: a TransformerLens without such nodes.
    """
    try:
        return _node_class()(kind=kind, layer=layer, position=position, head=head)
    except ValueError as error:
        raise UnsupportedModelError(
            f"This TransformerLens has no such nodes ({error}); expected 4.3 or later."
        ) from None


def is_analysis_node(value: object) -> bool:
    """Return whether a value is a node of TransformerLens."""
    return isinstance(value, _node_class())


def _node_class() -> Any:
    try:
        from transformer_lens.tools.analysis import Node
    except ImportError:
        raise UnsupportedModelError(
            "This TransformerLens has no nodes for circuits (transformer_lens.tools.analysis.Node); "
            "expected 4.3 or later."
        ) from None
    return Node
