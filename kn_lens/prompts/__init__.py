"""Prompts: facts as the tokens that query a model for them.

``batch`` has ``PromptBatch``, the input of every computation. ``tokenization`` finds the tokens of an answer in a text,
``build`` makes prompts from facts and templates, ``positions`` names the positions of their tokens, ``text`` makes a
fact of one text and its answer, and ``predict`` lists a model's most probable tokens for prompts. In ``build`` and
``text`` masked models, causal models and encoder-decoders take three forms of prompt.
"""

from kn_lens._core.names import PositionName
from kn_lens.prompts.batch import PromptBatch, Selection, check_prompts, first_prompts, host_for
from kn_lens.prompts.build import LEAVE_OUT, make_prompts, object_is_last, placeholder_token
from kn_lens.prompts.positions import (
    ROLES,
    PositionsName,
    Role,
    one_position,
    positions_of,
    roles_of,
    subject_mask,
    subject_of,
)
from kn_lens.prompts.predict import predict
from kn_lens.prompts.text import text_fact

__all__ = [
    "LEAVE_OUT",
    "ROLES",
    "PositionName",
    "PositionsName",
    "PromptBatch",
    "Role",
    "Selection",
    "check_prompts",
    "first_prompts",
    "host_for",
    "make_prompts",
    "object_is_last",
    "one_position",
    "placeholder_token",
    "positions_of",
    "predict",
    "roles_of",
    "subject_mask",
    "subject_of",
    "text_fact",
]
