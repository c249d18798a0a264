"""The stages of a reproduction, in running order. A new one is a file with a ``Stage`` and a line here."""

from kn_lens.runs.stage import Stage
from kn_lens.runs.stages.answers import ANSWERS
from kn_lens.runs.stages.attributions import ACTIVATIONS, ATTRIBUTIONS
from kn_lens.runs.stages.circuits import CIRCUITS, QUERIES
from kn_lens.runs.stages.editors import EDITORS
from kn_lens.runs.stages.erasures import ERASURES
from kn_lens.runs.stages.fact_details import NEURON_SCORES, PREDICTIONS
from kn_lens.runs.stages.facts import FACTS
from kn_lens.runs.stages.interventions import DOSES, EFFECTS
from kn_lens.runs.stages.neurons import NEURONS
from kn_lens.runs.stages.positions import POSITIONS
from kn_lens.runs.stages.readouts import ANSWER_READOUTS, READOUTS
from kn_lens.runs.stages.redundancy import CONSISTENCY, DEGENERATE
from kn_lens.runs.stages.robustness import METHODS, STABILITY
from kn_lens.runs.stages.syntax import SYNTAX, SYNTAX_NEURONS
from kn_lens.runs.stages.syntax_pairs import SYNTAX_PAIRS
from kn_lens.runs.stages.texts import TEXTS
from kn_lens.runs.stages.updates import UPDATES

STAGES: tuple[Stage, ...] = (
    FACTS,
    ATTRIBUTIONS,
    ACTIVATIONS,
    NEURONS,
    EFFECTS,
    DOSES,
    PREDICTIONS,
    NEURON_SCORES,
    READOUTS,
    ANSWER_READOUTS,
    TEXTS,
    ANSWERS,
    UPDATES,
    ERASURES,
    STABILITY,
    METHODS,
    SYNTAX_PAIRS,
    SYNTAX_NEURONS,
    SYNTAX,
)

ON_REQUEST: tuple[Stage, ...] = (POSITIONS, CIRCUITS, QUERIES, DEGENERATE, CONSISTENCY, EDITORS)
"""Stages that run where they are named alone: not every model has what they need."""
