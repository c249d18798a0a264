"""The stages of a reproduction, in order. A new one is a file with a ``Stage``, and a line here."""

from kn_lens.experiments import (
    answers,
    asking,
    checks,
    editing,
    modulation,
    phenomena,
    portraits,
    readouts,
    refining,
    sweep,
    syntax,
    texts,
)
from kn_lens.experiments.study import Stage

STAGES: tuple[Stage, ...] = (
    asking.STAGE,
    sweep.ATTRIBUTIONS,
    sweep.ACTIVATIONS,
    refining.STAGE,
    modulation.EFFECTS,
    modulation.DOSES,
    portraits.PREDICTIONS,
    portraits.NEURON_SCORES,
    readouts.READOUTS,
    readouts.ANSWER_READOUTS,
    texts.STAGE,
    answers.STAGE,
    editing.UPDATES,
    editing.ERASURES,
    checks.STABILITY,
    checks.METHODS_STAGE,
    phenomena.STAGE,
    syntax.NEURONS,
    syntax.STAGE,
)
