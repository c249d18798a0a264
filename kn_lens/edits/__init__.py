"""Edits: new values for rows of ``W_out`` that update a fact or erase a relation, exact and reversible.

``weight_edit`` is the edit, ``value_rows`` the rows that it reads and writes, ``files`` its file format. ``updates``
and ``erasures`` make edits; ``export`` writes an edited checkpoint. ``questions`` are the questions that test an
update, ``effects`` measures what edits do to their facts and to others, ``strength`` chooses the lambdas of updates,
and ``tables`` summarises. ``easyedit`` has the requests of EasyEdit, and ``editing_data`` reads CounterFact and
KnowEdit. ``arguments`` checks the kinds of arguments.

``editors`` has the protocol of methods that change facts: ``rome``, ``memit`` and ``alphaedit``, which take second
``moments`` of texts and search ``targets``; ``fine_tuning``; and ``knowledge_neurons``, the updates above. ``stacks``
takes back any of several applied edits. ``comparison`` measures editors beside one another, and ``fluency`` what
edited models write; ``named_editors`` has editors by the names of commands and settings.
"""

from kn_lens.edits.alphaedit import AlphaEdit
from kn_lens.edits.comparison import compare_edits
from kn_lens.edits.easyedit import EasyEditRequests, easyedit_requests, read_easyedit
from kn_lens.edits.editing_data import EditingData
from kn_lens.edits.editors import Editor
from kn_lens.edits.effects import MAX_DISTURBED, disturbed_share, erase_effects, update_effects
from kn_lens.edits.erasures import erase_neurons, erase_relation
from kn_lens.edits.export import check_new, export
from kn_lens.edits.fine_tuning import FT
from kn_lens.edits.fluency import generation_prompts
from kn_lens.edits.knowledge_neurons import KN
from kn_lens.edits.memit import MEMIT
from kn_lens.edits.moments import SecondMoments, second_moments
from kn_lens.edits.named_editors import NamedEditors
from kn_lens.edits.questions import (
    HELD_OUT,
    OTHER_RELATIONS,
    OWN,
    SAME_RELATION,
    Question,
    Questions,
    answerable,
    inverse_questions,
    reworded,
    translated_questions,
)
from kn_lens.edits.rome import ROME
from kn_lens.edits.stacks import undo_any_
from kn_lens.edits.strength import LambdaChoice, choose_lambdas
from kn_lens.edits.tables import edit_table
from kn_lens.edits.updates import resolve_form, update_fact
from kn_lens.edits.weight_edit import WeightEdit

__all__ = [
    "FT",
    "HELD_OUT",
    "KN",
    "MAX_DISTURBED",
    "MEMIT",
    "OTHER_RELATIONS",
    "OWN",
    "ROME",
    "SAME_RELATION",
    "AlphaEdit",
    "EasyEditRequests",
    "EditingData",
    "Editor",
    "LambdaChoice",
    "NamedEditors",
    "Question",
    "Questions",
    "SecondMoments",
    "WeightEdit",
    "answerable",
    "check_new",
    "choose_lambdas",
    "compare_edits",
    "disturbed_share",
    "easyedit_requests",
    "edit_table",
    "erase_effects",
    "erase_neurons",
    "erase_relation",
    "export",
    "generation_prompts",
    "inverse_questions",
    "read_easyedit",
    "resolve_form",
    "reworded",
    "second_moments",
    "translated_questions",
    "undo_any_",
    "update_effects",
    "update_fact",
]
