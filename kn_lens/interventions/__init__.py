"""Interventions that suppress, amplify or set neurons during a forward pass, and their effects on answers.

``hooks`` defines the interventions as TransformerLens hooks; ``scoring`` computes the scores of answers with and
without them; ``effects`` measures their effects and those of controls; ``tables`` computes change ratios with
confidence intervals. ``degenerate`` searches neurons for subsets that take an answer, or suffice for it.
"""

from kn_lens.interventions.degenerate import Degeneracy, DegenerateSets, degeneracy_table, degenerate_sets
from kn_lens.interventions.effects import Effect, controlled_effects, measure
from kn_lens.interventions.hooks import Amplify, Intervention, Position, SetTo, Suppress
from kn_lens.interventions.scoring import (
    AnswerScores,
    Change,
    Progress,
    Ticks,
    is_known,
    score_answers,
    score_answers_under,
)
from kn_lens.interventions.tables import KINDS, effect_table

__all__ = [
    "KINDS",
    "Amplify",
    "AnswerScores",
    "Change",
    "Degeneracy",
    "DegenerateSets",
    "Effect",
    "Intervention",
    "Position",
    "Progress",
    "SetTo",
    "Suppress",
    "Ticks",
    "controlled_effects",
    "degeneracy_table",
    "degenerate_sets",
    "effect_table",
    "is_known",
    "measure",
    "score_answers",
    "score_answers_under",
]
