"""The stages of a reproduction, in order. A new one is a file with a ``Stage``, and a line here."""

from kn_lens.experiments import answers, asking, editing, modulation, refining, sweep
from kn_lens.experiments.study import Stage

STAGES: tuple[Stage, ...] = (
    asking.STAGE,
    sweep.ATTRIBUTIONS,
    sweep.ACTIVATIONS,
    refining.STAGE,
    modulation.EFFECTS,
    modulation.DOSES,
    answers.STAGE,
    editing.UPDATES,
    editing.ERASURES,
)
