"""Attribution: how much of an answer's probability each neuron of a layer carries, with an error bar.

``reference`` has the definition as a plain sum, and ``attribute`` the calls that compute it fast. ``options`` are their
arguments, and ``result`` is what they return, ``positions`` at several positions of each prompt. A chunk of prompts,
with a ``layer_context`` for each layer, goes through a method: ``method`` is the interface, ``integrated_gradients``
and ``single_path`` integrate along a path (``integration``, with the rules of ``quadrature`` and the ``panels`` of hard
paths; ``sweep`` runs the passes of all layers) from one of several ``starts``, and ``baselines`` are simpler scores.
``outputs`` are what can be explained. ``storage`` keeps scores of more prompts than memory holds.
"""

from kn_lens.attribution.attribute import attribute, attribute_in_parts
from kn_lens.attribution.layer_context import budget_for, check_numbers, chunk_by_rows, layer_contexts
from kn_lens.attribution.method import AttributionMethod, LayerMethod
from kn_lens.attribution.options import AttributionKeywords, Preset, Progress
from kn_lens.attribution.outputs import Output, resolve_output, target_log_probs, target_logits
from kn_lens.attribution.positions import PositionAttribution, Positions, check_attribution
from kn_lens.attribution.quadrature import fixed_rule
from kn_lens.attribution.reference import reference_attribution
from kn_lens.attribution.result import Attribution
from kn_lens.attribution.starts import MeanStart, Start
from kn_lens.attribution.storage import attribute_to_file, read_attribution, read_position_attribution
from kn_lens.attribution.sweep import PathPoints, sweep

__all__ = [
    "Attribution",
    "AttributionKeywords",
    "AttributionMethod",
    "LayerMethod",
    "MeanStart",
    "Output",
    "PathPoints",
    "PositionAttribution",
    "Positions",
    "Preset",
    "Progress",
    "Start",
    "attribute",
    "attribute_in_parts",
    "attribute_to_file",
    "budget_for",
    "check_attribution",
    "check_numbers",
    "chunk_by_rows",
    "fixed_rule",
    "layer_contexts",
    "read_attribution",
    "read_position_attribution",
    "reference_attribution",
    "resolve_output",
    "sweep",
    "target_log_probs",
    "target_logits",
]
